"""What pyproject.toml promises is what the other files of the project say."""

import json
import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
REQUIRED = [*PROJECT["dependencies"], *(p for extra in PROJECT["optional-dependencies"].values() for p in extra)]
BOUNDS = dict(re.fullmatch(r"([\w-]+)>=([\d.]+)", requirement).groups() for requirement in REQUIRED)


def pins(name):
    return dict(line.split("==") for line in (ROOT / name).read_text().splitlines() if "==" in line)


def numbers(version):
    return [int(part) for part in version.split(".") if part.isdecimal()]


def test_lowest_versions_are_the_bounds():
    """The tools that only look at the code need no lowest version."""
    lowest = pins("constraints-lowest.txt")
    assert lowest.keys() == BOUNDS.keys() - {"ruff", "mypy"}
    for name, version in lowest.items():
        bound = numbers(BOUNDS[name])
        assert numbers(version)[:len(bound)] == bound
        assert not any(numbers(version)[len(bound):])


def test_pinned_versions_are_within_the_bounds():
    pinned = pins("constraints.txt")
    assert pinned.keys() == BOUNDS.keys()
    for name, version in pinned.items():
        assert numbers(version) >= numbers(BOUNDS[name])


def test_licences_are_listed():
    rows = [line.split("|")[1] for line in (ROOT / "docs" / "licences.md").read_text().splitlines() if line.startswith("| ")]
    assert {name.strip() for row in rows for name in row.split(",")} == {"package", *BOUNDS}


def test_ci_runs_every_python_that_is_promised():
    workflow = (ROOT / ".github" / "workflows" / "tests.yml").read_text()
    promised = [line.rsplit(" ", 1)[1] for line in PROJECT["classifiers"] if "Python :: 3." in line]
    assert re.search(r"python: \[(.*)\]", workflow)[1].replace('"', "").split(", ") == promised


def test_what_it_consists_of_is_listed_as_it_is_pinned():
    content = json.loads((ROOT / "docs" / "sbom.json").read_text())
    listed = {part["name"]: part for part in content["components"]}
    for name, version in pins("constraints.txt").items():
        part = listed[name.lower()]
        assert part["version"] == version
        assert part["purl"] == part["bom-ref"] == f"pkg:pypi/{name.lower()}@{version}"
        assert part["licenses"][0]["license"]["name"] != "not stated"
    core = {re.match(r"[\w-]+", requirement)[0].lower() for requirement in PROJECT["dependencies"]}
    assert core <= {name for name, part in listed.items() if part["scope"] == "required"}
    references = {part["bom-ref"] for part in listed.values()} | {"fpsde"}
    edges = content["dependencies"]
    assert {edge["ref"] for edge in edges} == references
    assert {other for edge in edges for other in edge["dependsOn"]} == references - {"fpsde"}

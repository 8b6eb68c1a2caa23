"""Writes docs/sbom.json: what an installation of fpsde with all extras consists of, in CycloneDX's form.

It is that of the environment that runs this, which should be one of constraints.txt: `make sbom`.
"""

from __future__ import annotations

import json
import re
import tomllib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent


def names(requirements: list[str]) -> list[str]:
    """The packages that are asked for here, without any extra."""
    parsed = map(Requirement, requirements)
    return sorted({str(canonicalize_name(r.name)) for r in parsed if r.marker is None or r.marker.evaluate({"extra": ""})})


def reached(start: list[str]) -> dict[str, list[str]]:
    """All packages that these lead to, with what each asks for."""
    graph: dict[str, list[str]] = {}
    todo = list(start)
    while todo:
        name = todo.pop()
        if name not in graph:
            try:
                graph[name] = names(distribution(name).requires or [])
            except PackageNotFoundError:
                # Asked for elsewhere only, such as CUDA beside a build without it.
                continue
            todo += graph[name]
    return {name: [other for other in others if other in graph] for name, others in sorted(graph.items())}


def licence(name: str) -> str:
    """What a package says of its licence, in short."""
    metadata = distribution(name).metadata
    said = [value.rsplit(" :: ", 1)[-1] for value in metadata.get_all("Classifier", []) if value.startswith("License ::")]
    given = metadata.get("License-Expression") or " and ".join(said) or metadata.get("License") or "not stated"
    return given.strip().splitlines()[0]


def reference(name: str) -> str:
    """The package's address, by name and version; a build's own suffix is no part of it."""
    return f"pkg:pypi/{name}@{re.sub(r'[+].*', '', distribution(name).version)}"


def main() -> None:
    """Writes the file."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *(r for extra in project["optional-dependencies"].values() for r in extra)]
    always, everything = reached(names(project["dependencies"])), reached(names(wanted))
    components: list[dict[str, Any]] = [
        {"type": "library", "bom-ref": reference(name), "name": name, "version": reference(name).rpartition("@")[2],
         "scope": "required" if name in always else "optional", "licenses": [{"license": {"name": licence(name)}}],
         "purl": reference(name)} for name in everything]
    graph = [{"ref": "fpsde", "dependsOn": [reference(name) for name in names(wanted)]}]
    graph += [{"ref": reference(name), "dependsOn": [reference(other) for other in others]}
              for name, others in everything.items()]
    itself = {"type": "library", "bom-ref": "fpsde", "name": "fpsde", "version": project["version"],
              "licenses": [{"license": {"id": "Apache-2.0"}}]}
    content = {"bomFormat": "CycloneDX", "specVersion": "1.5", "version": 1, "metadata": {"component": itself},
               "components": components, "dependencies": graph}
    (ROOT / "docs" / "sbom.json").write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()

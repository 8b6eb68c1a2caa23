"""Benchmarks that are to run where no test can: here they run as small as can be."""

import importlib
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from fpsde import FokkerPlanckSDE

BENCHMARKS = str(Path(__file__).parent.parent / "benchmarks")
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def gpu():
    """The benchmark of a GPU, from the folder where it finds its own."""
    sys.path.insert(0, BENCHMARKS)
    import gpu

    yield gpu
    sys.path.remove(BENCHMARKS)


def table(text, first):
    """Rows of the table whose first column is named so, without its head."""
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]
    start = next(k for k, row in enumerate(lines) if row[0] == first)
    rows = []
    for row in lines[start + 2:]:
        if len(row) != len(lines[start]):
            break
        rows.append(dict(zip(lines[start], row, strict=True)))
    return rows


def test_on_the_cpu(gpu, tmp_path):
    gpu.main(["--device", "cpu", "--small", "--dims", "2", "--points", "64", "--seconds", "0", "-o", str(tmp_path / "t.md")])
    text = (tmp_path / "t.md").read_text()
    assert text.startswith("# A training step on the CPU\n")
    assert "it says nothing about a GPU" in text
    rows = table(text, "step")
    assert [(row["step"], row["points"]) for row in rows] == [("path", "55"), ("nets", "64")]
    for row in rows:
        least, products, step = (float(row[name]) for name in ("least, ms", "products, ms", "eager, ms"))
        assert 0 < least <= products < step
        assert float(row["utilisation, %"]) == pytest.approx(100 * products / step, rel=0.1)
        assert float(row["million points/s"]) == pytest.approx(int(row["points"]) / step / 1e3, rel=0.01)
    errors = {row["precision"]: row for row in table(text, "d")}
    for name in ("f", "Df", "D2f", "residual", "gradient"):
        assert 0 < float(errors["float32"][name]) < 1e-4 < float(errors["bf16"][name]) < 0.1


def test_what_a_seed_gave_is_kept_for_further_runs(gpu, tmp_path):
    from wide import Errors, kept

    path, key, found = tmp_path / "store.jsonl", ["double well", 1, 11, 200, "free", 0], Errors(0.1, 0.2, remark="slow")
    assert kept(path, key, lambda: found, only=True) is None
    assert not path.exists()
    assert kept(path, key, lambda: found) == found
    assert kept(path, [*key[:-1], 1], lambda: None) is None
    for other, expected in ((key, found), ([*key[:-1], 1], None)):
        assert kept(path, other, lambda: pytest.fail("measured again")) == expected
    assert len(path.read_text().splitlines()) == 2


def test_products_are_counted_one_by_one(gpu):
    a, b = torch.ones(64, 32), torch.ones(32, 8)
    work, size = 2 * 64 * 32 * 8, 4 * (64 * 32 + 32 * 8 + 64 * 8)
    for rate, moved, expected in ((1e9, 1e12, work / 1e9), (1e12, 1e9, size / 1e9)):
        with gpu.Products(rate, moved) as products:
            (a @ b).tanh()
            a @ b
        assert products.seconds == pytest.approx(2 * expected)


def test_a_series_ends_with_memory(gpu, monkeypatch):
    made = gpu.case

    def case(step, dim, points, device):
        if points > 128:
            raise torch.cuda.OutOfMemoryError("full")
        return made(step, dim, points, device)

    monkeypatch.setattr(gpu, "case", case)
    arguments = gpu.parse(["--device", "cpu", "--small", "--points", "256", "64", "512", "--seconds", "0"])
    rows, said = gpu.series("nets", 2, arguments, gpu.Rates({"float32": 1e10}, 1e10))
    assert len(rows) == 1
    assert said[0] == "- nets, d = 2: memory ran out at 256 points."
    assert "most points 64, utilisation" in said[1]


def test_a_table_names_the_commit_of_its_folder_wherever_it_is_run(gpu, tmp_path):
    import scores

    def git(*words):
        who = ("-c", "user.name=nobody", "-c", "user.email=nobody@example.org")
        return subprocess.run(["git", *who, *words], cwd=tmp_path, capture_output=True, text=True, check=True).stdout.strip()

    git("init")
    (tmp_path / "a").write_text("1")
    git("add", "a")
    git("commit", "-m", "first")
    head = git("rev-parse", "--short", "HEAD")
    assert scores.commit(tmp_path) == head
    (tmp_path / "untracked").write_text("1")
    assert scores.commit(tmp_path) == head
    (tmp_path / "a").write_text("2")
    assert scores.commit(tmp_path) == head + "+"


TINY = ["--steps", "2", "--components", "1"]
WELL = ["--only", "double well, 1-D"]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "arguments", "first", "rows"), [
    ("recovery", ["--seeds", "1", *TINY, *WELL], "system", 1),
    ("recovery", ["--suite", "wide", "--seeds", "1", "--points", "40", "--snapshots", "4", *TINY, "--only",
                  "double well"], "system", 1),
    ("forecast", [*TINY, *WELL], "system", 1),
    ("forecast", ["--suite", "calibration", "--seeds", "2", "--members", "3", "--snapshots", "5", "--points", "40", *TINY, *WELL],
     "system", 6),
    ("forecast", ["--suite", "beyond", "--members", "3", *TINY], "from", 3),
    ("leave_one_out", ["--seeds", "2"], "left out", 3),
    ("interpolation", ["--seeds", "1"], "left out", 2),
    ("noise_range", ["--points", "40", "--steps", "2"], "true g", 2),
    ("growth", ["--points", "60", "--seeds", "1", "--steps", "2"], "points", 3)])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_as_small_as_can_be(name, arguments, first, rows, tmp_path, monkeypatch, rng):
    monkeypatch.syspath_prepend(BENCHMARKS)
    module = importlib.import_module(name)
    data, output = tmp_path / "lv.npz", tmp_path / "table.md"
    t = np.repeat(np.arange(4.0), 12)
    np.savez(data, X=np.exp(0.1 * rng.normal(size=(48, 2)) + 0.1 * t[:, None]), t=t)
    if name in ("leave_one_out", "interpolation"):
        arguments = [str(data), *arguments]
        monkeypatch.setattr(module, "FokkerPlanckSDE", partial(FokkerPlanckSDE, max_steps=2, hidden=(4,)))
    if "beyond" in arguments:
        arguments = [*arguments, "--lotka-volterra", str(data)]
    if name == "noise_range":
        monkeypatch.setattr(module, "SCALES", module.SCALES[2:4])
    target = tmp_path if name == "noise_range" else output
    monkeypatch.setattr(sys, "argv", [name, *arguments, "-o", str(target)])
    module.main()
    found = table((tmp_path / f"{name}.md" if name == "noise_range" else output).read_text(), first)
    assert len(found) == rows
    # The column without a name has remarks, if there are any.
    filled = [[value for name, value in row.items() if name]
              for row in found if row[first] not in ("all", "mean") and row.get("growth") != "without"]
    assert all(map(all, filled))


@pytest.mark.gpu
def test_on_the_gpu(gpu, device, tmp_path):
    gpu.main(["--device", str(device), "--small", "--dims", "2", "--points", "64", "--variants", *gpu.VARIANTS, "-o",
              str(tmp_path / "t.md")])
    rows = table((tmp_path / "t.md").read_text(), "step")
    # No variant failed: nothing in a step waits for the host, or it could not be captured.
    for row in rows:
        assert all(float(row[f"{variant}, ms"]) > 0 for variant in gpu.VARIANTS)
        assert float(row["memory, GiB"]) > 0

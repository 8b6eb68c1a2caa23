import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from problems import rotating_snapshots

from fpsde import FokkerPlanckSDE
from fpsde.cli import main
from fpsde.description import describe
from fpsde.simulation import SimulationError

X, T = rotating_snapshots(40, np.array([0.0, 0.5, 1.0]))


def run(*arguments):
    return CliRunner().invoke(main, [str(a) for a in arguments])


def refused(*arguments):
    """Runs what must fail: exit code 2, one sentence, no traceback."""
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    return result.output


@pytest.fixture(scope="module")
def folder(tmp_path_factory, device):
    folder = tmp_path_factory.mktemp("cli")
    rows = "".join(f"{t},{x},{y}\n" for t, (x, y) in zip(T, X, strict=True))
    (folder / "data.csv").write_text("day,prey,predator\n" + rows)
    np.savez(folder / "data.npz", X=X, t=T)
    result = run("fit", folder / "data.csv", "--time", "day", "-o", folder / "m.fpsde", "--steps", 10, "--components", 2,
                 "--device", device, "--quiet")
    assert result.exit_code == 0, result.output
    assert "120 points at 3 times" in result.output
    return folder


def test_info(folder):
    result = run("info", folder / "m.fpsde")
    assert result.exit_code == 0
    assert "its own density" in result.output
    summary = FokkerPlanckSDE.load(folder / "m.fpsde").summary_
    assert summary["density_ratio"] > 0
    assert summary["density_ratio_allowed"] > 1.1
    assert "2 coordinates (prey, predator)" in result.output
    assert "an assumption" in result.output


def test_info_asks_for_the_noise_where_the_model_lies(folder, monkeypatch):
    """On a device that refuses the CPU's tensors, as a GPU does."""
    model, asked = FokkerPlanckSDE.load(folder / "m.fpsde"), []
    noise = model.diffusion(model.sde_.coordinates.centre[None], 0.0)
    monkeypatch.setattr(FokkerPlanckSDE, "diffusion", property(lambda _: lambda x, t: asked.append(x) or noise))
    model.sde_.to("meta")
    describe(model)
    assert [(x.device.type, x.shape) for x in asked] == [("meta", (1, 2))]


def test_a_drift_that_is_a_gradient(folder, tmp_path):
    result = run("fit", folder / "data.csv", "--drift", "gradient", "-o", tmp_path / "m.fpsde", "--steps", 10, "--components", 2,
                 "--device", "cpu", "--quiet")
    assert result.exit_code == 0, result.output
    assert "drift gradient, diffusion state: the drift goes down a potential, an assumption" in result.output
    assert "gradient by assumption" in run("info", tmp_path / "m.fpsde", folder / "data.csv").output


@pytest.mark.parametrize("times", ["0:1:0.25", "0,0.5,1"])
@pytest.mark.parametrize("suffix", ["npz", "csv"])
def test_simulate(folder, tmp_path, times, suffix):
    output = tmp_path / f"paths.{suffix}"
    result = run("simulate", folder / "m.fpsde", "--start", folder / "data.csv", "--times", times, "-o", output, "--quiet")
    assert result.exit_code == 0, result.output
    k = 5 if ":" in times else 3
    if suffix == "npz":
        with np.load(output) as file:
            assert file["paths"].shape == (k, 40, 2)
            assert file["names"].tolist() == ["prey", "predator"]
    else:
        lines = output.read_text().splitlines()
        assert lines[0] == "path,time,prey,predator"
        assert len(lines) == 1 + 40 * k


def test_paths_go_to_disk_as_they_are_made(folder, tmp_path):
    """More paths than are simulated at once: the same as those that are held in memory."""
    arguments = ("simulate", folder / "m.fpsde", "--start", folder / "data.csv", "--times", "0,0.5,1", "--paths", 4500, "--step",
                 0.25, "--quiet", "-o")
    for name in ("p.npy", "p.npz"):
        result = run(*arguments, tmp_path / name)
        assert result.exit_code == 0, result.output
        assert "Wrote 4500 paths at 3 times" in result.output
    with np.load(tmp_path / "p.npz") as file:
        assert np.array_equal(np.load(tmp_path / "p.npy"), file["paths"])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["p.npy", "p.npz"]


def test_seeds_and_steps_are_those_asked_for(folder, tmp_path, device):
    """Another seed gives another model, other paths, other scores; so does a step of another size."""
    def fit(name, seed):
        result = run("fit", folder / "data.csv", "--drift", "autonomous", "--diffusion", "constant", "-o", tmp_path / name,
                     "--steps", 4, "--components", 1, "--device", device, "--quiet", "--seed", seed)
        assert result.exit_code == 0, result.output
        return FokkerPlanckSDE.load(tmp_path / name).drift(X, 0.0)

    assert not np.allclose(fit("a", 5), fit("b", 6))
    assert FokkerPlanckSDE.load(tmp_path / "a").get_params()["random_state"] == 5

    def simulate(*options):
        result = run("simulate", tmp_path / "a", "--start", folder / "data.csv", "--times", "0,1", "-o", tmp_path / "p.npz",
                     "--quiet", *options)
        assert result.exit_code == 0, result.output
        with np.load(tmp_path / "p.npz") as file:
            return file["paths"]

    paths = simulate("--seed", 1, "--step", 0.25)
    assert np.array_equal(simulate("--seed", 1, "--step", 0.25), paths)
    assert not np.allclose(simulate("--seed", 2, "--step", 0.25), paths)
    assert not np.allclose(simulate("--seed", 1, "--step", 0.5), paths)

    def evaluate(seed):
        return json.loads(run("evaluate", tmp_path / "a", folder / "data.csv", "--points", 10, "--seed", seed, "--json").output)

    assert evaluate(1) == evaluate(1)
    assert evaluate(1)["steps"] != evaluate(2)["steps"]


@pytest.mark.parametrize("text", ["predator,prey\n1,2\n", "predator,day,prey\n1,0.5,2\n"])
def test_simulate_from_a_file_of_start_points(text, folder, tmp_path):
    (tmp_path / "start.csv").write_text(text)
    result = run("simulate", folder / "m.fpsde", "--start", tmp_path / "start.csv", "--times", "0,1", "-o",
                 tmp_path / "p.npz", "--paths", 5, "--quiet")
    assert result.exit_code == 0, result.output
    with np.load(tmp_path / "p.npz") as file:
        assert np.array_equal(file["paths"][0], [[2, 1]] * 5)


def test_start_points_of_another_kind_are_refused(folder, tmp_path):
    (tmp_path / "start.csv").write_text("predator,wolf\n1,2\n")
    arguments = ("simulate", folder / "m.fpsde", "--times", "0,1", "-o", tmp_path / "p.npz", "--start")
    assert "no column 'prey'" in refused(*arguments, tmp_path / "start.csv")
    np.savez(tmp_path / "start.npz", np.zeros((4, 3)))
    assert "3 coordinates, the model 2" in refused(*arguments, tmp_path / "start.npz")
    assert not (tmp_path / "p.npz").exists()


def test_simulate_outside_the_data_warns_in_one_line(folder, tmp_path):
    result = run("simulate", folder / "m.fpsde", "--start", folder / "data.npz", "--times", "0,3", "-o",
                 tmp_path / "p.npz", "--paths", 3, "--quiet")
    assert result.exit_code == 0
    assert "Warning: simulating from 0 to 3, outside the data's times 0 to 1" in result.output


def test_evaluate(folder):
    result = run("evaluate", folder / "m.fpsde", folder / "data.csv")
    assert result.exit_code == 0, result.output
    for word in ("W1", "W2", "MMD^2", "energy", "floor", "carry-forward", "midpoint", "log-likelihood"):
        assert word in result.output
    steps = json.loads(run("evaluate", folder / "m.fpsde", folder / "data.npz", "--json").output)["steps"]
    assert len(steps) == 2
    assert all(np.isfinite(step["distances"]["W1"]["model"]) for step in steps)


def test_evaluate_writes_json_that_others_read(folder, tmp_path):
    rows = [row for t in (0, 0.5, 1) for row in zip([t] * 3, *X[t == T][:3].T, strict=True)]
    (tmp_path / "few.csv").write_text("day,prey,predator\n" + "".join(f"{t},{x},{y}\n" for t, x, y in rows))
    result = run("evaluate", folder / "m.fpsde", tmp_path / "few.csv", "--json")
    assert result.exit_code == 0, result.output

    def refuse(word):
        raise AssertionError(word)

    step = json.loads(result.output, parse_constant=refuse)["steps"][1]
    assert step["distances"]["energy"]["model"] is None
    assert step["distances"]["W1"]["midpoint"] is None
    assert "Warning" not in run("evaluate", folder / "m.fpsde", tmp_path / "few.csv").output


def test_plot(folder, tmp_path):
    result = run("plot", folder / "m.fpsde", folder / "data.csv", "-o", tmp_path / "figures")
    assert result.exit_code == 0, result.output
    files = sorted(p.name for p in (tmp_path / "figures").iterdir())
    assert files == ["density.png", "drift.png", "learning.png", "marginals.png", "trajectories.png"]
    assert all((tmp_path / "figures" / f).stat().st_size > 5000 for f in files)


def test_bad_data_is_refused(folder, tmp_path):
    assert "no such file" in refused("fit", tmp_path / "missing.csv")
    assert "no column 'hour'; there are day, prey, predator" in refused("fit", folder / "data.csv", "--time", "hour")
    assert "no column 'wolf'" in refused("fit", folder / "data.csv", "--features", "wolf")
    (tmp_path / "bad.csv").write_text((folder / "data.csv").read_text() + "1,,2\n1,3,x\n")
    assert "'prey' has missing or infinite values in 1 rows (lines 122)" in refused("fit", tmp_path / "bad.csv")
    (tmp_path / "few.csv").write_text((folder / "data.csv").read_text() + "2,1,1\n")
    assert "fewer than 3 points, the first is 2 with 1" in refused("fit", tmp_path / "few.csv")
    assert not list(tmp_path.glob("*.fpsde"))


def test_messages_use_the_names_of_the_file(folder, tmp_path):
    (tmp_path / "d.csv").write_text("day,a,b\n" + "".join(f"{t},{i + 1},{i - 3}\n" for t in (0, 1, 2) for i in range(8)))
    for arguments in (("fit", tmp_path / "d.csv", "-o", tmp_path / "m"), ("evaluate", tmp_path / "d.csv", "--leave-one-out")):
        assert "coordinate 'b' is said to be positive, but row 0 has -3" in refused(*arguments, "--positive", "all")
    (tmp_path / "words.csv").write_text("day,a\n" + "day0,1\n" * 9)
    assert "column 'day' is not numeric: line 2 has 'day0'; write times as numbers" in refused("fit", tmp_path / "words.csv")
    for arguments in (("fit", tmp_path), ("info", tmp_path), ("evaluate", folder / "m.fpsde", tmp_path),
                      ("simulate", folder / "m.fpsde", "--start", tmp_path / "no.npz", "--times", "0,1")):
        assert "no such file" in refused(*arguments) or "a folder, not a file" in refused(*arguments)
    assert "a folder, not a file" in refused("fit", tmp_path)
    assert "a folder, not a file" in refused("info", tmp_path)


@pytest.mark.parametrize("want", [lambda: np.empty(2**57), lambda: torch.empty(2**57)])
def test_too_little_memory_is_one_sentence(want, folder, monkeypatch):
    monkeypatch.setattr(FokkerPlanckSDE, "load", lambda path: want())
    assert refused("info", folder / "m.fpsde").startswith("Error: not enough memory (")


def test_bad_options_are_refused(folder, tmp_path):
    assert "expected 'state', 'constant'" in refused("fit", folder / "data.csv", "--diffusion", "loud")
    assert "max_steps" in refused("fit", folder / "data.csv", "--steps", 0, "-o", tmp_path / "m")
    for times in ("0:1", "1:0:0.1", "a,b", "0:1:0"):
        assert "--times must be" in refused("simulate", folder / "m.fpsde", "--start", folder / "data.csv", "--times", times)


def test_output_that_cannot_be_written_is_found_before_training(folder, tmp_path):
    assert "no folder" in refused("fit", folder / "data.csv", "-o", tmp_path / "no" / "m.fpsde", "--steps", 10**9)
    assert "it is a folder" in refused("fit", folder / "data.csv", "-o", tmp_path, "--steps", 10**9)
    (tmp_path / "file").write_text("")
    assert "cannot be written" in refused("plot", folder / "m.fpsde", folder / "data.csv", "-o", tmp_path / "file" / "f")
    assert "ends in .npz, .npy or .csv" in refused("simulate", folder / "m.fpsde", "--start", folder / "data.csv", "--times",
                                             "0,1", "-o", tmp_path / "paths.txt")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file"]


def test_what_is_read_is_not_written_over(folder, tmp_path):
    data, model = tmp_path / "data.csv", tmp_path / "density.png"
    data.write_bytes((folder / "data.csv").read_bytes())
    model.write_bytes((folder / "m.fpsde").read_bytes())
    (tmp_path / "link.csv").symlink_to(data)
    start = ("--start", data, "--times", "0,1", "-o")
    for arguments in (("fit", data, "-o", data), ("fit", data, "-o", tmp_path / "link.csv"), ("simulate", model, *start, data),
                      ("simulate", model, *start, model), ("info", model, data, "--figure", model),
                      ("plot", model, data, "-o", tmp_path)):
        assert "which is read" in refused(*arguments)
    assert data.read_bytes() == (folder / "data.csv").read_bytes()
    assert model.read_bytes() == (folder / "m.fpsde").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data.csv", "density.png", "link.csv"]


def test_names_that_the_system_does_not_take(folder, tmp_path):
    long = "n" * 300
    for arguments in (("fit", folder / "data.csv", "-o", tmp_path / long, "--steps", 10**9),
                      ("fit", folder / "data.csv", "-o", tmp_path / long / "m.fpsde", "--steps", 10**9),
                      ("fit", tmp_path / f"{long}.csv"), ("info", tmp_path / long),
                      ("plot", folder / "m.fpsde", folder / "data.csv", "-o", tmp_path / long),
                      ("simulate", folder / "m.fpsde", "--start", folder / "data.csv", "--times", "0,1", "-o",
                       tmp_path / f"{long}.npz")):
        message = refused(*arguments)
        assert message.count("\n") == 1
        assert "no such file" in message or "cannot be written" in message
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["mps", "xpu", "meta", "cuda:99"])
def test_devices_that_are_not_there(name, folder, tmp_path):
    assert f"device {name!r}" in refused("fit", folder / "data.csv", "-o", tmp_path / "m", "--device", name).replace(
        "device must be 'auto', 'cpu', 'cuda' or 'cuda:0' and so on, got ", "device ")


def test_bad_models_are_refused(folder, tmp_path):
    assert "no such file" in refused("info", tmp_path / "none.fpsde")
    (tmp_path / "junk.fpsde").write_bytes(os.urandom(300))
    assert "not a model file, or damaged" in refused("info", tmp_path / "junk.fpsde")
    content = (folder / "m.fpsde").read_bytes()
    (tmp_path / "cut.fpsde").write_bytes(content[:-100])
    assert "damaged" in refused("evaluate", tmp_path / "cut.fpsde", folder / "data.csv")


def test_data_of_another_dimension_is_refused(folder, tmp_path):
    np.savez(tmp_path / "three.npz", X=np.random.default_rng(0).normal(size=(120, 3)), t=T)
    assert "3 coordinates, the model 2" in refused("evaluate", folder / "m.fpsde", tmp_path / "three.npz")
    (tmp_path / "other.csv").write_text((folder / "data.csv").read_text().replace("predator", "wolf"))
    assert "no column 'predator'" in refused("evaluate", folder / "m.fpsde", tmp_path / "other.csv")


def test_module_runs_as_a_program():
    result = subprocess.run([sys.executable, "-m", "fpsde", "--version"], capture_output=True, text=True, check=True)
    assert result.stdout.startswith("fpsde, version")


def test_evaluate_leave_one_out(folder):
    arguments = ("evaluate", folder / "data.csv", "--leave-one-out", "--steps", 10, "--components", 2, "--points", 30,
                 "--device", "cpu")
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    for word in ("Without 0.5: fitted in", "roll-out", "carry-forward", "midpoint", "floor", "mean"):
        assert word in result.output
    # Before click 8.2 what goes to stderr is in stdout too.
    score, = json.loads(run(*arguments, "--json").stdout.splitlines()[-1])
    assert (score["time"], score["points"]) == (0.5, 30)
    assert all(np.isfinite(value) for value in score["distances"].values())


def test_leave_one_out_with_several_seeds(tmp_path):
    """Counts that vary are warned of once, not at every fit."""
    kept = (T < 1) | (np.arange(len(T)) % 2 == 0)
    np.savez(tmp_path / "data.npz", X=X[kept], t=T[kept])
    result = run("evaluate", tmp_path / "data.npz", "--leave-one-out", "--steps", 1, "--components", 1, "--points", 15,
                 "--device", "cpu", "--seed", 3, "--seeds", 2)
    assert result.exit_code == 0, result.output
    assert result.output.count("Warning: the number of points at a time varies from 20 to 40") == 1
    rows = [line.split() for line in result.output.splitlines()]
    assert [row[:2] for row in rows if row[0] == "0.5"] == [["0.5", "3"], ["0.5", "4"]]
    mean, least, largest = (np.array(row[1:], float) for row in rows if row[0] in ("mean", "least", "largest"))
    assert least[0] < mean[0] < largest[0]


def test_a_fit_whose_paths_are_lost_is_kept(folder, tmp_path, monkeypatch):
    def lost(*_, **__):
        raise SimulationError("3 of 40 paths became infinite")

    monkeypatch.setattr(FokkerPlanckSDE, "push", lost)
    result = run("fit", folder / "data.csv", "-o", tmp_path / "m.fpsde", "--steps", 1, "--components", 1, "--device", "cpu",
                 "--quiet")
    assert result.exit_code == 0, result.output
    assert "follows its own density is not known: 3 of 40 paths became infinite" in result.output
    assert "its own density:" not in run("info", tmp_path / "m.fpsde").output


def test_leave_one_out_takes_no_model(folder):
    for arguments in ((folder / "m.fpsde",), (folder / "m.fpsde", folder / "data.csv", "--leave-one-out")):
        result = run("evaluate", *arguments)
        assert result.exit_code == 2
        assert "DATA with --leave-one-out and no model" in result.output


def test_info_with_data_says_what_they_cannot_tell(folder, tmp_path):
    result = run("info", folder / "m.fpsde", folder / "data.csv", "--time", "day", "--figure", tmp_path / "profile.png")
    assert result.exit_code == 0, result.output
    assert "do not tell the noise level" in result.output
    assert (tmp_path / "profile.png").stat().st_size > 5000
    refused("info", folder / "m.fpsde", "--figure", tmp_path / "other.png")
    refused("info", folder / "m.fpsde", folder / "data.csv", "--time", "day", "--figure", tmp_path / "other.txt")
    assert not (tmp_path / "other.txt").exists()


def test_a_model_of_arrays_takes_all_columns_of_a_file(folder, tmp_path):
    result = run("fit", folder / "data.npz", "-o", tmp_path / "m.fpsde", "--steps", 10, "--components", 2, "--device", "cpu",
                 "--quiet")
    assert result.exit_code == 0, result.output
    result = run("evaluate", tmp_path / "m.fpsde", folder / "data.csv", "--time", "day", "--points", 10)
    assert result.exit_code == 0, result.output
    assert "Test of fit" in result.output


def test_columns_of_the_usual_names_are_found_beside_others(folder, tmp_path):
    rows = "".join(f"{t},{x},{y},cell\n" for t, (x, y) in zip(T, X, strict=True))
    (tmp_path / "data.csv").write_text("day,x1,x2,kind\n" + rows)
    result = run("fit", tmp_path / "data.csv", "--time", "day", "--features", "x1,x2", "-o", tmp_path / "m.fpsde", "--steps",
                 10, "--components", 2, "--device", "cpu", "--quiet")
    assert result.exit_code == 0, result.output
    result = run("evaluate", tmp_path / "m.fpsde", tmp_path / "data.csv", "--time", "day", "--points", 10)
    assert result.exit_code == 0, result.output


def test_weights_from_a_column_or_an_array(folder, tmp_path):
    weights = 1 + X[:, 0] ** 2
    rows = "".join(f"{t},{x},{y},{w}\n" for t, (x, y), w in zip(T, X, weights, strict=True))
    (tmp_path / "data.csv").write_text("day,prey,predator,w\n" + rows)
    np.savez(tmp_path / "data.npz", X=X, t=T, w=weights)
    fitted = []
    for name in ("data.csv", "data.npz"):
        model, data = tmp_path / f"{name}.fpsde", tmp_path / name
        result = run("fit", data, "--weights", "w", "-o", model, "--steps", 10, "--components", 2, "--device", "cpu", "--quiet")
        assert result.exit_code == 0, result.output
        assert "2 coordinates" in result.output
        fitted.append(FokkerPlanckSDE.load(model))
        result = run("evaluate", model, data, "--weights", "w", "--json")
        assert result.exit_code == 0, result.output
        found = json.loads(result.output)["log_likelihood"]
        shares = weights / np.repeat([weights[s == T].mean() for s in np.unique(T)], 40)
        assert found == pytest.approx(fitted[-1].score(X, T, shares))
        result = run("info", model, data, "--weights", "w")
        assert result.exit_code == 0, result.output
    assert fitted[0].names_ == ("prey", "predator")
    assert np.allclose(fitted[0].drift(X, T), fitted[1].drift(X, T))
    assert not np.allclose(fitted[0].drift(X, T), FokkerPlanckSDE.load(folder / "m.fpsde").drift(X, T))
    result = run("evaluate", tmp_path / "data.csv", "--weights", "w", "--leave-one-out", "--steps", 10, "--components", 2,
                 "--points", 5, "--device", "cpu")
    assert result.exit_code == 0, result.output
    assert "no column 'v'; there are day, prey, predator, w" in refused("fit", tmp_path / "data.csv", "--weights", "v")
    (tmp_path / "bad.csv").write_text((tmp_path / "data.csv").read_text() + "1,2,3,-1\n")
    assert "1 weights are negative, missing or infinite, the first in row 120 (-1)" in refused(
        "fit", tmp_path / "bad.csv", "--weights", "w")


def test_names_become_neither_formulas_nor_paths(folder, tmp_path):
    """Names from data go into cells and figures, and into no path."""
    text = (folder / "data.csv").read_text().replace("prey,predator", "=1+1,../../up")
    (tmp_path / "data.csv").write_text(text)
    result = run("fit", tmp_path / "data.csv", "--time", "day", "-o", tmp_path / "m.fpsde", "--steps", 1, "--components", 1,
                 "--device", "cpu", "--quiet")
    assert result.exit_code == 0, result.output
    result = run("simulate", tmp_path / "m.fpsde", "--start", tmp_path / "data.csv", "--times", "0,1", "--paths", 2, "-o",
                 tmp_path / "paths.csv", "--quiet")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "paths.csv").read_text().splitlines()[0] == "path,time,'=1+1,../../up"
    # What was written can be read again, by the same names.
    result = run("simulate", tmp_path / "m.fpsde", "--start", tmp_path / "paths.csv", "--time", "time", "--times", "0,1", "-o",
                 tmp_path / "again.npz", "--quiet")
    assert result.exit_code == 0, result.output
    result = run("plot", tmp_path / "m.fpsde", tmp_path / "data.csv", "-o", tmp_path / "figures")
    assert result.exit_code == 0, result.output
    assert sorted(p.name for p in tmp_path.iterdir()) == ["again.npz", "data.csv", "figures", "m.fpsde", "paths.csv"]
    assert all(p.stem.isalpha() for p in (tmp_path / "figures").iterdir())
    assert not any(p.name == "up" for p in tmp_path.parent.rglob("up*"))


def test_what_no_one_foresaw_is_a_sentence_too(folder, monkeypatch):
    def broken(path, device="auto"):
        raise RuntimeError("a bug\nof two lines")

    monkeypatch.setattr(FokkerPlanckSDE, "load", broken)
    result = run("info", folder / "m.fpsde")
    assert result.exit_code == 1
    assert result.output.startswith("Error: this is a bug of fpsde, RuntimeError: a bug of two lines; please report it")
    assert result.output.count("\n") == 1
    monkeypatch.setenv("FPSDE_TRACEBACK", "1")
    assert isinstance(run("info", folder / "m.fpsde").exception, RuntimeError)

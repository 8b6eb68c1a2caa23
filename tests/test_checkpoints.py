import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from problems import rotating_snapshots
from safetensors.torch import save

from fpsde import FokkerPlanckSDE, readouts
from fpsde.checkpoints import CheckpointError, Checkpoints, saved_states
from fpsde.cli import main
from fpsde.files import digest
from fpsde.mixture import initial_path
from fpsde.state_file import StateFileError, read_state, write_state
from fpsde.train import StateError

X, T = rotating_snapshots(40, np.array([0.0, 0.5, 1.0]))
QUICK = {"n_components": 2, "max_steps": 10, "hidden": (4,), "diffusion": "constant", "random_state": 0, "device": "cpu"}


class Killed(BaseException):
    pass


def fit(folder=None, seconds=0.0, x=X, t=T, weights=None, **settings):
    return FokkerPlanckSDE(**{**QUICK, **settings}).fit(x, t, weights, checkpoint=folder, checkpoint_seconds=seconds)


def assert_same(model, other):
    """Asserts that two fits are the same bit for bit, in all that they tell."""
    for parts, others in zip(model.members_, other.members_, strict=True):
        for part, same in zip(parts, others, strict=True):
            state, expected = part.state_dict(), same.state_dict()
            assert state.keys() == expected.keys()
            assert all(torch.equal(state[name], expected[name]) for name in state)
    assert model.history_ == other.history_
    assert model.summary_ == other.summary_


@pytest.fixture(scope="module")
def alone():
    """The usual fit, left alone."""
    return fit()


@pytest.fixture
def at_save(monkeypatch):
    """Sets what happens at one of the states that are saved from now on, once it is written, or before."""
    def of(count, act, written=True):
        left = [count]

        def write(path, state):
            left[0] -= 1
            if left[0] or written:
                write_state(path, state)
            if not left[0]:
                act()

        monkeypatch.setattr("fpsde.checkpoints.write_state", write)
    return of


def kill():
    raise Killed


def left_after(saves, folder, at_save, **settings):
    """Leaves a folder as a fit does that is killed once it has saved so many states."""
    at_save(saves, kill)
    with pytest.raises(Killed):
        fit(folder, **settings)
    at_save(10**9, kill)


FITS = [
    {"drift": "time", "n_components": 40, "diffusion": "state"},
    {"drift": "time", "n_members": 2, "max_steps": 5},
    {"drift": "autonomous", "diffusion": "state"},
    pytest.param({"drift": "autonomous", "n_members": 2, "max_steps": 5, "growth": "counts"}, marks=pytest.mark.slow),
    {"drift": "gradient", "diffusion": 0.5},
]


@pytest.mark.parametrize("pace", [4, pytest.param(0, marks=pytest.mark.slow)])
@pytest.mark.parametrize("settings", FITS, ids=str)
def test_a_fit_that_is_killed_again_and_again_is_the_same_bit_for_bit(settings, pace, at_save, tmp_path):
    expected = fit(**settings)
    for life in range(1, 100):
        # The first of a life's saves is where the one before ended.
        at_save(3 + pace * life // 2, kill, written=bool(life % 2))
        torch.manual_seed(life)
        try:
            model = fit(tmp_path, **settings)
            break
        except Killed:
            assert 1 <= len(saved_states(tmp_path)) <= 3
    assert life > 3
    assert len(saved_states(tmp_path)) == 2
    assert_same(model, expected)


def test_a_search_among_what_is_promising_goes_on_where_it_was(at_save, tmp_path, monkeypatch):
    monkeypatch.setattr(readouts, "MOST_GROUPS", 0)
    test_a_fit_that_is_killed_again_and_again_is_the_same_bit_for_bit({"drift": "autonomous"}, 4, at_save, tmp_path)


def test_what_the_solver_has_gathered_is_kept(at_save, tmp_path):
    expected = fit(tmp_path / "whole", max_steps=20)
    # The last three states are those of the end and of the polish before it; the nets take four steps before.
    last = int(saved_states(tmp_path / "whole")[-1].stem[-6:])
    left_after(last - 5, tmp_path / "left", at_save, max_steps=20)
    loop = read_state(saved_states(tmp_path / "left")[-1])["members"][0]["loop"]
    assert loop["training"]["step"] == 2
    assert float(loop["solver"]["systems"][0]["amount"]) == pytest.approx(1 - 0.98**2)
    assert_same(fit(tmp_path / "left", max_steps=20), expected)


@pytest.mark.parametrize("dim", [2, 22])
def test_a_path_starts_laid_out_in_memory_as_one_that_is_restored(dim, rng):
    path = initial_path([rng.standard_normal((40, dim)) for _ in range(3)], np.array([0.0, 0.5, 1.0]), 3, rng)
    assert all(values.is_contiguous() for values in path.state_dict().values())


def test_a_finished_fit_is_there_at_once(tmp_path, monkeypatch):
    expected = fit(tmp_path, n_members=2)
    monkeypatch.setattr("fpsde.identification.train", kill)
    assert_same(fit(tmp_path, n_members=2), expected)


@pytest.mark.parametrize(("change", "message"), [
    ({"max_steps": 11}, "max_steps=10, not 11"),
    ({"hidden": (8,)}, r"hidden=\[4\], not \[8\]"),
    ({"n_members": 2, "drift": "autonomous"}, "drift='time', not 'autonomous'; .*n_members=1, not 2"),
    ({"random_state": 1}, r"seed=\d+, not \d+"),
    ({"x": X + 1e-12}, "points='120 x 2 values .*', not '120 x 2 values .*'; go on"),
    ({"x": X[:-1], "t": T[:-1]}, "points='120 x 2 values .*', not '119 x 2 values .*'; times="),
    ({"t": 2 * T}, "times="),
    ({"weights": T + 1 + X[:, 0] ** 2}, "weights=None, not '120 values"),
    ({"drift_prior": lambda X, t: 0.3 * X}, "drift_prior='120 x 2 values .*', not '120 x 2 values"),
    ({"diffusion": 0.2}, "diffusion='constant', not 0.2"),
])
def test_another_fit_is_refused_and_told_what_differs(change, message, at_save, tmp_path):
    prior = {"drift_prior": lambda X, t: 0.2 * X} if "drift_prior" in change else {}
    left_after(2, tmp_path, at_save, **prior)
    before = [path.read_bytes() for path in saved_states(tmp_path)]
    with pytest.raises(CheckpointError, match=f"the checkpoint there is of another fit, with .*{message}"):
        fit(tmp_path, **change)
    assert before == [path.read_bytes() for path in saved_states(tmp_path)]
    if prior:
        fit(tmp_path, verbose=0, **prior)


def test_without_a_seed_that_of_the_checkpoint_is_taken(at_save, tmp_path):
    left_after(5, tmp_path, at_save, random_state=None)
    shutil.copytree(tmp_path, tmp_path / "other")
    assert_same(fit(tmp_path, random_state=None), fit(tmp_path / "other", random_state=None))


@pytest.mark.parametrize("damage", [lambda b: b"", lambda b: b[:-3], lambda b: b[:-3] + b"xyz", lambda b: bytes(len(b))])
def test_of_a_damaged_checkpoint_the_one_before_is_taken(damage, at_save, tmp_path, alone):
    left_after(6, tmp_path, at_save)
    newest = saved_states(tmp_path)[-1]
    newest.write_bytes(damage(newest.read_bytes()))
    with pytest.warns(RuntimeWarning, match="damaged.*; the fit goes on from the checkpoint before"):
        model = fit(tmp_path, 1e9)
    assert_same(model, alone)


def test_if_all_are_damaged_nothing_is_overwritten(at_save, tmp_path):
    left_after(6, tmp_path, at_save)
    for path in saved_states(tmp_path):
        path.write_bytes(b"")
    with pytest.raises(CheckpointError, match="damaged.*; remove the folder to start anew"):
        fit(tmp_path)


def _last(state):
    return state["members"][-1]


TAMPERED = {
    "no member that is one": lambda s: s.update(members=["x"]),
    "no seed": lambda s: s.pop("seed"),
    "a negative seed": lambda s: s.update(seed=-1),
    "a phase that is not there": lambda s: _last(s).update(phase=10**6),
    "more steps than there are": lambda s: _last(s)["start"].update(done=-1),
    "a step before the first": lambda s: _last(s)["loop"]["training"].update(step=-10**9),
    "a parameter of another shape": lambda s: _last(s)["loop"]["training"]["module"].update({"density.means": torch.zeros(1)}),
    "moments of another shape": lambda s: _last(s)["loop"]["training"]["optimiser"]["0"].update(exp_avg=torch.zeros(1)),
    "a best state of another model": lambda s: _last(s)["loop"]["training"].update(best_state={}),
    "no state of a generator": lambda s: _last(s)["loop"].update(generator=torch.zeros(3)),
    "a density of another dimension": lambda s: _last(s)["start"]["model"].update(
        {"density.means": torch.zeros_like(_last(s)["start"]["model"]["density.means"])[..., :1]}),
    "a start at which nothing learns": lambda s: _last(s).update(loop=None) or _last(s)["start"].update(learning=[]),
    "a summary of words": lambda s: _last(s)["start"].update(summary={"skipped_steps": "many"}),
}


@pytest.mark.parametrize("tamper", TAMPERED.values(), ids=TAMPERED)
def test_a_state_that_was_tampered_with_is_refused_in_one_sentence(tamper, at_save, tmp_path):
    """Though its digest is right."""
    left_after(6, tmp_path, at_save)
    for path in saved_states(tmp_path):
        state = read_state(path)
        tamper(state)
        write_state(path, state)
    with pytest.raises(StateError, match=r"^the checkpoint does not fit this fit \(\w+: [^\n]*\); remove its folder to start anew$"):
        fit(tmp_path)


def test_a_state_of_brackets_without_end_is_damaged(tmp_path):
    path = tmp_path / "state-000001.safetensors"
    tree = "[" * 100_000
    path.write_bytes(save({}, {"format": "fpsde-state", "version": "2", "tree": tree, "digest": digest(tree, {})}))
    with pytest.raises(StateFileError, match="state-000001.safetensors: damaged"):
        read_state(path)


def test_a_full_disk_is_warned_of_once_and_the_last_good_file_stays(at_save, tmp_path, alone):
    left_after(6, tmp_path, at_save)
    before = {path: path.read_bytes() for path in saved_states(tmp_path)}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
        with pytest.warns(RuntimeWarning, match=r"cannot be written \(File too large\); the fit goes on") as caught:
            model = fit(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert len(caught) == 1
    assert before == {path: path.read_bytes() for path in saved_states(tmp_path)}
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in before} | {"lock"}
    assert_same(model, alone)
    assert_same(fit(tmp_path), model)


def test_a_folder_that_cannot_be_written_to_is_found_before_training(tmp_path, monkeypatch):
    monkeypatch.setattr("fpsde.estimator.identify", kill)
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "folder"):
        with pytest.raises(CheckpointError, match="no checkpoint can be written"):
            fit(folder)
    locked = tmp_path / "locked"
    locked.mkdir()
    locked.chmod(0o555)
    user = os.geteuid()
    if not user:
        os.seteuid(65534)  # root may write anywhere
    try:
        with pytest.raises(CheckpointError, match="no checkpoint can be written.*(no permission|Permission denied)"):
            fit(locked)
    finally:
        os.seteuid(user)
    with pytest.raises(CheckpointError, match="must be 0 or more, got -1"):
        fit(tmp_path, -1)


def test_two_fits_at_once_in_one_folder(tmp_path):
    with Checkpoints(tmp_path, {}, 0, 0.0), pytest.raises(CheckpointError, match="another fit that runs"):
        fit(tmp_path)


def test_what_a_killed_save_has_left_is_removed(at_save, tmp_path):
    left_after(3, tmp_path, at_save)
    (tmp_path / ".state-000004.safetensors.abc").write_bytes(b"half")
    (tmp_path / "mine").touch()
    fit(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir() if path not in saved_states(tmp_path)) == ["lock", "mine"]


def test_only_as_often_as_asked(tmp_path, monkeypatch):
    numbers = []
    monkeypatch.setattr("fpsde.checkpoints.write_state", lambda path, state: numbers.append(path.name))
    fit(tmp_path, 1e9)
    assert numbers == ["state-000001.safetensors", "state-000002.safetensors"]


@pytest.fixture(autouse=True)
def heard():
    """A suite in the background may have been started with Ctrl-C ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_saves_where_the_fit_is_and_is_raised(at_save, tmp_path, alone):
    usual = signal.getsignal(signal.SIGINT)
    at_save(5, lambda: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path)
    assert signal.getsignal(signal.SIGINT) is usual
    # It came in the middle of a save, which was finished, and so was the removal of the third.
    assert [path.name for path in saved_states(tmp_path)] == ["state-000004.safetensors", "state-000005.safetensors"]
    at_save(10**9, kill)
    assert_same(fit(tmp_path), alone)


def test_a_second_ctrl_c_does_not_wait(tmp_path, monkeypatch):
    def twice(path, state):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        raise AssertionError

    monkeypatch.setattr("fpsde.checkpoints.write_state", twice)
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path)


def test_outside_the_main_thread_signals_are_left_alone(tmp_path, alone):
    models = []
    thread = threading.Thread(target=lambda: models.append(fit(tmp_path)))
    thread.start()
    thread.join()
    assert_same(models[0], alone)


@pytest.mark.parametrize(("number", "name", "code"), [(signal.SIGINT, "Ctrl-C", 130), (signal.SIGTERM, "SIGTERM", 143)])
def test_the_command_line_says_how_to_go_on(number, name, code, at_save, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.savez("my data.npz", X=X, t=T)
    command = ["fit", "my data.npz", "--steps", "10", "--components", "2", "--diffusion", "constant", "--device", "cpu", "--quiet",
               "--checkpoint", "states", "--checkpoint-every", "0"]
    monkeypatch.setattr("sys.argv", ["fpsde", *command])
    at_save(5, lambda: signal.raise_signal(number))
    result = CliRunner().invoke(main, command, prog_name="fpsde")
    assert result.exit_code == code
    assert result.output == (f"Stopped by {name}. The fit is saved in states; this goes on with it: fpsde fit 'my data.npz' "
                             + " ".join(command[2:]) + "\n")
    at_save(10**9, kill)
    assert CliRunner().invoke(main, command).exit_code == 0
    stopped = FokkerPlanckSDE.load("model.fpsde")
    shutil.rmtree("states")
    assert CliRunner().invoke(main, command).exit_code == 0
    assert_same(FokkerPlanckSDE.load("model.fpsde"), stopped)
    refused = CliRunner().invoke(main, [*command, "--drift", "gradient"])
    assert refused.exit_code == 2
    assert "another fit, with drift='time', not 'gradient'" in refused.output


@pytest.mark.parametrize(("number", "name", "code"), [(signal.SIGINT, "Ctrl-C", 130), (signal.SIGTERM, "SIGTERM", 143)])
def test_without_a_checkpoint_the_command_line_stops_with_one_sentence(number, name, code, tmp_path, monkeypatch):
    monkeypatch.setattr("fpsde.estimator.identify", lambda *_: signal.raise_signal(number))
    np.savez(tmp_path / "data.npz", X=X, t=T)
    result = CliRunner().invoke(main, ["fit", str(tmp_path / "data.npz"), "--quiet", "-o", str(tmp_path / "m")])
    assert result.exit_code == code
    assert result.output == f"Stopped by {name}. Nothing of the fit is kept; with --checkpoint DIR it would be.\n"
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_killed_by_sigkill_at_random_moments():
    """A few of the kills of the benchmark, which says with its exit code whether all went well."""
    script = Path(__file__).parent.parent / "benchmarks" / "kills.py"
    result = subprocess.run([sys.executable, str(script), "--kills", "4", "--only", "time", "--quick"],
                            capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    row = next(line for line in result.stdout.splitlines() if line.startswith("| time"))
    assert int(row.split("|")[3]) >= 4


def test_a_state_is_read_as_it_was_written(tmp_path):
    state = {"rng": np.random.default_rng(0).bit_generator.state, "best": float("inf"), "third": 1 / 3, "none": None,
             "parts": [{"w": torch.randn(3, 2).T, "count": torch.tensor(3)}, {}], "bytes": torch.arange(5, dtype=torch.uint8),
             "nothing": torch.zeros(2, 0), "none at all": torch.as_tensor(np.zeros(0, "f4")), "yes": torch.tensor([True])}
    write_state(tmp_path / "s", state)
    read = read_state(tmp_path / "s")
    assert [*read] == [*state]
    for name in ("bytes", "nothing", "none at all", "yes"):
        assert torch.equal(read[name], state[name])
        assert read[name].dtype == state[name].dtype
    assert torch.equal(read["parts"][0]["w"], state["parts"][0]["w"])
    assert read["parts"][0]["count"].shape == ()
    assert read["parts"][1] == {}
    assert all(read[name] == state[name] for name in ("rng", "best", "third", "none"))

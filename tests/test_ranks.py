import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from problems import ROTATION, Bowl, rotating_snapshots

from fpsde import FokkerPlanckSDE, ranks
from fpsde.batches import SnapshotBatches
from fpsde.checkpoints import Course, saved_states
from fpsde.diffusion import StateDiffusion
from fpsde.fokker_planck import FokkerPlanckLoss, LossWeights
from fpsde.growth import Growth
from fpsde.hollow import HollowNet
from fpsde.mixture import initial_path
from fpsde.snapshots import Snapshots
from fpsde.state_file import read_state
from fpsde.train import TrainConfig, TrainingError, train

POSIX = multiprocessing.get_context("forkserver") if "forkserver" in multiprocessing.get_all_start_methods() else None
pytestmark = pytest.mark.skipif(POSIX is None, reason="processes are forked from one that has torch")
CPU = torch.device("cpu")
SIZES = (40, 9, 130)


def work_as(rank, count, folder, work, *arguments):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=count)
    try:
        torch.save(work(*arguments), folder / f"{rank}.pt")
    except BaseException:
        (folder / f"{rank}.txt").write_text(traceback.format_exc())
        raise
    dist.destroy_process_group()


@pytest.fixture
def processes(tmp_path):
    """Runs a function in so many processes, and returns what each returned."""
    POSIX.set_forkserver_preload(["fpsde", "sklearn.cluster", "torch._dynamo"])

    def run(count, work, *arguments, dies=False):
        folder = tmp_path / f"meeting{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        started = [POSIX.Process(target=work_as, args=(rank, count, folder, work, *arguments)) for rank in range(count)]
        for process in started:
            process.start()
        for process in started:
            process.join()
        said = "\n".join(path.read_text() for path in folder.glob("*.txt"))
        if dies:
            return said
        assert not any(process.exitcode for process in started), said
        return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(count)]
    return run


def problem():
    """A loss of many points, in float64, with all that is learned."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    path = initial_path([rng.standard_normal((40, 2)) for _ in range(4)], np.linspace(0, 1, 4), 3, rng)
    growth = Growth(2, 4)
    drift, noise = HollowNet(2, hidden=(4,), time=False), StateDiffusion(HollowNet(2, hidden=(4,), time=False), torch.ones(2))
    for readout in (growth.readout, *noise.readout_parameters()):
        readout.data.normal_(0, 0.1)
    model = FokkerPlanckLoss(path, drift, noise, True, growth).double()
    batch = (torch.linspace(0, 1, 4), torch.randn(4, 16, 2), torch.rand(8), torch.randn(8, 12, 2))
    return model, [part.double() for part in batch], LossWeights(0.3, 0.0, 0.1)


def gradients(model, batch, weights):
    forward = ranks.together(model, model.parameters())
    forward(*batch, weights).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}


def bowl(worst):
    """Trains (w - target)^2 where the targets differ, and all but the first process's steps after the third fail."""
    module, rank = Bowl(), ranks.rank()

    def draw(step):
        return (torch.full((3,), torch.inf if rank and 3 <= step < 3 + worst else float(rank)),)

    result = train(module, [{"params": [module.w]}], draw, lambda module: float(ranks.rank()), TrainConfig(
        steps=100, learning_rate=0.3, patience=10))
    return result, module.w.detach()


def numbered():
    """Snapshots whose points are numbered from 1000 j on, and their weights."""
    x = np.concatenate([1000.0 * j + np.arange(n) for j, n in enumerate(SIZES)])
    return Snapshots.of(x[:, None], np.repeat(np.arange(3.0), SIZES), weights=1 + x % 7)


def work():
    """What the processes share out and what they agree on."""
    model, batch, weights = problem()
    rank, count, data = ranks.rank(), ranks.count(), numbered()
    parts = [part.chunk(count, axis)[rank] for part, axis in zip(batch[1:], (1, 0, 0), strict=True)]
    own = data.share(rank, count)
    drawn = SnapshotBatches(own.groups(), torch.Generator().manual_seed(rank), CPU, own.group_weights(), data.counts.tolist())
    found = {"gradients": gradients(model, [batch[0], *parts], weights), "bowl": bowl(5), "own": own.x[:, 0],
             "some": drawn.some(), "few": drawn.some(20)[0]}

    def fail():
        raise KeyError("mine")

    for name, wrong, kind in (("told", lambda: ranks.told_by_first(fail), KeyError),
                              ("patience", lambda: bowl(12), TrainingError)):
        with pytest.raises(kind) as caught:
            wrong()
        found[name] = str(caught.value)
    found["mean"] = ranks.mean_value(float(rank))
    return found


@pytest.mark.parametrize("count", [2, 4])
def test_what_is_shared_out_and_what_is_agreed_on(count, processes):
    found = processes(count, work)
    model, batch, weights = problem()
    expected = gradients(model, batch, weights)
    assert all(float(g.abs().max()) > 0 for g in expected.values())
    data = numbered()
    for part in found:
        for name, gradient in expected.items():
            torch.testing.assert_close(part["gradients"][name], gradient, rtol=1e-10, atol=1e-13)
        result, w = part["bowl"]
        assert (result.skipped, result.best_score) == (5, (count - 1) / 2)
        torch.testing.assert_close(w, torch.full((3,), (count - 1) / 2), atol=0.05, rtol=0)
        assert torch.equal(w, found[0]["bowl"][1])
        assert part["told"] == "'mine'"
        assert "not finite in 10 steps in a row" in part["patience"]
        assert part["mean"] == (count - 1) / 2
        # Few points are kept by all; of many, each process has its own, and together they have them once.
        points, given = part["some"]
        for x, w, all_x, all_w in zip(points, given, data.groups(), data.group_weights(), strict=True):
            order = x[:, 0].argsort()
            np.testing.assert_array_equal(x[order], all_x)
            np.testing.assert_allclose(w[order], all_w)
        assert [len(x) for x in part["few"]][:2] == [20, 9]
        assert 16 <= len(part["few"][2]) <= 20
    sizes = [[int((part["own"] // 1000 == j).sum()) for part in found] for j in range(3)]
    assert sizes == {2: [[20, 20], [9, 9], [65, 65]], 4: [[40] * 4, [9] * 4, [33, 33, 32, 32]]}[count]


X, T = rotating_snapshots(64, np.array([0.0, 0.5, 1.0]))


def fit(data, folder=None, after=None, seconds=0.0, **settings):
    """Fits, and returns what tells it from other fits; after so many checkpoints the first process breaks off."""
    if after is not None and ranks.first():
        from fpsde import checkpoints

        left, write = [after], checkpoints.write_state

        def break_off(path, state):
            write(path, state)
            left[0] -= 1
            if not left[0]:
                os._exit(1)

        checkpoints.write_state = break_off
    chosen = {"n_components": 2, "max_steps": 10, "hidden": (4,), "random_state": None, "device": "cpu", **settings}
    model = FokkerPlanckSDE(**chosen).fit(*data, checkpoint=folder, checkpoint_seconds=seconds)
    states = [part.state_dict() for part in (model.sde_, model.density_)]
    return states, model.history_, model.summary_, model.drift(X, 0.0), model.diffusion(X, 0.0)


def assert_alike(fits):
    first, *others = fits
    for other in others:
        for state, same in zip(first[0], other[0], strict=True):
            assert state.keys() == same.keys()
            assert all(torch.equal(state[name], same[name]) for name in state)
        assert other[1:3] == first[1:3]


SETTINGS = [{"drift": "time"}, {"drift": "autonomous", "growth": "counts", "diffusion": "constant"}]


@pytest.mark.parametrize("settings", [SETTINGS[0], pytest.param(SETTINGS[1], marks=pytest.mark.slow)], ids=str)
def test_all_processes_return_one_fit_and_one_that_was_broken_off_goes_on_in_fewer(settings, processes, tmp_path):
    """Without a seed, too; and in one process or in three."""
    folder = tmp_path / "state"
    processes(2, fit, (X, T), folder, 9, dies=True)
    assert int(saved_states(folder)[-1].stem[-6:]) == 9
    shutil.copytree(folder, tmp_path / "other")
    alone = fit((X, T), folder)
    fits = processes(3, fit, (X, T), tmp_path / "other")
    assert_alike(fits)
    assert [row["step"] for row in fits[0][1]] == [row["step"] for row in alone[1]] == [*map(float, range(1, 11))]
    assert fits[0][1][:3] == alone[1][:3]
    # What is finished is there at once.
    np.testing.assert_array_equal(fit((X, T), tmp_path / "other")[3], fits[0][3])


def stopped(data, folder, settings, sent_to, after):
    """Fits until processes are sent SIGTERM where a fit can be left; returns what ended it, and the steps it could be left at."""
    offers, offer = [], Course.offer

    def note(course, loop):
        offers.append(loop())
        if len(offers) == after and ranks.rank() in sent_to:
            os.kill(os.getpid(), signal.SIGTERM)
        offer(course, loop)

    def leave(number, frame):
        raise KeyboardInterrupt(number)

    Course.offer = note
    signal.signal(signal.SIGTERM, leave)
    try:
        fit(data, folder, seconds=1e9, **settings)
    except KeyboardInterrupt as error:
        return error.args, [state["training"]["step"] if "training" in state else -state["rounds"] for state in offers]


# To one process alone, in a step that all take; and to both, while the first solves and the other waits for it.
@pytest.mark.slow
@pytest.mark.parametrize(("settings", "sent_to", "after", "steps"), [
    ({"drift": "time"}, (1,), 3, [3, 3]), ({"drift": "autonomous", "diffusion": "constant"}, (0,), 6, [-6, 4])],
    ids=["a step", "a solution"])
def test_all_processes_stop_together_and_the_first_saves_before(settings, sent_to, after, steps, processes, tmp_path):
    folder = tmp_path / "state"
    found = processes(2, stopped, (X, T), folder, settings, sent_to, after)
    assert [reason for reason, _ in found] == [(signal.SIGTERM,)] * 2
    assert [passed[-1] for _, passed in found] == steps
    loop = read_state(saved_states(folder)[-1])["members"][0]["loop"]
    assert (loop["training"]["step"] if "training" in loop else -loop["rounds"]) == steps[0]
    fits = processes(2, lambda_fit, (X, T), {**settings, "folder": folder})
    assert_alike(fits)
    assert [row["step"] for row in fits[0][1]] == [*map(float, range(1, 11))]


@pytest.mark.slow
@pytest.mark.parametrize("drift", ["autonomous", "time"])
def test_the_result_does_not_depend_on_the_number_of_processes(drift, processes):
    """Beyond what another seed changes, against the truth where it can be known."""
    data = rotating_snapshots(500, np.linspace(0, 2, 6))
    settings = {"drift": drift, "n_components": 4, "max_steps": 400, "diffusion": "constant"}
    fits = {count: processes(count, lambda_fit, data, {**settings, "random_state": 0}) for count in (1, 2, 4)}
    for many in fits.values():
        assert_alike(many)
    drifts = [many[0][3] for many in fits.values()]
    others = [processes(1, lambda_fit, data, {**settings, "random_state": seed})[0][3] for seed in (1, 2)]
    size = np.sqrt(np.mean(drifts[0] ** 2))
    by_seed = max(np.sqrt(np.mean((other - drifts[0]) ** 2)) for other in others) / size
    by_count = max(np.sqrt(np.mean((other - drifts[0]) ** 2)) for other in drifts[1:]) / size
    assert by_count < 2 * by_seed + 0.02
    if drift == "autonomous":
        for found in drifts:
            assert np.sqrt(np.mean((found - X @ ROTATION.T) ** 2)) < 0.1 * size


def lambda_fit(data, settings):
    return fit(data, **settings)


@pytest.mark.slow
def test_torchrun(tmp_path):
    np.savez(tmp_path / "data.npz", X=X, t=T)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "fpsde", "fit"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}

    def run(data):
        return subprocess.run([*command, data, "--steps", "20", "--components", "2", "--device", "cpu"], cwd=tmp_path,
                              capture_output=True, text=True, env=environment, check=False)

    result = run("data.npz")
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("Wrote model.fpsde") == 1
    assert FokkerPlanckSDE.load(tmp_path / "model.fpsde").n_iter_ == 20
    result = run("none.npz")
    assert result.returncode
    assert re.search("^Error(, process 1)?: none.npz: no such file$", result.stderr, re.M)


@pytest.mark.slow
def test_torchrun_that_is_stopped_says_once_how_to_go_on(tmp_path):
    np.savez(tmp_path / "data.npz", X=X, t=T)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "fpsde", "fit",
               "data.npz", "--components", "2", "--device", "cpu", "--checkpoint", "states", "--steps", "100000"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True) as running:
        while running.poll() is None and not saved_states(tmp_path / "states"):
            time.sleep(0.1)
        time.sleep(1)
        running.send_signal(signal.SIGTERM)
        said = running.communicate(timeout=60)[1]
    expected = "Stopped by SIGTERM. The fit is saved in states; this goes on with it: torchrun [OPTIONS] -m fpsde fit data.npz"
    assert said.count("Stopped by") == said.count(expected) == 1, said
    assert "Error" not in said
    state = read_state(saved_states(tmp_path / "states")[-1])["members"][0]
    assert state["loop"]["training"]["step"] > 0

import numpy as np
import pytest
import torch

from fpsde.checkpoints import Course
from fpsde.config import IdentificationConfig
from fpsde.identification import _Fit as Fit
from fpsde.identification import identify
from fpsde.snapshots import Snapshots

CPU = torch.device("cpu")


@pytest.fixture
def data(rng):
    t = np.repeat([0.0, 1.0, 2.0], 40)
    return Snapshots.of(rng.normal(size=(120, 1)) + t[:, None], t)


def config(drift="autonomous", **options):
    return IdentificationConfig(**{"n_components": 2, "drift": drift, "diffusion": "constant", "hidden": (4,), "steps": 10,
                                   "collocation": (8, 16), **options})


def test_one_collocation_time_in_each_stratum(data):
    fit = Fit(data, config(), 0, CPU, None, None, Course())
    draws = [fit._collocation(16, 5) for _ in range(20)]
    for t, x in draws:
        assert (16 * t).long().tolist() == list(range(16))
        assert x.shape == (16, 5, 1)
    within = torch.stack([16 * t - torch.arange(16) for t, _ in draws])
    # Anywhere in its stratum, and independently of the others.
    assert within.min() < 0.05 < 0.95 < within.max()
    assert within.std(1).min() > 0.1


def test_points_held_out_are_not_trained_on(data):
    fit = Fit(data, config(held_out=0.2), 0, CPU, None, None, Course())
    for j, x in enumerate(data.groups()):
        kept, held = (batches.group(j)[:, 0].tolist() for batches in (fit.kept, fit.held))
        assert (len(kept), len(held)) == (32, 8)
        inside = fit.coordinates.inside(torch.as_tensor(x)).float()[:, 0]
        assert sorted(kept + held) == inside.sort().values.tolist()


@pytest.mark.parametrize(("drift", "phases"), [
    ("autonomous", [{"likelihood"}, {"likelihood", "residual", "noise"}]),
    ("time", [{"likelihood"}, {"residual", "noise"}])])
def test_curves_are_those_that_a_phase_changes(drift, phases, data):
    history = identify(data, config(drift), 0, CPU).history
    assert [row["step"] for row in history] == list(range(1, 11))
    entered = 4 if drift == "autonomous" else 8
    for row in history:
        assert set(row) - {"step"} == phases[row["step"] > entered]
        assert all(np.isfinite(value) for value in row.values())


def test_weight_of_the_residual_grows_until_half_way(data, monkeypatch):
    """Over the steps that follow those of the path alone: by equal factors, then it stays; of few points it is less."""
    fit, calls = Fit(data, config(steps=100, residual_weights=(0.001, 0.1)), 0, CPU, None, None, Course()), []
    monkeypatch.setattr(fit, "_train", lambda module, steps, groups, draw, score: calls.append((steps, draw)))
    assert fit.trust == data.counts.mean() / 2000 < 1
    assert fit.model.most_nats == pytest.approx(0.3 / fit.trust)
    fit.trust, fit.done = 0.5, 40
    fit.refine_path(0.5)
    fit.done = 70
    fit.train_jointly()
    (first, early), (second, late) = calls
    assert (first, second) == (30, 30)
    weights = [early(step)[-1].residual for step in range(30)] + [late(step)[-1].residual for step in range(30)]
    assert weights[0] == pytest.approx(0.0005)
    assert weights[15] == pytest.approx(0.005)
    assert np.allclose(np.diff(np.log(weights[:31])), np.log(100) / 30)
    assert weights[30:] == pytest.approx([0.05] * 30)


@pytest.mark.parametrize(("times", "points", "solves"), [(3, 40, 2), (7, 1000, 3), (7, 2000, 5), (8, 2000, 2)])
def test_path_and_nets_take_turns_where_snapshots_are_few_and_points_many(times, points, solves, rng):
    t = np.repeat(np.arange(float(times)), points)
    told = []
    identify(Snapshots.of(rng.normal(size=(len(t), 1)) + t[:, None], t), config(), 0, CPU, told.append)
    stages = [report.stage for report in told]
    assert stages.count("solving for drift and noise") == solves
    # The steps that the path has left are shared evenly, the last going to what it is under the last nets.
    assert told[-1].step == 10
    between = [told[j - 1].step for j, stage in enumerate(stages) if stage == "solving for drift and noise"]
    assert between[0] == 4
    assert np.ptp(np.diff([*between, 10])) <= 1

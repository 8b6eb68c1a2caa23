"""On a device that is not the CPU: nothing is mixed up, nothing is waited for within a step, and the result is the CPU's.

There is no GPU in most places where the tests run, so the device is a simulated one (:mod:`simulated`).
"""

from collections import Counter

import numpy as np
import pytest
import torch
from problems import rotating_snapshots
from simulated import DEVICE, simulation

from fpsde.batches import SnapshotBatches
from fpsde.config import IdentificationConfig
from fpsde.coordinates import Coordinates
from fpsde.diffusion import ConstantDiffusion, StateDiffusion
from fpsde.fokker_planck import FokkerPlanckLoss, LossWeights
from fpsde.hollow import HollowNet
from fpsde.identifiability import _Scaled, identifiability
from fpsde.identification import identify
from fpsde.mixture import initial_path
from fpsde.path import PathLoss
from fpsde.potential import GradientDrift
from fpsde.projection import ReadoutSolver, Ridge
from fpsde.sde import FittedSDE
from fpsde.simulation import simulate
from fpsde.snapshots import Snapshots
from fpsde.train import STEPS_BETWEEN_READS, TrainConfig, train

CPU = torch.device("cpu")
WEIGHTS = LossWeights(1.0, 0.5, 0.1)


@pytest.fixture
def waits(monkeypatch):
    with simulation(monkeypatch) as counted:
        yield counted


def test_the_simulated_device_refuses_and_counts(waits):
    here, there = torch.zeros(3, device=DEVICE), torch.arange(3.0)
    with pytest.raises(RuntimeError, match="tensors of the device and of the CPU"):
        here + there
    with pytest.raises(RuntimeError, match="a generator of cpu for a tensor of meta"):
        torch.rand(3, device=DEVICE, generator=torch.Generator())
    with pytest.raises(RuntimeError, match="a generator of meta for a tensor of cpu"):
        torch.rand(3, generator=torch.Generator(device=DEVICE))
    assert not waits
    here = 2 * there.to(DEVICE) + there[2]
    assert here.tolist() == [2, 4, 6]
    assert float(here[[0, 2]].sum()) == 8
    assert here[here > 3].cpu().shape == (2,)
    assert waits == {"sent elsewhere": 2, "read elsewhere": 4}


def parts(dim, conditioner, constant=True):
    """A path and nets, and the points of a step."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    path = initial_path([rng.standard_normal((60, dim)) for _ in range(5)], np.linspace(0, 1, 5), 3, rng, constant).float()
    noise = HollowNet(dim, conditioner, hidden=(4,))
    model = FokkerPlanckLoss(path, HollowNet(dim, conditioner, hidden=(4,)), StateDiffusion(noise, torch.ones(dim)))
    noise.readout.data.normal_(0, 0.1)
    return model, PathLoss(path, torch.linspace(0, 1, 5), 0.1, 0.1), torch.rand(4), torch.randn(4, 12, dim)


def results(model, path_loss, t, x, device):
    """What a step computes, by name, with its gradients."""
    model.to(device), path_loss.to(device)
    t, x = t.to(device), x.to(device)
    generator = torch.Generator(device=device).manual_seed(0)
    noise = torch.randn(4, 2, model.density.noise_size, device=device, generator=generator)

    def differentiated(loss):
        model.zero_grad()
        loss.backward()
        return [loss, *(p.grad for p in model.parameters() if p.grad is not None)]

    return {"taylor": lambda: model.drift.derivatives(t[:, None], x, 2),
            "reverse": lambda: model.drift.derivatives(t[:, None], x, 2, "reverse"),
            "residual": lambda: differentiated(model(t, x, t, x, WEIGHTS).loss),
            "path": lambda: differentiated(path_loss(t, x, t, noise).loss),
            "sample": lambda: [model.density.sample(t, 6, generator)],
            "solver": lambda: [ReadoutSolver(model, Ridge()).step(t, x, WEIGHTS), model.drift.get_readout()][1:]}


@pytest.mark.parametrize(("dim", "conditioner"), [(3, "masked"), (3, "leave-one-out"), (30, "leave-one-out")])
def test_a_step_stays_on_the_device(dim, conditioner, monkeypatch):
    expected = {name: [v.detach() for v in work()] for name, work in results(*parts(dim, conditioner), CPU).items()}
    model = parts(dim, conditioner)
    with simulation(monkeypatch) as waits:
        for name, work in results(*model, DEVICE).items():
            waits.clear()
            found = work()
            assert not waits, name
            assert all(v.device == DEVICE for v in found), name
            for value, same in zip(found, expected[name], strict=True):
                assert torch.equal(value.detach().cpu(), same), name


def test_a_gradient_drift_and_constant_noise_stay_on_the_device(waits):
    drift, noise = GradientDrift(3, 8).to(DEVICE), ConstantDiffusion(torch.ones(3)).to(DEVICE)
    t, x = torch.rand(4, 1, device=DEVICE), torch.randn(4, 5, 3, device=DEVICE)
    waits.clear()
    assert all(v.device == DEVICE for v in (*drift.derivatives(t, x, 2), *noise.variance(t, x), drift.potential(x)))
    assert not waits


def test_the_loop_waits_only_where_it_reads_and_checks(waits):
    """What is read of a GPU is how many steps failed, and not at every step; the score is the caller's."""
    _, loss, t, _ = parts(2, "leave-one-out")
    loss.to(DEVICE)
    x = SnapshotBatches([np.random.default_rng(0).normal(size=(20, 2)) for _ in range(4)],
                        torch.Generator(device=DEVICE), DEVICE)
    t = t.sort().values.to(DEVICE)
    noise = torch.randn(4, 2, loss.density.noise_size, device=DEVICE)
    waits.clear()
    train(loss, [{"params": list(loss.parameters())}], lambda step: (*x.draw(t, 16), t, noise), lambda loss: 0.0,
          TrainConfig(steps=STEPS_BETWEEN_READS + 3))
    assert waits == {"read train.py:read": 2}


def test_paths_wait_at_their_times_only(waits):
    sde = FittedSDE(HollowNet(2, hidden=(4,)), ConstantDiffusion(torch.ones(2)),
                    Coordinates(torch.zeros(2), torch.ones(2), torch.tensor([0.0, 1.0]))).to(DEVICE)
    y0 = torch.randn(5, 2, device=DEVICE)
    found = []
    for step in (0.5, 0.05):
        waits.clear()
        simulate(sde, y0, torch.tensor([0.0, 0.5, 1.0]), step, 0)
        found.append(Counter(waits))
    assert found[0] == found[1]
    assert all(name.startswith("read") for name in found[0])


SETTINGS = {"time": {"n_components": 32}, "autonomous": {"growth": "counts"}, "gradient": {"diffusion": "constant"}}


@pytest.mark.parametrize(("drift", "asked"), [("time", False), *(
    pytest.param(drift, True, marks=pytest.mark.slow) for drift in SETTINGS)])
def test_a_fit_is_that_of_the_cpu(drift, asked, monkeypatch):
    """And what it says of itself, where that is asked."""
    x, t = rotating_snapshots(40, np.array([0.0, 0.5, 1.0]))
    config = IdentificationConfig(**{"n_components": 2, **SETTINGS[drift]}, drift=drift, steps=10 if asked else 6, hidden=(4,))

    def fit(device):
        found = identify(Snapshots.of(x, t), config, 0, device)
        points = [torch.tensor(x[t == time], dtype=torch.float32, device=device) for time in np.unique(t)]
        sizes = torch.full((3,), 40.0, dtype=torch.float64, device=device) if config.growth else None
        times = torch.tensor([0.0, 0.5, 1.0], device=device)
        return found, identifiability(found.model, times, points, 1.0, sizes=sizes).worse if asked else 0.0

    expected, known = fit(CPU)
    with simulation(monkeypatch):
        found, same = fit(DEVICE)
        assert found.summary == expected.summary
        assert np.array_equal(same, known)
        for name, value in found.model.state_dict().items():
            assert value.device == DEVICE
            assert torch.equal(value.cpu(), expected.model.state_dict()[name])


def test_a_diffusion_at_another_level_lies_where_it_was(waits):
    noise = StateDiffusion(HollowNet(2, hidden=(4,)), torch.ones(2)).to(DEVICE)
    t, x = torch.rand(5, device=DEVICE), torch.randn(5, 2, device=DEVICE)
    scaled = _Scaled(noise, 2, 2.0)
    assert scaled.get_readout().device == DEVICE
    assert torch.equal(scaled(t, x), 2 * noise(t, x))

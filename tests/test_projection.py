import numpy as np
import pytest
import torch
from problems import ROTATION, ROTATION_NOISE, rotating_snapshots
from test_density import build as build_path
from test_fokker_planck import nets

from fpsde.config import IdentificationConfig
from fpsde.diffusion import ConstantDiffusion
from fpsde.fokker_planck import FokkerPlanckLoss, LossWeights, influence, residual
from fpsde.hollow import HollowNet
from fpsde.identification import identify
from fpsde.projection import ReadoutSolver, Ridge, Seen, strong_rows
from fpsde.snapshots import Snapshots


def exact_gaussian_path():
    """A wide 2-D Gaussian that moves at constant velocity (1, -2) and does not change shape."""
    path = build_path(2, components=1)
    with torch.no_grad():
        path.covariance.factors.zero_()
        path.covariance.floor.copy_(torch.eye(2, dtype=torch.float64).expand_as(path.covariance.floor))
        moved = torch.as_tensor(path.basis.nodes)[:, None] * torch.tensor([1.0, -2.0])
        path.means.copy_((moved / path.covariance.units)[:, None])
    return path


def test_rows_are_the_derivative_of_the_residual(close):
    path, (drift, diffusion) = build_path(2), nets(2, "constant")
    model = FokkerPlanckLoss(path, drift, diffusion)
    t, x = torch.rand(3, dtype=torch.float64), torch.randn(3, 10, 2, dtype=torch.float64)
    rows, = strong_rows(model, Seen.at(model, t, x), LossWeights(), torch.arange(2))
    values = torch.cat([drift.get_readout(), diffusion.get_readout()], 1)

    def r():
        f = drift.derivatives(t[:, None], x, 1)
        return residual(path.terms(t, x), (f[0], f[1]), diffusion.variance(t[:, None], x)).detach()

    root = influence(path.log_prob(t, x), r()).sqrt().flatten()
    close(rows.misfit, r().flatten() * root, 1e-12)
    step = 1e-6 * torch.randn_like(values)
    before = r()
    drift.set_readout(values[:, :-1] + step[:, :-1])
    diffusion.set_readout(values[:, -1:] + step[:, -1:])
    close(rows.matrix @ step.flatten(), ((r() - before).flatten() * root), 1e-5)


def test_normal_equations_are_those_of_all_rows(monkeypatch, close):
    """Rows of a coordinate alone, and those that know of its drift only, are as rows with zeros."""
    monkeypatch.setattr("fpsde.projection.BLOCK", 5)
    path, (drift, diffusion) = build_path(2), nets(2, "state")
    model = FokkerPlanckLoss(path, drift, diffusion)
    t, x = torch.rand(3, dtype=torch.float64), torch.randn(3, 10, 2, dtype=torch.float64)
    weights = LossWeights(0.5, 2.0, 3.0)
    rows = strong_rows(model, Seen.at(model, t, x), weights, torch.arange(2))
    seen = Seen.at(model, t, x, path.terms(t, x))
    for known, row in zip(strong_rows(model, seen, weights, torch.arange(2)), rows, strict=True):
        assert torch.equal(known.matrix, row.matrix)
    solver = ReadoutSolver(model, Ridge(), memory=0.0)
    system, values = solver.systems[0], torch.cat([drift.get_readout(), diffusion.get_readout()], 1)
    system.add(rows, values, 0.0)
    full, right = torch.zeros_like(system.normal), torch.zeros_like(system.right)
    for row in rows:
        matrix, misfit = row.matrix, row.misfit.flatten()
        if matrix.dim() == 3:
            matrix = torch.block_diag(*torch.nn.functional.pad(matrix, (0, values.shape[1] - matrix.shape[2])))
        share = row.weight / (len(misfit) if row.matrix.dim() == 2 else len(misfit) / 2)
        full += share * matrix.T @ matrix
        right += share * matrix.T @ (misfit - matrix @ values.flatten())
    close(system.normal.tril(), full.tril(), 1e-12)
    close(system.right, right, 1e-12)


def test_solve_finds_a_moving_gaussian_with_known_noise():
    """With noise g and a Gaussian of unit covariance, f = c - g^2 x / 2 + ... up to rotations that leave p as it is."""
    path = exact_gaussian_path()
    drift = HollowNet(2, hidden=(16,), random_readout=False).double()
    diffusion = ConstantDiffusion(torch.ones(2, dtype=torch.float64))
    model = FokkerPlanckLoss(path, drift, diffusion)
    solver = ReadoutSolver(model, Ridge(1e-9, 1e-9, 1e-9), memory=0.5)
    generator = torch.Generator().manual_seed(0)
    for _ in range(30):
        t = torch.rand(16, generator=generator, dtype=torch.float64)
        solver.step(t, path.sample(t, 64, generator), LossWeights())
    t = torch.linspace(0.1, 0.9, 8, dtype=torch.float64)
    x = path.sample(t, 64, generator)
    f = drift.derivatives(t[:, None], x, 1)
    r = residual(path.terms(t, x), (f[0], f[1]), diffusion.variance(t[:, None], x))
    assert r.square().mean() < 1e-4


def test_unknowns_too_many_for_one_system_are_solved_in_parts(monkeypatch, close):
    monkeypatch.setattr("fpsde.projection.MAX_UNKNOWNS", 20)
    monkeypatch.setattr("fpsde.projection.influence", lambda log_prob, r: torch.ones_like(r))
    path, (drift, diffusion) = build_path(3), nets(3, "known")
    t = torch.linspace(0.05, 0.95, 12, dtype=torch.float64)
    x = path.sample(t, 64, torch.Generator().manual_seed(0))
    ridge = Ridge(0.1, 0.1, 0.1)
    model = FokkerPlanckLoss(path, drift, diffusion)
    solver = ReadoutSolver(model, ridge, memory=0.0)
    assert len(solver.systems) == 3
    for _ in range(900):
        solver.step(t, x, LossWeights())
    in_parts = drift.get_readout()
    monkeypatch.setattr("fpsde.projection.MAX_UNKNOWNS", 2000)
    solver = ReadoutSolver(model, ridge, memory=0.0)
    assert len(solver.systems) == 1
    for _ in range(3):
        solver.step(t, x, LossWeights())
    close(in_parts, drift.get_readout(), 1e-3)


@pytest.mark.parametrize("kind", ["state", "constant", "known"])
def test_a_sweep_is_a_solve_of_each_group_on_the_same_points(kind, monkeypatch, close):
    monkeypatch.setattr("fpsde.projection.MAX_UNKNOWNS", 20)
    weights, found = LossWeights(0.5, 1.0, 0.1), []
    for sweeps in (True, False):
        torch.manual_seed(0)
        path, (drift, diffusion) = build_path(3), nets(3, kind)
        t, x = torch.linspace(0.05, 0.95, 6, dtype=torch.float64), torch.randn(6, 20, 3, dtype=torch.float64)
        solver = ReadoutSolver(FokkerPlanckLoss(path, drift, diffusion), Ridge(0.1, 0.1, 0.1), memory=0.5)
        assert len(solver.systems) == 3
        for _ in range(2):
            if sweeps:
                solver.sweep(t, x, weights)
            else:
                for _ in solver.systems:
                    solver.step(t, x, weights)
        found.append(torch.cat([drift.get_readout(), diffusion.get_readout()], 1))
    close(*found, 1e-9)


def test_solution_that_is_not_finite_is_dropped():
    path, (drift, diffusion) = build_path(2), nets(2, "state")
    solver = ReadoutSolver(FokkerPlanckLoss(path, drift, diffusion), Ridge())
    before = drift.get_readout()
    solver.step(torch.tensor([0.5], dtype=torch.float64), torch.full((1, 4, 2), float("nan"), dtype=torch.float64),
                LossWeights())
    assert torch.equal(drift.get_readout(), before)
    solver.step(torch.tensor([0.5], dtype=torch.float64), torch.randn(1, 50, 2, dtype=torch.float64), LossWeights())
    assert torch.isfinite(drift.get_readout()).all()
    assert not torch.equal(drift.get_readout(), before)


def test_solving_beats_descending_at_an_equal_number_of_steps():
    x, t = rotating_snapshots(500, np.linspace(0, 4, 9))
    data = Snapshots.of(x, t)
    errors = {}
    for solve in (True, False):
        config = IdentificationConfig(n_components=3, drift="autonomous", diffusion="constant", steps=500, solve=solve)
        sde = identify(data, config, seed=0, device=torch.device("cpu")).sde
        with torch.no_grad():
            f, g = sde.f_and_g(torch.tensor(0.0), torch.as_tensor(x, dtype=torch.float32))
        true = x @ ROTATION.T
        errors[solve] = (np.sqrt(((f.numpy() - true) ** 2).sum() / (true**2).sum()),
                         np.abs(g[0].numpy() - ROTATION_NOISE).max())
    assert errors[True][0] < 0.3 * errors[False][0]
    assert errors[True][0] < 0.03
    # Maximum likelihood with the true form has a standard deviation of 0.016 in each noise level here.
    assert errors[True][1] < 3 * 0.016


def test_solving_beats_descending_for_a_drift_free_in_time_too():
    """Residual after an equal number of steps under the same path; a hundredth of it when this was written."""
    x, t = rotating_snapshots(500, np.linspace(0, 4, 9))
    residuals = [identify(Snapshots.of(x, t), IdentificationConfig(n_components=3, steps=300, solve=solve), seed=0,
                          device=torch.device("cpu")).summary["residual"] for solve in (True, False)]
    assert residuals[0] < 0.5 * residuals[1]


@pytest.mark.parametrize("kind", ["known", "constant", "state"])
def test_readouts_round_trip(kind):
    _, diffusion = nets(3, kind)
    values = diffusion.get_readout() + 0.25
    diffusion.set_readout(values)
    assert torch.equal(diffusion.get_readout(), values)
    assert diffusion.penalty(1.0, 0.1).shape == values.shape[1:]

"""Standard errors of drift and noise against the dense covariance of what is left open."""

import numpy as np
import pytest
import torch
from problems import rotating_snapshots

from fpsde.diffusion import ConstantDiffusion, StateDiffusion
from fpsde.field import FREE
from fpsde.fokker_planck import FokkerPlanckLoss
from fpsde.hollow import HollowNet
from fpsde.mixture import initial_path
from fpsde.moments import MomentEquations, columns_at, kinds
from fpsde.potential import GradientDrift
from fpsde.readouts import solve_moments
from fpsde.uncertainty import DRIFT_BENDS, NOISE_BENDS, _regression, standard_errors


def solved(drift, diffusion, points=200):
    x, t = rotating_snapshots(points, np.linspace(0, 2, 4))
    groups = [x[t == time] for time in np.unique(t)]
    path = initial_path(groups, np.unique(t) / 2, 2, np.random.default_rng(0)).requires_grad_(False)
    model = FokkerPlanckLoss(path, drift.double(), diffusion.double())
    equations = MomentEquations(model, torch.linspace(0, 1, 4, dtype=torch.float64), [torch.as_tensor(x) for x in groups],
                                torch.Generator().manual_seed(0))
    solve_moments(equations, 3)
    return equations


def net(**options):
    return HollowNet(2, hidden=(8,), time=False, random_readout=False, bend=0.5, own_share=0.5, **options)


@pytest.mark.parametrize("drift", ["hollow", "gradient"])
def test_they_are_the_root_of_the_dense_covariance(drift, close):
    torch.manual_seed(0)
    field = net() if drift == "hollow" else GradientDrift(2, 12, torch.ones(2))
    equations = solved(field, StateDiffusion(net(), torch.ones(2)))
    model, x = equations.model, torch.randn(5, 2, dtype=torch.float64)
    found = standard_errors(equations, x)
    # The same in the form of information: (V^-1 + A^T C^-1 A)^-1.
    matrix, noise, prior = _regression(equations)
    open_ = torch.linalg.inv(torch.diag(1 / prior) + matrix.T @ torch.linalg.solve(noise, matrix))
    split, zero = model.drift.get_readout().numel(), torch.zeros(1, dtype=torch.float64)
    for field, part, got, scale in ((model.drift, open_[:split, :split], found.drift, 1.0),
                                    (model.diffusion, open_[split:, split:], found.diffusion, 2 * model.diffusion(zero, x))):
        rows, width = field.get_readout().shape
        columns, dense = columns_at(field, zero, x[None])[:, 0], torch.zeros(5, 2).double()
        for i in range(2):
            own = slice(0, width) if rows == 1 else slice(i * width, (i + 1) * width)
            dense[:, i] = torch.einsum("np,pq,nq->n", columns[i], part[own, own], columns[i]).sqrt()
        close(got, dense / scale, 1e-6)
    bends = torch.cat([torch.where(kinds(f) == FREE, 0, v)
                       for f, v in ((model.drift, DRIFT_BENDS), (model.diffusion, NOISE_BENDS))])
    assert (prior >= bends).all()


def test_more_points_make_them_smaller():
    errors = []
    for points in (100, 1600):
        torch.manual_seed(0)
        equations = solved(net(), ConstantDiffusion(torch.ones(2)), points)
        errors.append(standard_errors(equations, torch.zeros(1, 2).double()))
    assert (errors[1].drift < 0.6 * errors[0].drift).all()
    assert (errors[1].diffusion < 0.6 * errors[0].diffusion).all()

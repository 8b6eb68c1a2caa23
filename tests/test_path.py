import math

import numpy as np
import pytest
import torch
from scipy import integrate

from fpsde.covariance import FullCovariance
from fpsde.density import GaussianMixturePath
from fpsde.path import OWN_SHARE, PathLoss
from fpsde.spline import CubicSplineBasis


def moving_gaussian(places, width):
    """One Gaussian in 1-D whose mean goes through places at even times."""
    basis = CubicSplineBasis(np.linspace(0, 1, len(places)))
    t = torch.linspace(0, 1, len(places), dtype=torch.float64)
    coefficients = torch.linalg.pinv(basis(t)[0]) @ torch.tensor(places, dtype=torch.float64)
    wide = torch.full((basis.size, 1, 1, 1), width**2, dtype=torch.float64)
    covariance = FullCovariance.of(wide, 1e-4 * wide[:, 0], torch.ones(basis.size, 1, dtype=torch.float64))
    return GaussianMixturePath(basis, torch.zeros(basis.size, 1, dtype=torch.float64), coefficients[:, None, None],
                               covariance, constant_weights=True), t


def test_relative_entropy_is_that_of_quadrature():
    path, times = moving_gaussian([0.0, 1.0, 0.5], 0.6)
    t = torch.tensor([0.2, 0.7], dtype=torch.float64)
    noise = torch.randn(2, 200_000, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x = torch.linspace(-8, 9, 4001, dtype=torch.float64)
    every = torch.cat([t, times])
    p = path.log_prob(every, x[None, :, None].expand(5, -1, -1)).exp().detach().numpy()
    mixed = OWN_SHARE * p[:2] + (1 - OWN_SHARE) * p[2:].mean(0)
    expected = integrate.trapezoid(p[:2] * np.log((p[:2] + 1e-300) / (mixed + 1e-300)), x.numpy())
    assert np.allclose(PathLoss(path, times).relative_entropy(t, noise).detach().numpy(), expected, atol=0.01)
    assert (expected > 0.02).all()


def test_nothing_is_paid_at_the_snapshots_and_little_far_from_all():
    path, times = moving_gaussian([0.0, 1000.0, 2000.0], 1.0)
    loss = PathLoss(path, times, pooling=1.0)
    between = loss._between(torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0], dtype=torch.float64))
    assert torch.allclose(between, torch.tensor([0.0, 1, 0, 1, 0], dtype=torch.float64), atol=1e-12)
    t, noise = torch.tensor([0.25], dtype=torch.float64), torch.randn(1, 50, 1, dtype=torch.float64)
    entropy = loss.relative_entropy(t, noise)
    assert entropy.item() == pytest.approx(-math.log(OWN_SHARE))
    assert torch.autograd.grad(entropy.sum(), path.means)[0].abs().max() < 1e-6


def test_the_pooled_law_draws_the_path_and_is_not_drawn_itself():
    """Between 0 and 1.5 the clouds of the other times lie at 0.4: the path bends there, if nothing else counts."""
    path, times = moving_gaussian([0.0, 1.5, 0.4, 0.4, 0.4], 0.5)
    loss = PathLoss(path, times)
    t, noise = torch.tensor([0.125], dtype=torch.float64), torch.randn(1, 100, 1, dtype=torch.float64)
    noise = torch.cat([noise, -noise], 1)
    gradient, = torch.autograd.grad(loss.relative_entropy(t, noise).sum(), path.means)
    mean = path.draws(t, 0 * noise)[0].mean()
    along, = torch.autograd.grad(mean, path.means)
    assert mean > 0.5
    assert (gradient * along).sum() > 0
    # All that is moved is the path at t: nothing else than what the mean at t depends on has a gradient.
    assert gradient[along == 0].abs().max() == 0

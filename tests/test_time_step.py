"""How small the steps of Euler's method have to be, against the moments of linear equations in closed form."""

import numpy as np
import pytest
import torch
from scipy.linalg import expm

from fpsde.diffusion import ConstantDiffusion
from fpsde.hollow import HollowNet
from fpsde.time_step import TOLERATED_ERROR, step_error, steps_needed

TURNING = np.array([[-0.5, 6.0], [-6.0, -0.5]])
NOISE = np.array([0.3, 0.6])
MEAN, WIDTH = np.array([3.0, 0.0]), 0.4


def moments(matrix, noise, steps):
    """Means and variances after each of so many steps of x -> matrix x, which each add a covariance."""
    mean, covariance = MEAN, WIDTH**2 * np.eye(2)
    for _ in range(steps):
        mean, covariance = matrix @ mean, matrix @ covariance @ matrix.T + noise
        yield mean, covariance.diagonal()


def error_of_euler(steps):
    """By closed forms: the largest error of means and standard deviations, in the latter."""
    h = 1 / steps
    # The covariance that exact steps add, from finer ones: expm(A s) Q expm(A s)^T, midpoint rule.
    places = (np.arange(50) + 0.5) * h / 50
    added = sum(expm(TURNING * s) @ np.diag(NOISE**2) @ expm(TURNING * s).T for s in places) * h / 50
    exact = moments(expm(TURNING * h), added, steps)
    worst = 0.0
    for (m, v), (mean, variance) in zip(moments(np.eye(2) + h * TURNING, h * np.diag(NOISE**2), steps), exact, strict=True):
        width = np.sqrt(variance)
        worst = max(worst, np.abs((m - mean) / width).max(), np.abs((v - variance) / (2 * variance)).max())
    return worst


def start(n, seed=0):
    z = torch.randn(n, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.as_tensor(MEAN) + WIDTH * z


def drift(t, z):
    return z @ torch.as_tensor(TURNING).T


def noise(t, z):
    return torch.as_tensor(NOISE).expand_as(z)


@pytest.mark.parametrize("steps", [200, 1000])
def test_error_of_a_linear_equation_is_that_of_its_moments(steps):
    expected = error_of_euler(steps)
    assert 0.005 < expected < 0.5
    assert step_error(drift, noise, start(4000), steps) == pytest.approx(expected, rel=0.15)


def test_error_of_noise_that_multiplies():
    """Geometric Brownian motion grows by (1 + a h)^n, too slowly; its standard deviation counts too."""
    a, b, steps = 1.5, 0.3, 100
    z = torch.ones(20_000, 1, dtype=torch.float64)
    mean, square = np.exp(a), np.exp(2 * a + b**2)
    h = 1 / steps
    short = (1 + a * h) ** steps - mean
    width = np.sqrt(square - mean**2)
    of_variance = (1 + 2 * a * h + (a * h) ** 2 + b**2 * h) ** steps - 2 * mean * (1 + a * h) ** steps + mean**2 - width**2
    expected = max(abs(short), abs(of_variance) / (2 * width)) / width
    assert step_error(lambda t, z: a * z, lambda t, z: b * z, z, steps) == pytest.approx(expected, rel=0.15)


def test_coarse_and_fine_steps_share_their_noise():
    """Of its own for each, 128 points would tell means apart by .12 of their standard deviation where there is no drift."""
    z = torch.ones(128, 5, dtype=torch.float64)
    assert step_error(lambda t, z: 0 * z, lambda t, z: 0.5 * z, z, 100) < TOLERATED_ERROR


def test_what_few_points_tell_by_chance_is_taken_out():
    """Of noise as large as its coordinate paths part so far that with it the error were .18."""
    z = torch.ones(128, 5, dtype=torch.float64)
    assert step_error(lambda t, z: 0 * z, lambda t, z: z, z, 20) < 0.09


def linear_net(matrix):
    net = HollowNet(2, linear=True)
    with torch.no_grad():
        net.readout.zero_()
        net.matrix.copy_(torch.as_tensor(matrix))
        net.offset.zero_()
    return net.double()


def test_coordinates_that_turn_ask_for_small_steps():
    """Their rates along each coordinate are slight: by these alone a hundred steps would do."""
    t = torch.linspace(0, 1, 5, dtype=torch.float64)
    z = torch.stack([start(128) @ torch.as_tensor(expm(TURNING * s)).T for s in t.tolist()])
    net, even = linear_net(TURNING), ConstantDiffusion(torch.as_tensor(NOISE))
    steps = steps_needed(net, even, t, z)
    assert error_of_euler(100) > 10 * TOLERATED_ERROR
    assert 0.5 * TOLERATED_ERROR < error_of_euler(round(steps)) < 1.3 * TOLERATED_ERROR


def test_slow_equations_take_the_fewest_steps():
    t = torch.linspace(0, 1, 5, dtype=torch.float64)
    assert steps_needed(linear_net(-0.5 * np.eye(2)), ConstantDiffusion(torch.as_tensor(NOISE)), t, start(128).expand(5, -1, -1)) == 100


class Explosive(torch.nn.Module):
    """Slow where it is looked at, and infinite soon after."""

    def forward(self, t, z):
        return 1e3 * z**3

    def derivatives(self, t, z, order):
        return [torch.zeros_like(z)] * (order + 1)


def test_paths_that_become_infinite_take_the_most_steps():
    t, even = torch.linspace(0, 1, 5, dtype=torch.float64), ConstantDiffusion(torch.as_tensor(NOISE))
    for steps in (100, 1000):
        assert step_error(Explosive(), even, start(16), steps) == np.inf
    assert steps_needed(Explosive(), even, t, start(16).expand(5, -1, -1)) == 5000

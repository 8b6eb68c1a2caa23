r"""How small the steps of Euler's method have to be for an equation.

Its error is in proportion to the step h: what it gets wrong with h, beside two steps of h / 2 under the same noise, is half
of it (Richardson). Rates of a drift along each coordinate do not tell it. Where coordinates turn about each other, every
step leads outwards, and clouds drift off by a fifth of their width long before anything is unstable.

References:
    Expansion of the global error for numerical schemes solving stochastic differential equations (Talay & Tubaro, 1990),
    https://doi.org/10.1080/07362999008809220
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fpsde.drift import AbstractDrift
from fpsde.field import AbstractField

__all__ = ["TOLERATED_ERROR", "step_error", "steps_needed"]

FEWEST, MOST = 100.0, 5000.0
# In standard deviations: the sampling error of a mean of a thousand points.
TOLERATED_ERROR = 0.03
# As long as it is this small the error is in proportion to the step.
SMALL_ERROR = 0.5
NARROWEST = 1e-3


@torch.no_grad()
def steps_needed(drift: AbstractDrift, diffusion: AbstractField, t: Tensor, z: Tensor) -> float:
    """Returns how many steps of Euler's method lead from time 0 to 1 well enough.

    The fastest of the given points move by a small part of their surroundings in one step. And of a population that starts
    as the first of them are, neither means nor standard deviations are off by much more than 0.03 of the latter.

    Arguments:
        drift: of dimensionless times and points.
        diffusion: of the same.
        t: increasing times, shape (M,), the first near zero.
        z: points of the density at these times, shape (M, N, d).
    """
    f, slope = drift.derivatives(t[:, None], z, order=1)
    width = z.std(1, keepdim=True).clamp_min(NARROWEST)
    rates = torch.stack([slope.abs(), 0.2 * f.abs() / width, 0.2 * (diffusion(t[:, None], z) / width).square()])
    fastest = float(torch.quantile(rates.amax(-1).flatten(1), 0.95, dim=1).max())
    steps, error = min(max(20 * fastest, FEWEST), MOST), math.inf
    while steps < MOST and error > SMALL_ERROR:
        error = step_error(drift, diffusion, z[0], steps)
        steps = min(steps * min(max(error / TOLERATED_ERROR, 1.0), 10.0), MOST)
    return steps


@torch.no_grad()
def step_error(drift: AbstractDrift, diffusion: AbstractField, z: Tensor, steps: float) -> float:
    """Returns by how much Euler's method misleads a population on its way from time 0 to 1.

    Arguments:
        drift: of dimensionless times and points.
        diffusion: of the same.
        z: the population at time 0, shape (N, d).
        steps: how many steps, rounded up to an even number.

    Returns:
        The largest error of means and standard deviations at any time, in the latter; infinite if a path becomes so. From
        the square of each is taken what is expected of it by the chance of N points.
    """
    n, generator = math.ceil(steps / 2), torch.Generator(device=z.device).manual_seed(0)
    h, fine, coarse, worst = 0.5 / n, z, z, z.new_zeros(())
    for k in range(n):
        noise = math.sqrt(h) * torch.randn(2, *z.shape, generator=generator, device=z.device, dtype=z.dtype)
        times = [z.new_full((), 2 * k * h), z.new_full((), (2 * k + 1) * h)]
        coarse = coarse + 2 * h * drift(times[0], coarse) + diffusion(times[0], coarse) * noise.sum(0)
        for t, half in zip(times, noise, strict=True):
            fine = fine + h * drift(t, fine) + diffusion(t, fine) * half
        centre, width = fine.mean(0), fine.std(0).clamp_min(NARROWEST)
        squares = (coarse - centre).square() - (fine - centre).square()
        apart = torch.stack([coarse - fine, squares / (2 * width)]) / width
        error = apart.mean(1).square() - apart.var(1) / len(z)
        worst = torch.maximum(worst, torch.where(torch.isfinite(error), error, math.inf).amax())
    return float(worst.sqrt())

r"""A first guess of drift and diffusion from the weak form of the Fokker-Planck equation.

Tested against a smooth function, the equation needs neither the score nor its derivatives,

.. math:: \frac{d}{dt} E_p[\psi] = E_p\Big[f \cdot \nabla \psi + \tfrac12 \sum_i a_i\, \partial_i^2 \psi\Big]

A density fitted by likelihood alone has a noisy score; least squares on the pointwise residual then pulls drift and
diffusion towards zero (errors in the variables), while the weak form averages that noise away.

References:
    Weak SINDy for partial differential equations (Messenger & Bortz, 2021), https://arxiv.org/abs/2007.02848
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from fpsde.density import DensityTerms
from fpsde.fokker_planck import FokkerPlanckLoss
from fpsde.projection import ReadoutSolver, Rows

__all__ = ["SmoothFunctions", "random_tests", "solve_weakly", "weak_rows"]

TIMES_PER_GROUP = 6
MAX_PRODUCTS = 60
MAX_WAVES = 60
MAX_ELEMENTS = 2**26


class SmoothFunctions(NamedTuple):
    """Values, gradients and diagonal second derivatives of Q functions at M times with N points each."""

    values: Tensor
    """Shape (M, N, Q), of mean zero over a group of times."""
    gradients: Tensor
    """Shape (M, N, Q, d)."""
    seconds: Tensor
    """Shape (M, N, Q, d)."""


@torch.no_grad()
def solve_weakly(solver: ReadoutSolver, n_points: int, rounds: int, generator: torch.Generator) -> None:
    """Solves for the readouts of drift and diffusion in the weak form.

    Arguments:
        solver: of the readouts, whose model has a trained density.
        n_points: points at each of the times; fewer in many dimensions, to bound memory.
        rounds: Gauss-Newton rounds, each with fresh points and test functions.
        generator: source of randomness.
    """
    model = solver.model
    parameter = next(model.density.parameters())
    n_times = 11 * TIMES_PER_GROUP
    dim = model.drift.dim
    size = n_times * (dim + MAX_PRODUCTS + MAX_WAVES) * dim
    n_points = max(16, min(n_points, MAX_ELEMENTS // size))
    for _ in range(rounds):
        shift = torch.rand(n_times, generator=generator, dtype=parameter.dtype, device=parameter.device)
        t = (torch.arange(n_times).to(parameter) + shift) / n_times
        x = model.density.sample(t, n_points, generator)
        matrix, misfit = weak_rows(model, t, x, generator)
        for system in solver.systems:
            part = matrix[:, system.group].flatten(1)
            change = solver.solve(system, [Rows(part, misfit, 1.0)])
            misfit = misfit + part @ change.flatten()


def weak_rows(model: FokkerPlanckLoss, t: Tensor, x: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Linearises the weak form, averaged over groups of neighbouring times.

    Arguments:
        model: density, drift and diffusion.
        t: increasing times, a multiple of six, shape (M,).
        x: points drawn from the density at these times, shape (M, N, d).
        generator: draws the test functions.

    Returns:
        The derivative of the misfit by the readouts, shape (rows, d, P), and the misfit, shape (rows,), in float64.
    """
    m, n, d = x.shape
    tests = random_tests(x, generator)
    clock = t[:, None]
    f, a = model.drift(clock, x), model.diffusion.variance(clock, x)[0]
    density = model.density.terms(t, x)
    change = _rate_of_change(tests, density)
    effect = (tests.gradients * f[:, :, None]).sum(-1) + 0.5 * (tests.seconds * a[:, :, None]).sum(-1)
    one = torch.ones(m * n, d, dtype=x.dtype, device=x.device)
    by_drift = model.drift.columns(clock, x, [one]).unflatten(1, (m, n))
    by_spread = model.diffusion.columns(clock, x, [one]).unflatten(1, (m, n))
    matrix = torch.cat([-torch.einsum("mnqd,dmnp->mqdp", tests.gradients, by_drift),
                        -0.5 * torch.einsum("mnqd,dmnp->mqdp", tests.seconds, by_spread)], -1) / n
    misfit = (change - effect).mean(1)
    matrix, misfit = (z.unflatten(0, (-1, TIMES_PER_GROUP)).mean(1).flatten(0, 1).double() for z in (matrix, misfit))
    return matrix, misfit


def random_tests(x: Tensor, generator: torch.Generator) -> SmoothFunctions:
    """Draws test functions of unit size: linear, quadratic, and random waves, in coordinates whitened by groups of times.

    Arguments:
        x: points, shape (M, N, d), M a multiple of six.
        generator: draws waves and, in many dimensions, which products to use.
    """
    d = x.shape[-1]
    grouped = x.reshape(-1, TIMES_PER_GROUP * x.shape[1], d)
    centred = grouped - grouped.mean(1, keepdim=True)
    covariance = centred.mT @ centred / centred.shape[1]
    spread = covariance.diagonal(dim1=-2, dim2=-1)
    cholesky = torch.linalg.cholesky_ex(covariance + torch.diag_embed(1e-5 * spread + 1e-10)).L
    eye = torch.eye(d).to(x)
    whiten = torch.linalg.solve_triangular(cholesky, eye.expand_as(cholesky), upper=False)
    y = centred @ whiten.mT

    i, j = torch.triu_indices(d, d, device=x.device)
    if len(i) > MAX_PRODUCTS:
        chosen = torch.randperm(len(i), generator=generator, device=x.device)[:MAX_PRODUCTS]
        i, j = i[chosen], j[chosen]
    size = torch.where(i == j, math.sqrt(0.5), 1.0).to(x)
    n_waves = min(20 + 5 * d, MAX_WAVES)
    waves = torch.randn(len(y), n_waves, d, generator=generator, dtype=x.dtype, device=x.device)
    phase = 2 * math.pi * torch.rand(len(y), 1, n_waves, generator=generator, dtype=x.dtype, device=x.device)
    angle, waves = y @ waves.mT + phase, waves @ whiten
    sine, cosine = math.sqrt(2) * angle.sin(), math.sqrt(2) * angle.cos()

    products = y[..., i, None] * eye[j] + y[..., j, None] * eye[i]
    plain = torch.cat([eye.expand(*y.shape, d), size[:, None] * products], -2) @ whiten[:, None]
    flat = (2 * size[:, None] * whiten[:, i] * whiten[:, j])[:, None].expand(*y.shape[:2], -1, d)
    values = torch.cat([y, size * y[..., i] * y[..., j], cosine], -1)
    gradients = torch.cat([plain, -sine[..., None] * waves[:, None]], -2)
    seconds = torch.cat([torch.zeros_like(y)[..., None].expand(*y.shape, d), flat,
                         -cosine[..., None] * waves.square()[:, None]], -2)
    values = values - values.mean(1, keepdim=True)
    return SmoothFunctions(*(z.reshape(*x.shape[:2], *z.shape[2:]) for z in (values, gradients, seconds)))


def _rate_of_change(tests: SmoothFunctions, density: DensityTerms) -> Tensor:
    """Integrand of d E[psi] / dt: what the components' motion and their change of weight do to psi, shape (M, N, Q)."""
    return ((tests.gradients * density.velocity[:, :, None]).sum(-1) + tests.values * density.mass_rate[..., None])

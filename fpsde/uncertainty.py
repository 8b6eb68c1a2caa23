r"""Standard errors of drift and noise, place by place, from the moment equations.

The equations are linear regression with Gaussian priors, so that what is left open has a covariance in closed form,
:math:`V - V A^T (C + A V A^T)^{-1} A V`. The fit itself takes the noise to be as even as the evidence allows; here noise
may vary severalfold and the drift may bend, so that the errors say what the snapshots tell, not what was believed before.

References:
    Bayesian interpolation (MacKay, 1992), https://doi.org/10.1162/neco.1992.4.3.415
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fpsde.evidence import condensed, explain
from fpsde.field import FREE, LIBRARY, AbstractField
from fpsde.moments import MomentEquations, columns_at, kinds
from fpsde.readouts import PATH_ERROR, found_groups, present_readouts, prior_groups

__all__ = ["StandardErrors", "standard_errors"]

# Variance of a readout's bends: that of the noise lets it vary severalfold, that of the drift lets it bend.
NOISE_BENDS, DRIFT_BENDS = 0.1, 1.0


class StandardErrors(NamedTuple):
    """Standard errors at points, in the units of the equations: dimensionless."""

    drift: Tensor
    """Of f, shape (n, d)."""
    diffusion: Tensor
    """Of g, shape (n, d)."""


@torch.no_grad()
def standard_errors(equations: MomentEquations, x: Tensor) -> StandardErrors:
    """Evaluates the standard errors of a fitted drift and diffusion.

    They count the sampling of the snapshots and the split between drift and noise, not a wrong path or a wrong model.

    Arguments:
        equations: of the fitted model, in float64.
        x: dimensionless points, shape (n, d).
    """
    drift, diffusion = equations.model.drift, equations.model.diffusion
    matrix, noise, variances = _regression(equations)
    root = torch.linalg.cholesky(noise + (matrix * variances) @ matrix.T)
    told = torch.linalg.solve_triangular(root, matrix * variances, upper=False)
    split = drift.get_readout().numel()
    end = split + diffusion.get_readout().numel()
    # The columns of a diffusion are those of a = g^2, and da = 2 g dg.
    return StandardErrors(_deviation(drift, x, variances[:split], told[:, :split]),
                          _deviation(diffusion, x, variances[split:end], told[:, split:end])
                          / (2 * diffusion(torch.zeros(1).to(x), x)).clamp_min(torch.finfo(x.dtype).tiny))


def _regression(equations: MomentEquations) -> tuple[Tensor, Tensor, Tensor]:
    """The matrix A, the covariance C of the equations' error and the prior variances V of the unknowns."""
    model = equations.model
    matrix, left = equations.linearise()
    noise, (values, centre) = equations.noise(), present_readouts(model)
    seen, told, error, rest = condensed(matrix, left + matrix @ (values - centre), noise)
    groups = found_groups(prior_groups(equations, seen), values)
    explained = explain(told, error, [PATH_ERROR, *(group.prior for group in groups)], rest=rest)
    least = torch.cat([_least(model.drift, DRIFT_BENDS), _least(model.diffusion, NOISE_BENDS)])
    least = torch.cat([least, least.new_zeros(matrix.shape[1] - len(least))])
    variances = least.clone()
    for group, variance in zip(groups, explained.variances[1:], strict=True):
        variances[group.places] = variance.clamp_min(least[group.places])
    return matrix, (1 + explained.variances[0]) * noise, variances


def _least(field: AbstractField, bends: float) -> Tensor:
    """The least variance of each unknown of a field, shape (U,).

    A level and a library are as free as the evidence lets them be: with the features of their nets fields may bend anyhow.
    """
    labels = kinds(field)
    by_evidence = torch.isin(labels, torch.tensor([FREE, *LIBRARY], device=labels.device))
    return torch.where(by_evidence, 0.0, bends).double()


def _deviation(field: AbstractField, x: Tensor, variances: Tensor, told: Tensor) -> Tensor:
    """The standard deviation of a field, or of the square of a diffusion, at points, shape (n, d)."""
    columns = columns_at(field, torch.zeros(1).to(x), x[None])[:, 0]
    if not columns.shape[-1]:
        return torch.zeros_like(x)
    variances, told = variances.view(len(field.get_readout()), -1), told.unflatten(-1, (len(field.get_readout()), -1))
    open_before = torch.einsum("dnp,dp->nd", columns.square(), variances.expand(len(columns), -1))
    found = torch.einsum("dnp,rdp->rnd", columns, told.expand(-1, len(columns), -1)).square().sum(0)
    return (open_before - found).clamp_min(0).sqrt()

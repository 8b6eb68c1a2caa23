r"""The Fokker-Planck residual that ties drift, diffusion and density.

For the Ito equation :math:`dx = f\,dt + g \odot dW` with :math:`a = g^2`, score :math:`s = \nabla \log p` and the
dimension-wise derivatives D, the density solves the Fokker-Planck equation if and only if

.. math::
    r = \partial_t \log p + \sum_i \big[D f_i + f_i s_i\big]
        - \tfrac12 \sum_i \big[D^2 a_i + 2 (D a_i) s_i + a_i (D s_i + s_i^2)\big]

vanishes. It is the weighted divergence :math:`r = \nabla \cdot (p\,q) / p` of the excess velocity

.. math:: q_i = f_i - \tfrac12 (D a_i + a_i s_i) - v_i

over any velocity v that transports the density.

References:
    The Fokker-Planck Equation (Risken, 1996), https://doi.org/10.1007/978-3-642-61544-3
    Neural Networks with Cheap Differential Operators (Chen & Duvenaud, 2019), https://arxiv.org/abs/1912.03579
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from fpsde import ranks
from fpsde.density import AbstractDensity, DensityTerms
from fpsde.diffusion import AbstractDiffusion
from fpsde.drift import AbstractDrift
from fpsde.field import AbstractField
from fpsde.growth import Growth

__all__ = ["FokkerPlanckLoss", "LossTerms", "LossWeights", "excess_velocity", "influence", "residual", "tempered"]

TRIM = 0.05
CAUCHY_WIDTH = 3.0
LEAST_WIDTH = 0.1
# Of likelihood a point; a weighed residual that costs more counts by its logarithm.
MOST_NATS = 0.3


def residual(density: DensityTerms, drift: tuple[Tensor, Tensor], variance: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """Evaluates the residual of the Fokker-Planck equation for log p.

    Arguments:
        density: terms of the density at M times with N points each.
        drift: (f, D f), each of shape (M, N, d).
        variance: (a, D a, D^2 a), each of shape (M, N, d).

    Returns:
        r, shape (M, N), in units of one over time.
    """
    (f, f_slope), (a, a_slope, a_bend), s = drift, variance, density.score
    transport = f_slope + f * s
    spread = a_bend + 2 * a_slope * s + a * (density.curvature + s * s)
    return density.time_derivative + (transport - 0.5 * spread).sum(-1)


def excess_velocity(density: DensityTerms, drift: Tensor, variance: tuple[Tensor, ...]) -> Tensor:
    """Evaluates q, the probability flow of the SDE less the velocity of the density path.

    Arguments:
        density: terms of the density at M times with N points each; its weights must be constant in time.
        drift: f, shape (M, N, d).
        variance: (a, D a, ...), each of shape (M, N, d).

    Returns:
        q, shape (M, N, d), in units of x per time.
    """
    a, a_slope = variance[:2]
    return drift - 0.5 * (a_slope + a * density.score) - density.velocity


def influence(log_prob: Tensor, r: Tensor) -> Tensor:
    """Weights of the squared residual that keep the tails of the density from deciding.

    A mixture's far tails are those of its widest component, whatever the equation wants: there r is large and says
    nothing about the data. The 5 % of points with the least density at each time get no weight, and the rest that of a
    Cauchy likelihood three times as wide as the median of abs(r) at that time. The weights carry no gradient.

    Arguments:
        log_prob: log p, shape (M, N).
        r: residual, shape (M, N).
    """
    with torch.no_grad():
        core = log_prob >= torch.quantile(log_prob, TRIM, dim=1, keepdim=True)
        width = (CAUCHY_WIDTH * r.abs().median(dim=1, keepdim=True).values).clamp_min(LEAST_WIDTH)
        return core / (1 + (r / width).square())


def tempered(cost: Tensor, most: float = MOST_NATS) -> Tensor:
    """What a weighed mean r^2 costs a density: itself, and beyond so many nats as much more as its logarithm grows.

    In many dimensions, and for motion that is fast against the length of the data, no mixture solves the equation: r^2
    stays in the hundreds, and in full would draw the density off the points. By its logarithm it is worth the same
    likelihood to halve it, however large it is. Where several processes train together, it is their mean that is meant.
    """
    whole = ranks.mean(cost.detach())
    steep = (most / whole).clamp_max(1)
    value = torch.where(whole > most, most * (1 + (whole / most).clamp_min(1).log()), whole)
    return value + steep * (cost - whole)


class LossWeights(NamedTuple):
    """Weights of the terms beside the likelihood; all quantities are dimensionless."""

    residual: float = 1.0
    """Of E r^2, tempered where it guides the density."""
    velocity: float = 0.0
    """Of E |q|^2."""
    drift_energy: float = 0.0
    """Of E |f|^2, known terms left out, which chooses among drifts that the marginals cannot tell apart."""


class LossTerms(NamedTuple):
    """The loss and its parts, each a scalar."""

    loss: Tensor
    likelihood: Tensor
    """Mean log p at the snapshots."""
    residual: Tensor
    """Mean r^2 at the collocation points."""


class FokkerPlanckLoss(nn.Module):
    """Negative log-likelihood at the snapshots plus the weighted residual at collocation points.

    Its forward is the loss, so that it can be wrapped for several processes as it is.

    Arguments:
        density: the density path.
        drift: f.
        diffusion: g.
        guides_density: whether the residual's gradient reaches the density. A drift that is free in time can follow any
            path, so its residual says nothing about the density and is kept from it.
        growth: the rate at which points multiply, if they do.
        most_nats: what the residual costs the density beyond this counts by its logarithm.
    """

    def __init__(self, density: AbstractDensity, drift: AbstractDrift, diffusion: AbstractDiffusion,
                 guides_density: bool = True, growth: Growth | None = None, most_nats: float = MOST_NATS) -> None:
        super().__init__()
        self.density, self.drift, self.diffusion = density, drift, diffusion
        self.guides_density, self.growth, self.most_nats = guides_density, growth, most_nats

    def forward(self, t: Tensor, x: Tensor, t_inside: Tensor, x_inside: Tensor, weights: LossWeights,
                terms: DensityTerms | None = None) -> LossTerms:
        """Evaluates the loss.

        Arguments:
            t: snapshot times, shape (S,).
            x: points of the snapshots, shape (S, B, d).
            t_inside: collocation times, shape (M,).
            x_inside: collocation points, shape (M, N, d).
            weights: weights of the terms.
            terms: of the density at the collocation points, if they are known.
        """
        likelihood = self.density.log_prob(t, x).mean()
        if not any(weights):
            return LossTerms(-likelihood, likelihood, torch.zeros_like(likelihood))
        loss = -likelihood
        terms = terms or self.density.terms(t_inside, x_inside)
        if not self.guides_density:
            terms = DensityTerms(*(term.detach() for term in terms))
        f, f_slope = self.drift.derivatives(t_inside[:, None], x_inside, order=1)
        variance = self.diffusion.variance(t_inside[:, None], x_inside)
        r = self.less_growth(residual(terms, (f, f_slope), variance), x_inside)
        squared = (influence(terms.log_prob, r) * r.square()).mean()
        cost = weights.residual * squared
        loss = loss + (tempered(cost, self.most_nats) if self.guides_density else cost)
        if weights.velocity:
            loss = loss + weights.velocity * excess_velocity(terms, f, variance).square().sum(-1).mean()
        if weights.drift_energy:
            learned = f - self.drift.known(t_inside[:, None], x_inside)
            loss = loss + weights.drift_energy * learned.square().sum(-1).mean()
        return LossTerms(loss, likelihood, squared)

    def nets(self) -> list[AbstractField | Growth]:
        """Returns what is learned beside the density."""
        learned: list[AbstractField | Growth] = [self.drift, self.diffusion]
        return learned if self.growth is None else [*learned, self.growth]

    def net_parameters(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """Returns the parameters of what is learned beside the density: those inside, and the readouts."""
        readouts = [p for net in self.nets() for p in net.readout_parameters()]
        known = {id(p) for p in readouts}
        return [p for net in self.nets() for p in net.parameters() if id(p) not in known], readouts

    @torch.no_grad()
    def mean_squared_residual(self, t: Tensor, x: Tensor) -> float:
        """Returns the mean of the weighed r^2 at times (M,) and points (M, N, d)."""
        terms = self.density.terms(t, x)
        f, f_slope = self.drift.derivatives(t[:, None], x, order=1)
        r = self.less_growth(residual(terms, (f, f_slope), self.diffusion.variance(t[:, None], x)), x)
        return float((influence(terms.log_prob, r) * r.square()).mean())

    def cost(self, t: Tensor, x: Tensor, weight: float) -> float:
        """Returns what the residual of this weight costs the density at times (M,) and points (M, N, d)."""
        cost = torch.tensor(weight * self.mean_squared_residual(t, x), device=t.device)
        return float(tempered(cost, self.most_nats))

    def less_growth(self, r: Tensor, x: Tensor) -> Tensor:
        """Takes what growth explains from a residual r, shape (M, N), at points x of shape (M, N, d)."""
        return r if self.growth is None else r - self.growth.source(x)

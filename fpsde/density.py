r"""Density paths :math:`p(t, x)`: normalised at every time, smooth in between.

The Gaussian mixture path has weights, means and covariances that are cubic splines of time. With
:math:`u_k = \Sigma_k^{-1} (x - m_k)` and the responsibilities :math:`\rho_k`, everything is in closed form:

.. math::
    \nabla \log p &= - \sum_k \rho_k u_k \\
    \partial_i^2 \log p &= \sum_k \rho_k \big(u_{ki}^2 - (\Sigma_k^{-1})_{ii}\big) - (\partial_i \log p)^2 \\
    \partial_t \log p &= \sum_k \rho_k \big(\dot{\log w_k} + \dot m_k \cdot u_k
        + \tfrac12 u_k \cdot \dot\Sigma_k u_k - \tfrac12 \mathrm{tr}\, \Sigma_k^{-1} \dot\Sigma_k\big)

The velocity :math:`v = \sum_k \rho_k (\dot m_k + \tfrac12 \dot\Sigma_k u_k)` moves and stretches the components,

.. math:: \partial_t p = - \nabla \cdot (p v) + p \sum_k \rho_k \dot{\log w_k}

and so transports the density exactly while the weights do not change.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.quasirandom import SobolEngine

from fpsde.covariance import AbstractCovariance, FullCovariance, LowRankCovariance, log_normaliser
from fpsde.spline import CubicSplineBasis

__all__ = ["AbstractDensity", "DensityTerms", "GaussianMixturePath"]

MAX_ELEMENTS = 2**26


class DensityTerms(NamedTuple):
    """The log-density and its derivatives at M times with N points each."""

    log_prob: Tensor
    """log p, shape (M, N)."""
    time_derivative: Tensor
    """d log p / dt, shape (M, N)."""
    score: Tensor
    """Gradient of log p in x, shape (M, N, d)."""
    curvature: Tensor
    """Diagonal second derivatives of log p in x, shape (M, N, d)."""
    velocity: Tensor
    """The velocity v that moves and stretches the components, shape (M, N, d)."""


class AbstractDensity(nn.Module):
    """A probability density in x for every time t."""

    dim: int

    @abstractmethod
    def log_prob(self, t: Tensor, x: Tensor) -> Tensor:
        """Returns log p(t, x), shape (M, N), for times t of shape (M,) and points x of shape (M, N, d)."""

    @abstractmethod
    def terms(self, t: Tensor, x: Tensor) -> DensityTerms:
        """Returns log p and its derivatives for times t of shape (M,) and points x of shape (M, N, d)."""

    @abstractmethod
    def sample(self, t: Tensor, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Draws n points at each of the times t of shape (M,): shape (M, n, d), without gradient."""

    @abstractmethod
    def spread(self, t: Tensor, n: int, seed: int) -> Tensor:
        """Places n points evenly under the density at each of the times t of shape (M,): shape (M, n, d).

        Means over them have a smaller error than over as many independent draws.
        """

    @abstractmethod
    def kinetic_energy(self, t: Tensor) -> Tensor:
        """Returns the mean square of the velocities of the density's parts, shape (M,), for times t of shape (M,).

        Where parts overlap and cross, it is more than the E |v|^2 of their common velocity v: moving together is cheaper.
        """

    def grad_log_prob(self, t: Tensor, x: Tensor) -> Tensor:
        """Returns the gradient of log p in x, shape (M, N, d)."""
        return self.terms(t, x).score


class GaussianMixturePath(AbstractDensity):
    """A Gaussian mixture whose weights, means and covariances are cubic splines of time.

    Arguments:
        basis: the splines, B of them.
        log_weights: initial coefficients of the log weights, shape (B, K).
        means: initial coefficients of the means, shape (B, K, d), learned in the units of the covariance.
        covariance: the covariances of the K components.
        constant_weights: whether the weights are held constant in time, which makes the velocity exact.
    """

    def __init__(self, basis: CubicSplineBasis, log_weights: Tensor, means: Tensor, covariance: AbstractCovariance,
                 constant_weights: bool = False) -> None:
        super().__init__()
        self.dim, self.n_components, self.constant_weights = means.shape[-1], means.shape[1], constant_weights
        self.basis, self.covariance = basis, covariance
        self.logits = nn.Parameter(log_weights.mean(0, keepdim=True) if constant_weights else log_weights.clone())
        self.means = nn.Parameter(means / covariance.units[:, None])

    @classmethod
    def shaped(cls, state: Mapping[str, Tensor], constant_weights: bool) -> GaussianMixturePath:
        """Returns a path of the shape of a state, to be filled with it."""
        factors, floor, units = (state[f"covariance.{name}"] for name in ("factors", "floor", "units"))
        covariance: AbstractCovariance = (
            LowRankCovariance(factors, state["covariance.log_rest"], floor, units) if "covariance.log_rest" in state
            else FullCovariance(factors, floor, units))
        basis = CubicSplineBasis(state["basis.breaks"].double().numpy())
        return cls(basis, state["logits"], state["means"], covariance, constant_weights)

    def log_prob(self, t: Tensor, x: Tensor) -> Tensor:
        return self._log_prob(t, x)

    def held_log_prob(self, t: Tensor, x: Tensor) -> Tensor:
        """Returns log p as a function of x alone: its gradient does not reach the parameters."""
        return self._log_prob(t, x, held=True)

    def _log_prob(self, t: Tensor, x: Tensor, held: bool = False) -> Tensor:
        basis, rate = self.basis(t)
        log_weights = self._weights(basis, rate)[0]
        distances, log_det = self.covariance.distances(basis, self._means(basis), x, held)
        heights = self._heights(log_weights.detach() if held else log_weights, log_det)
        return (heights[:, None] - 0.5 * distances).logsumexp(-1)

    def terms(self, t: Tensor, x: Tensor) -> DensityTerms:
        basis, rate = self.basis(t)
        log_weights, weights_rate = self._weights(basis, rate)
        means, means_rate = self._means(basis), self._means(rate)[:, :, None]
        offsets = x[:, None] - means[:, :, None]
        c = self.covariance(basis, rate, offsets)
        u = c.whitened
        log_parts = self._heights(log_weights, c.log_det)[..., None] - 0.5 * (u * offsets).sum(-1)
        log_prob = log_parts.logsumexp(1)
        share = (log_parts - log_prob[:, None]).exp()[..., None]
        score = -(share * u).sum(1)
        # About their mean: far out, the mean of the squares and the square of the mean agree in all digits that there are.
        curvature = (share * ((u + score[:, None]).square() - c.diagonal[:, :, None])).sum(1)
        velocities = means_rate + 0.5 * c.drag
        rates = (weights_rate - 0.5 * c.trace_rate)[..., None, None] + (u * velocities).sum(-1, keepdim=True)
        return DensityTerms(
            log_prob=log_prob, time_derivative=(share * rates).sum((1, -1)), score=score, curvature=curvature,
            velocity=(share * velocities).sum(1))

    @torch.no_grad()
    def sample(self, t: Tensor, n: int, generator: torch.Generator | None = None) -> Tensor:
        basis, rate = self.basis(t)
        log_weights, _ = self._weights(basis, rate)
        chosen = torch.multinomial(log_weights.exp(), n, replacement=True, generator=generator)
        noise = torch.randn(len(t), n, self.noise_size, generator=generator, dtype=basis.dtype, device=basis.device)
        return self._place(basis, chosen, noise)

    @torch.no_grad()
    def spread(self, t: Tensor, n: int, seed: int) -> Tensor:
        basis, rate = self.basis(t)
        log_weights, _ = self._weights(basis, rate)
        # Scrambled Sobol points: one coordinate chooses the component, the others are the quantiles of its noise.
        uniform = torch.stack([SobolEngine(self.noise_size + 1, scramble=True, seed=seed + k).draw(n, dtype=torch.float64)
                               for k in range(len(t))]).clamp(1e-9, 1 - 1e-9).to(basis.device)
        steps = log_weights.double().exp().cumsum(-1)
        chosen = torch.searchsorted(steps, uniform[..., 0].contiguous()).clamp_max(self.n_components - 1)
        return self._place(basis, chosen, torch.special.ndtri(uniform[..., 1:]).to(basis))

    @property
    def noise_size(self) -> int:
        """Number of standard normal variables that make one draw of a component."""
        return self.covariance.noise_size

    def draws(self, t: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Places points so that a gradient goes through them, the same number for each component.

        Arguments:
            t: times, shape (M,).
            noise: standard normal, shape (M, N, `noise_size`).

        Returns:
            The points, shape (M, K N, d), and what each counts in a mean, shape (M, K N).
        """
        basis, rate = self.basis(t)
        points = self._means(basis)[:, :, None] + self.covariance.offsets(basis, noise)
        shares = self._weights(basis, rate)[0].exp() / noise.shape[1]
        return points.flatten(1, 2), shares.repeat_interleave(noise.shape[1], -1)

    def _place(self, basis: Tensor, chosen: Tensor, noise: Tensor) -> Tensor:
        rows = torch.arange(len(basis), device=basis.device)[:, None]
        # The factors of every point are too much at once in many dimensions.
        count = max(1, MAX_ELEMENTS // (noise.shape[1] * self.covariance.factors[0, 0].numel()))
        parts = zip(basis.split(count), noise.split(count), chosen.split(count), strict=True)
        return self._means(basis)[rows, chosen] + torch.cat([self.covariance.offsets(*part) for part in parts])

    def _means(self, basis: Tensor) -> Tensor:
        return torch.einsum("mb,bkd->mkd", basis, self.means * self.covariance.units[:, None])

    def kinetic_energy(self, t: Tensor) -> Tensor:
        basis, rate = self.basis(t)
        weights = self._weights(basis, rate)[0].exp()
        return (weights * (self._means(rate).square().sum(-1) + 0.25 * self.covariance.agitation(basis, rate))).sum(-1)

    def _heights(self, log_weights: Tensor, log_det: Tensor) -> Tensor:
        """Log of every component's share in the density at its own mean, shape (M, K)."""
        return log_weights - 0.5 * log_det - log_normaliser(self.dim)

    def _weights(self, basis: Tensor, rate: Tensor) -> tuple[Tensor, Tensor]:
        if self.constant_weights:
            log_weights = self.logits.log_softmax(-1).expand(len(basis), -1)
            return log_weights, torch.zeros_like(log_weights)
        log_weights = (basis @ self.logits).log_softmax(-1)
        logits_rate = rate @ self.logits
        return log_weights, logits_rate - (log_weights.exp() * logits_rate).sum(-1, keepdim=True)


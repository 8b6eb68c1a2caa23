r"""Covariances of mixture components that move smoothly with time.

Full covariances are spline combinations of positive semi-definite matrices above a floor,

.. math:: \Sigma_k(t) = \sum_b B_b(t) \left(F_b + L_{bk} L_{bk}^T\right)

which stay positive definite at every time because the splines are non-negative. Above about twenty dimensions
:math:`\Sigma_k(t) = \mathrm{diag}(\delta_k(t)) + U_k(t) U_k(t)^T` with few columns in U. The floor F keeps a
component from shrinking onto a single point. What is learned is in units of the snapshots' own spread at each time, so
that a step of the optimiser means as much to a narrow cloud as to a wide one.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import NamedTuple, Self

import numpy as np
import torch
from scipy.linalg import eigh
from torch import Tensor, nn

__all__ = ["AbstractCovariance", "CovarianceTerms", "FullCovariance", "LowRankCovariance"]


class CovarianceTerms(NamedTuple):
    """What the density needs of a covariance at M times, K components and N points each."""

    whitened: Tensor
    """P z for the offsets z = x - m and the precision P, shape (M, K, N, d)."""
    log_det: Tensor
    """log det of the covariance, shape (M, K)."""
    diagonal: Tensor
    """Diagonal of the precision, shape (M, K, d)."""
    drag: Tensor
    """(d Sigma / dt) P z, shape (M, K, N, d)."""
    trace_rate: Tensor
    """Trace of P d Sigma / dt, shape (M, K)."""


class AbstractCovariance(nn.Module):
    """A covariance for each of K components as a function of time."""

    factors: Tensor
    """Coefficients of the factors in those units, shape (B, K, d, r)."""
    units: Tensor
    """Spread of the snapshots as spline coefficients, in which lengths are learned, shape (B, d)."""

    @abstractmethod
    def forward(self, basis: Tensor, rate: Tensor, offsets: Tensor) -> CovarianceTerms:
        """Evaluates the terms of the density.

        Arguments:
            basis: spline basis at M times, shape (M, B).
            rate: its time derivative, shape (M, B).
            offsets: x - m, shape (M, K, N, d).
        """

    @abstractmethod
    def distances(self, basis: Tensor, means: Tensor, x: Tensor, held: bool = False) -> tuple[Tensor, Tensor]:
        """Evaluates what the likelihood alone needs.

        Arguments:
            basis: spline basis at M times, shape (M, B).
            means: m, shape (M, K, d).
            x: points, shape (M, N, d).
            held: whether the gradient is that by x alone.

        Returns:
            The squares of Mahalanobis' distance, shape (M, N, K), and log det of the covariance, shape (M, K).
        """

    @property
    @abstractmethod
    def noise_size(self) -> int:
        """Number of columns r of the factors that :meth:`root` returns."""

    @abstractmethod
    def root(self, basis: Tensor) -> Tensor:
        """Returns factors R with R R^T = Sigma, shape (M, K, d, r)."""

    @abstractmethod
    def offsets(self, basis: Tensor, noise: Tensor, chosen: Tensor | None = None) -> Tensor:
        """Turns standard normal noise into offsets from the means, R z.

        Arguments:
            basis: spline basis at M times, shape (M, B).
            noise: z, shape (M, N, r) with r = `noise_size`.
            chosen: the component of each point, shape (M, N); all in turn if left out.

        Returns:
            The offsets, shape (M, N, d), or (M, K, N, d) of all components.
        """

    @abstractmethod
    def agitation(self, basis: Tensor, rate: Tensor) -> Tensor:
        """Returns the mean square of the drag over each component, tr (P (d Sigma / dt)^2), shape (M, K)."""

    def lengths(self) -> Tensor:
        """Returns the factors in the units of x, shape (B, K, d, r)."""
        return self.factors * self.units[:, None, :, None]

    @abstractmethod
    def joined(self, others: Sequence[Self]) -> Self:
        """Returns the covariances of these components and of others above the same floor."""


class FullCovariance(AbstractCovariance):
    """Full covariances, O(d^2) a component and point.

    Arguments:
        factors: coefficients L, of which the lower triangle counts, shape (B, K, d, d).
        floor: the part F that cannot be lost, shape (B, d, d), positive definite.
        units: in which L is learned, shape (B, d).
    """

    floor: Tensor

    def __init__(self, factors: Tensor, floor: Tensor, units: Tensor) -> None:
        super().__init__()
        self.factors = nn.Parameter(factors / units[:, None, :, None])
        self.register_buffer("floor", floor.clone())
        self.register_buffer("units", units.clone())

    @classmethod
    def of(cls, covariances: Tensor, floor: Tensor, units: Tensor) -> FullCovariance:
        """Starts from covariances of shape (B, K, d, d) as spline coefficients."""
        values, vectors = torch.linalg.eigh(covariances - floor[:, None])
        # What lies below the floor starts a little above it, where the gradient of L L^T does not vanish.
        least = 0.01 * covariances.diagonal(dim1=-2, dim2=-1).amin(-1)[..., None] + 1e-10
        root = vectors * values.clamp_min(least).sqrt()[..., None, :]
        return cls(torch.linalg.qr(root.mT).R.mT.contiguous(), floor, units)

    def forward(self, basis: Tensor, rate: Tensor, offsets: Tensor) -> CovarianceTerms:
        matrices = self._matrices()
        inverse, log_det = _inverse_root(_combine(basis, matrices))
        precision = inverse.mT @ inverse
        speed = _combine(rate, matrices)
        whitened = offsets @ precision
        return CovarianceTerms(
            whitened=whitened,
            log_det=log_det,
            diagonal=precision.diagonal(dim1=-2, dim2=-1),
            drag=whitened @ speed,
            trace_rate=(precision * speed).sum((-2, -1)))

    def distances(self, basis: Tensor, means: Tensor, x: Tensor, held: bool = False) -> tuple[Tensor, Tensor]:
        inverse, log_det = _inverse_root(_combine(basis, self._matrices()))
        if held:
            inverse, log_det, means = inverse.detach(), log_det.detach(), means.detach()
        # In the units of each component x is an affine function of x: one product of matrices at every time. The components
        # come last, where the sum over coordinates runs along them.
        columns = inverse.permute(0, 3, 2, 1).flatten(2)
        centres = (inverse @ means[..., None])[..., 0].mT.flatten(1)
        z = torch.baddbmm(-centres[:, None], x, columns)
        return z.square().unflatten(-1, (x.shape[-1], -1)).sum(-2), log_det

    @property
    def noise_size(self) -> int:
        return self.factors.shape[-2]

    def root(self, basis: Tensor) -> Tensor:
        found = torch.linalg.cholesky_ex(_combine(basis, self._matrices()))
        # Not torch's own error for what has no factor: to ask whether there is one is to wait for a GPU.
        return torch.where(found.info[..., None, None] == 0, found.L, math.nan)

    def offsets(self, basis: Tensor, noise: Tensor, chosen: Tensor | None = None) -> Tensor:
        roots = self.root(basis)
        if chosen is None:
            return noise[:, None] @ roots.mT
        return (_of_chosen(roots, chosen) @ noise[..., None]).squeeze(-1)

    def agitation(self, basis: Tensor, rate: Tensor) -> Tensor:
        matrices = self._matrices()
        inverse, _ = _inverse_root(_combine(basis, matrices))
        return (inverse @ _combine(rate, matrices)).square().sum((-2, -1))

    def joined(self, others: Sequence[Self]) -> Self:
        return type(self)(torch.cat([c.lengths() for c in (self, *others)], 1).detach(), self.floor, self.units)

    def _matrices(self) -> Tensor:
        lower = self.lengths().tril()
        return lower @ lower.mT + self.floor[:, None]


class LowRankCovariance(AbstractCovariance):
    """A diagonal plus a few directions, O(d rank) a component and point.

    Arguments:
        factors: coefficients of U, shape (B, K, d, rank).
        log_rest: log of the coefficients of delta less the floor, shape (B, K, d).
        floor: the part of delta that cannot be lost, shape (B, d), positive.
        units: in which U is learned, shape (B, d).
    """

    floor: Tensor

    def __init__(self, factors: Tensor, log_rest: Tensor, floor: Tensor, units: Tensor) -> None:
        super().__init__()
        self.factors = nn.Parameter(factors / units[:, None, :, None])
        self.log_rest = nn.Parameter(log_rest.clone())
        self.register_buffer("floor", floor.clone())
        self.register_buffer("units", units.clone())

    @classmethod
    def of(cls, covariances: Tensor, floor: Tensor, units: Tensor, rank: int = 8) -> LowRankCovariance:
        """Starts from covariances of shape (B, K, d, d) as spline coefficients, and the diagonal of their floor."""
        floor = floor.diagonal(dim1=-2, dim2=-1)
        leading, vectors = _leading(covariances, rank)
        diagonal = covariances.diagonal(dim1=-2, dim2=-1)
        others = max(diagonal.shape[-1] - rank, 1)
        base = (diagonal.sum(-1, keepdim=True) - leading.sum(-1, keepdim=True)).clamp_min(0) / others
        factors = vectors * (leading - base).clamp_min(0).sqrt()[..., None, :]
        # The eigenvectors of neighbouring times may differ in sign and order; turn each onto the one before.
        for b in range(1, len(factors)):
            u, _, v = torch.linalg.svd(factors[b].mT @ factors[b - 1])
            factors[b] = factors[b] @ (u @ v)
        factors = factors.contiguous()
        left = diagonal - factors.square().sum(-1)
        return cls(factors, torch.maximum(left - floor[:, None], 0.01 * diagonal).log(), floor, units)

    def forward(self, basis: Tensor, rate: Tensor, offsets: Tensor) -> CovarianceTerms:
        rest = self.log_rest.exp() + self.floor[:, None]
        delta, delta_rate = _combine(basis, rest), _combine(rate, rest)
        factors = self.lengths()
        columns, columns_rate = _combine(basis, factors), _combine(rate, factors)
        w, log_det = _woodbury(delta, columns)
        whitened = offsets / delta[:, :, None] - (offsets @ w) @ w.mT
        diagonal = 1 / delta - w.square().sum(-1)
        precise = columns / delta[..., None] - w @ (w.mT @ columns)
        return CovarianceTerms(
            whitened=whitened,
            log_det=log_det,
            diagonal=diagonal,
            drag=delta_rate[:, :, None] * whitened + (whitened @ columns) @ columns_rate.mT
            + (whitened @ columns_rate) @ columns.mT,
            trace_rate=(diagonal * delta_rate).sum(-1) + 2 * (precise * columns_rate).sum((-2, -1)))

    def distances(self, basis: Tensor, means: Tensor, x: Tensor, held: bool = False) -> tuple[Tensor, Tensor]:
        delta = self._delta(basis)
        w, log_det = _woodbury(delta, _combine(basis, self.lengths()))
        if held:
            delta, w, log_det, means = delta.detach(), w.detach(), log_det.detach(), means.detach()
        # Sums over the coordinates of products, so that nothing of the size (M, K, N, d) is made; taken from a point
        # amid the components, lest the difference of large squares lose its digits.
        middle = means.mean(1, keepdim=True)
        x, means = x - middle, means - middle
        precise = means / delta
        squares = x.square() @ (1 / delta).mT - 2 * x @ precise.mT + (means * precise).sum(-1)[:, None]
        along = torch.einsum("mnd,mkdr->mnkr", x, w) - torch.einsum("mkd,mkdr->mkr", means, w)[:, None]
        return squares - along.square().sum(-1), log_det

    @property
    def noise_size(self) -> int:
        return self.factors.shape[-2] + self.factors.shape[-1]

    def root(self, basis: Tensor) -> Tensor:
        return torch.cat([self._delta(basis).sqrt().diag_embed(), _combine(basis, self.lengths())], -1)

    def offsets(self, basis: Tensor, noise: Tensor, chosen: Tensor | None = None) -> Tensor:
        # Not by the root, most of which is zero.
        own, shared = noise.tensor_split([self.factors.shape[-2]], -1)
        widths, columns = self._delta(basis).sqrt(), _combine(basis, self.lengths())
        if chosen is None:
            return widths[:, :, None] * own[:, None] + shared[:, None] @ columns.mT
        return _of_chosen(widths, chosen) * own + (_of_chosen(columns, chosen) @ shared[..., None]).squeeze(-1)

    def agitation(self, basis: Tensor, rate: Tensor) -> Tensor:
        delta, delta_rate = self._delta(basis), self._delta(rate)
        u, v = _combine(basis, self.lengths()), _combine(rate, self.lengths())
        w, _ = _woodbury(delta, u)
        # S = d Sigma / dt is diagonal plus V U^T + U V^T, and P = 1 / delta - W W^T: the rows of S, then S W.
        rows = (delta_rate.square() + 4 * delta_rate * (u * v).sum(-1) + (v @ (u.mT @ u) * v).sum(-1)
                + (u @ (v.mT @ v) * u).sum(-1) + 2 * (v @ (u.mT @ v) * u).sum(-1))
        moved = delta_rate[..., None] * w + v @ (u.mT @ w) + u @ (v.mT @ w)
        return (rows / delta).sum(-1) - moved.square().sum((-2, -1))

    def _delta(self, basis: Tensor) -> Tensor:
        return _combine(basis, self.log_rest.exp() + self.floor[:, None])

    def joined(self, others: Sequence[Self]) -> Self:
        return type(self)(torch.cat([c.lengths() for c in (self, *others)], 1).detach(),
                          torch.cat([c.log_rest for c in (self, *others)], 1).detach(), self.floor, self.units)


def _combine(basis: Tensor, coefficients: Tensor) -> Tensor:
    """Contracts (M, B) with (B, ...) to (M, ...)."""
    return (basis @ coefficients.flatten(1)).unflatten(-1, coefficients.shape[1:])


def _leading(matrices: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Returns the largest eigenvalues of symmetric matrices, increasing, (..., rank), and their vectors, (..., d, rank)."""
    d = matrices.shape[-1]
    # Not all d of them: that takes four times as long.
    found = [eigh(m, subset_by_index=[max(d - rank, 0), d - 1]) for m in matrices.flatten(0, -3).cpu().numpy()]
    values, vectors = (torch.as_tensor(np.stack(part)).to(matrices) for part in zip(*found, strict=True))
    return values.unflatten(0, matrices.shape[:-2]), vectors.unflatten(0, matrices.shape[:-2])


def _of_chosen(values: Tensor, chosen: Tensor) -> Tensor:
    """Takes that of a component for each point: from (M, K, ...) by (M, N) to (M, N, ...)."""
    return values[torch.arange(len(chosen), device=chosen.device)[:, None], chosen]


def _inverse_root(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the inverse of the Cholesky factors, shape (..., d, d), and log det, shape (...)."""
    cholesky = torch.linalg.cholesky_ex(matrices).L
    eye = torch.eye(cholesky.shape[-1], dtype=cholesky.dtype, device=cholesky.device)
    inverse = torch.linalg.solve_triangular(cholesky, eye.expand_as(cholesky), upper=False)
    return inverse, 2 * cholesky.diagonal(dim1=-2, dim2=-1).log().sum(-1)


def _woodbury(delta: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    """Returns W with P = 1/delta - W W^T, shape (..., d, r), and log det Sigma, shape (...).

    W = (U / delta) C^{-T/2}, where C = 1 + U^T U / delta.
    """
    scaled = columns / delta[..., None]
    eye = torch.eye(columns.shape[-1], dtype=columns.dtype, device=columns.device)
    cholesky = torch.linalg.cholesky_ex(columns.mT @ scaled + eye).L
    w = torch.linalg.solve_triangular(cholesky, scaled.mT, upper=False).mT
    return w, delta.log().sum(-1) + 2 * cholesky.diagonal(dim1=-2, dim2=-1).log().sum(-1)


def log_normaliser(dim: int) -> float:
    """Returns log (2 pi)^(d / 2)."""
    return 0.5 * dim * math.log(2 * math.pi)

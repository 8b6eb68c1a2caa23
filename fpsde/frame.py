r"""Test functions that move with a cloud, and the quadrature at whose nodes they are evaluated.

A frame :math:`y = W(t)(x - m(t))` follows the cloud's mean and spread over an interval. Smooth functions of y see a narrow
cloud on a long way as sharply as a wide one at rest.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

__all__ = ["NODES", "MovingFrame", "TestFunctions", "Tested", "lobatto"]

NODES = 6
MAX_PRODUCTS = 60
MAX_WAVES = 75
WAVES = 10
FULL_FRAME_UP_TO = 20


class MovingFrame:
    """A frame that moves and stretches with the cloud over one interval: y = W(t) (x - m(t)).

    m and W are polynomials in time through the cloud's mean and inverse root covariance at Lobatto's nodes.

    Arguments:
        x: points of the density at the nodes, shape (NODES, n, d).
        span: length of the interval.
    """

    def __init__(self, x: Tensor, span: float) -> None:
        nodes, _ = lobatto(NODES)
        slope = torch.as_tensor(_differentiation(nodes), device=x.device) / span
        self.centre = x.mean(1)
        offsets = x - self.centre[:, None]
        if x.shape[-1] > FULL_FRAME_UP_TO:
            self.whiten = offsets.square().mean(1).clamp_min(1e-12).rsqrt().diag_embed()
        else:
            covariance = offsets.mT @ offsets / x.shape[1]
            spread = covariance.diagonal(dim1=-2, dim2=-1)
            root = torch.linalg.cholesky_ex(covariance + torch.diag_embed(1e-6 * spread + 1e-12)).L
            eye = torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)
            self.whiten = torch.linalg.solve_triangular(root, eye.expand_as(root), upper=False)
        self.centre_rate = slope @ self.centre
        self.whiten_rate = torch.einsum("ab,bij->aij", slope, self.whiten)


class Tested(NamedTuple):
    """Values and derivatives of Q functions at M nodes with N points each."""

    values: Tensor
    """Shape (M, N, Q)."""
    rates: Tensor
    """Derivative in time at fixed x, shape (M, N, Q)."""
    gradients: Tensor
    """Shape (M, N, Q, d)."""
    seconds: Tensor
    """Diagonal second derivatives, shape (M, N, Q, d)."""


class TestFunctions:
    """Linear, quadratic and wave-like functions of the coordinates of a moving frame.

    Arguments:
        dim: number of coordinates d.
        generator: draws the waves and, in many dimensions, which products to use.
    """

    __test__ = False

    def __init__(self, dim: int, generator: torch.Generator) -> None:
        n_waves = _how_many_waves(dim)
        device, dtype = generator.device, torch.float64
        self.waves = torch.randn(n_waves, dim, generator=generator, dtype=dtype, device=device)
        # In a unit cloud their angle is to spread by as much in many dimensions as in two: the mean of a wave that turns
        # many times over the cloud is nought, and its error is not.
        self.waves *= math.sqrt(2 / max(dim, 2))
        if dim <= 2:
            # Half of them turn twice as fast: a cloud of two narrow parts has detail that its whole width does not show.
            self.waves[1::2] *= 2
        self.phase = 2 * math.pi * torch.rand(n_waves, generator=generator, dtype=dtype, device=device)
        pairs = torch.triu_indices(dim, dim, device=device)
        if pairs.shape[1] > MAX_PRODUCTS:
            # Those of a coordinate with itself say most about its noise and are never left out.
            same, other = pairs[:, pairs[0] == pairs[1]], pairs[:, pairs[0] != pairs[1]]
            order = torch.randperm(other.shape[1], generator=generator, device=device)
            pairs = torch.cat([same, other[:, order[:max(MAX_PRODUCTS - dim, 0)]]], 1)
        self.pairs = pairs
        self.count = dim + pairs.shape[1] + n_waves

    @staticmethod
    def how_many(dim: int) -> int:
        """Returns the number of functions in d dimensions."""
        products = dim * (dim + 1) // 2
        return dim + (products if products <= MAX_PRODUCTS else max(dim, MAX_PRODUCTS)) + _how_many_waves(dim)

    def values(self, frame: MovingFrame, node: Sequence[int], x: Tensor) -> Tensor:
        """Returns the functions' values, shape (M, N, Q), at points x of shape (M, N, d) at M nodes."""
        y = (x - frame.centre[node][:, None]) @ frame.whiten[node].mT
        i, j = self.pairs
        return torch.cat([y, y[..., i] * y[..., j], (y @ self.waves.T + self.phase).cos()], -1)

    def __call__(self, frame: MovingFrame, node: Sequence[int], x: Tensor) -> Tested:
        """Evaluates the functions and their derivatives at points x of shape (M, N, d) at M nodes."""
        w, d = frame.whiten[node], x.shape[-1]
        offsets = x - frame.centre[node][:, None]
        y = offsets @ w.mT
        y_rate = offsets @ frame.whiten_rate[node].mT - (w @ frame.centre_rate[node][..., None]).mT
        i, j = self.pairs
        angle, waves = y @ self.waves.T + self.phase, self.waves @ w
        sine, cosine = angle.sin(), angle.cos()
        rows_i, rows_j = w[:, None, i], w[:, None, j]
        shape = y.shape[:-1]
        return Tested(
            torch.cat([y, y[..., i] * y[..., j], cosine], -1),
            torch.cat([y_rate, y_rate[..., i] * y[..., j] + y[..., i] * y_rate[..., j],
                       -sine * (y_rate @ self.waves.T)], -1),
            torch.cat([w[:, None].expand(*shape, d, d), y[..., i, None] * rows_j + y[..., j, None] * rows_i,
                       -sine[..., None] * waves[:, None]], -2),
            torch.cat([y.new_zeros(*shape, d, d), (2 * rows_i * rows_j).expand(*shape, -1, d),
                       -cosine[..., None] * waves.square()[:, None]], -2))


def _how_many_waves(dim: int) -> int:
    """Ten a coordinate, or twenty; with many products there is no room: each further equation brings sampling error."""
    return min(WAVES * max(dim, 2), MAX_WAVES - min(dim * (dim + 1) // 2, MAX_PRODUCTS))


def lobatto(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the nodes and weights of Lobatto's quadrature on [0, 1], whose first and last nodes are the ends."""
    legendre = np.polynomial.legendre.Legendre.basis(n - 1)
    nodes = np.concatenate([[-1.0], np.sort(legendre.deriv().roots().real), [1.0]])
    return (nodes + 1) / 2, 1 / (n * (n - 1) * legendre(nodes) ** 2)


def _differentiation(nodes: np.ndarray) -> np.ndarray:
    """The matrix that takes values at the nodes to derivatives of the polynomial through them."""
    gaps = nodes[:, None] - nodes
    np.fill_diagonal(gaps, 1.0)
    scale = gaps.prod(1)
    matrix = scale[:, None] / scale / gaps
    np.fill_diagonal(matrix, 0.0)
    return matrix - np.diag(matrix.sum(1))

r"""Test functions that move with a cloud, and the quadrature at whose nodes they are evaluated.

A frame :math:`y = W(t)(x - m(t))` follows the cloud's mean and spread over an interval. Smooth functions of y see a narrow
cloud on a long way as sharply as a wide one at rest.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

__all__ = ["NODES", "MovingFrame", "TestFunctions", "Tested", "lobatto"]

NODES = 6
PRODUCTS = 60
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


@dataclass(frozen=True)
class Tested:
    """Q functions of the frame's coordinates y at M nodes with N points each.

    Their derivatives by x are d times as many as they. None is laid out: each is a product of one of 1 + d functions or a
    wave of the point's own with a matrix that all points of a node share.
    """

    functions: TestFunctions
    whiten: Tensor
    """W, shape (M, d, d)."""
    y: Tensor
    """Shape (M, N, d)."""
    y_rate: Tensor
    """How y changes at fixed x, shape (M, N, d)."""
    sine: Tensor
    """Of the waves' angles, shape (M, N, waves)."""
    cosine: Tensor

    @property
    def values(self) -> Tensor:
        """Shape (M, N, Q)."""
        i, j = self.functions.pairs
        return torch.cat([self.y, self.y[..., i] * self.y[..., j], self.cosine], -1)

    @property
    def each(self) -> Tensor:
        """The weights with which :meth:`gradient` and :meth:`curvature` are those of each function, (Q, 1, 1, Q)."""
        return torch.eye(self.functions.count).to(self.y)[:, None, None]

    def along(self, velocity: Tensor) -> Tensor:
        """How they change in time for who moves with a velocity of shape (M, N, d): (M, N, Q)."""
        rate = self.y_rate + velocity @ self.whiten.mT
        y, (i, j) = self.y, self.functions.pairs
        return torch.cat([rate, rate[..., i] * y[..., j] + y[..., i] * rate[..., j],
                          -self.sine * (rate @ self.functions.waves.T)], -1)

    def spread(self, a: Tensor) -> Tensor:
        """The sum over coordinates of a_i times the second derivative by x_i, (M, N, Q), for a of shape (M, N, d)."""
        products, waves = self._seconds()
        return torch.cat([torch.zeros_like(self.y), a @ products.mT, -self.cosine * (a @ waves.mT)], -1)

    def gradient(self, u: Tensor) -> Tensor:
        """The gradient by x of the functions' sum with weights u of shape (..., M, N, Q), shape (..., M, N, d)."""
        linear, products, waves = self._parts(u)
        by_y = linear + torch.zeros_like(self.y)
        for one, other in (self.functions.pairs, self.functions.pairs.flip(0)):
            by_y = by_y.index_add(-1, one, products * self.y[..., other])
        return (by_y - (self.sine * waves) @ self.functions.waves) @ self.whiten

    def curvature(self, u: Tensor) -> Tensor:
        """The same sum's second derivatives by each coordinate, shape (..., M, N, d)."""
        _, products, waves = self._parts(u)
        by_products, by_waves = self._seconds()
        return products @ by_products - (self.cosine * waves) @ by_waves

    def gradients_with(self, columns: Tensor, weight: Tensor) -> Tensor:
        """Sums derivatives by x_i times columns over nodes and points.

        Arguments:
            columns: of each coordinate, shape (d, M, N, P).
            weight: of each point, shape (M, N).

        Returns:
            Shape (Q, d, P).
        """
        w, (i, j), d = self.whiten, self.functions.pairs, self.y.shape[-1]
        found = self._weighted([self.y, -self.sine], columns, weight)
        by_y = found[:, :, 1:1 + d]
        return torch.cat([torch.einsum("mqd,dmp->qdp", w, found[:, :, 0]),
                          torch.einsum("mqd,dmqp->qdp", w[:, j], by_y[:, :, i])
                          + torch.einsum("mqd,dmqp->qdp", w[:, i], by_y[:, :, j]),
                          torch.einsum("mqd,dmqp->qdp", self.functions.waves @ w, found[:, :, 1 + d:])])

    def seconds_with(self, columns: Tensor, weight: Tensor) -> Tensor:
        """Sums second derivatives by x_i times columns over nodes and points, as :meth:`gradients_with` does."""
        products, waves = self._seconds()
        found = self._weighted([-self.cosine], columns, weight)
        linear = found.new_zeros(self.y.shape[-1], len(columns), columns.shape[-1])
        return torch.cat([linear, torch.einsum("mqd,dmp->qdp", products, found[:, :, 0]),
                          torch.einsum("mqd,dmqp->qdp", waves, found[:, :, 1:])])

    def _parts(self, u: Tensor) -> tuple[Tensor, ...]:
        """Of linear functions, products and waves."""
        d = self.y.shape[-1]
        return u.tensor_split([d, d + self.functions.pairs.shape[1]], -1)

    def _seconds(self) -> tuple[Tensor, Tensor]:
        """What all points of a node share of the second derivatives of products and of waves, (M, products or waves, d)."""
        w, (i, j) = self.whiten, self.functions.pairs
        return 2 * w[:, i] * w[:, j], (self.functions.waves @ w).square()

    @staticmethod
    def _weighted(factors: list[Tensor], columns: Tensor, weight: Tensor) -> Tensor:
        """The columns' weighted sums over the points of a node, times 1 and times each factor: (d, M, 1 + factors, P)."""
        both = torch.cat([weight[..., None], *(weight[..., None] * factor for factor in factors)], -1).mT
        # Not as one product: that would copy the columns, or the factors d times.
        return torch.stack([both @ of_coordinate for of_coordinate in columns])


class TestFunctions:
    """Linear, quadratic and wave-like functions of the coordinates of a moving frame.

    Arguments:
        dim: number of coordinates d.
        generator: draws the waves and, in many dimensions, which products to use.
        products: of two coordinates, at most, unless there are more coordinates.
    """

    __test__ = False

    def __init__(self, dim: int, generator: torch.Generator, products: int = PRODUCTS) -> None:
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
        if pairs.shape[1] > products:
            # Those of a coordinate with itself say most about its noise and are never left out.
            same, other = pairs[:, pairs[0] == pairs[1]], pairs[:, pairs[0] != pairs[1]]
            order = torch.randperm(other.shape[1], generator=generator, device=device)
            pairs = torch.cat([same, other[:, order[:max(products - dim, 0)]]], 1)
        self.pairs = pairs
        self.count = dim + pairs.shape[1] + n_waves

    @staticmethod
    def how_many(dim: int, products: int = PRODUCTS) -> int:
        """Returns the number of functions in d dimensions, with so many products at most."""
        pairs = dim * (dim + 1) // 2
        return dim + (pairs if pairs <= products else max(dim, products)) + _how_many_waves(dim)

    def __call__(self, frame: MovingFrame, node: Sequence[int], x: Tensor) -> Tested:
        """Evaluates the functions at points x of shape (M, N, d) at M nodes."""
        w, offsets = frame.whiten[node], x - frame.centre[node][:, None]
        y = offsets @ w.mT
        angle = y @ self.waves.T + self.phase
        return Tested(self, w, y, offsets @ frame.whiten_rate[node].mT - (w @ frame.centre_rate[node][..., None]).mT,
                      angle.sin(), angle.cos())


def _how_many_waves(dim: int) -> int:
    """Ten a coordinate, or twenty; with many products there is no room: each further equation brings sampling error."""
    return min(WAVES * max(dim, 2), MAX_WAVES - min(dim * (dim + 1) // 2, PRODUCTS))


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

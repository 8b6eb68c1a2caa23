r"""Distances between samples, with the floor and the naive baselines that a distance has to be read against.

All distances are between samples of equal size: a distance shrinks with the number of points, so that unequal sizes
compare nothing. The floor is the distance of two random halves of the same snapshot; carry-forward predicts that nothing
moves; the optimal-transport midpoint interpolates the snapshots before and after along straight lines.

References:
    Computational Optimal Transport (Peyré & Cuturi, 2019), https://arxiv.org/abs/1803.00567
    A Kernel Two-Sample Test (Gretton et al., 2012), https://jmlr.org/papers/v13/gretton12a.html
    Energy statistics (Székely & Rizzo, 2013), https://doi.org/10.1016/j.jspi.2013.03.018
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist, pdist

__all__ = ["energy_distance", "halves", "mmd", "optimal_pairs", "transport_midpoint", "wasserstein"]

Array = NDArray[np.float64]


def optimal_pairs(x: Array, y: Array, order: int = 2) -> NDArray[np.int_]:
    """Pairs equal numbers of points at least cost.

    Arguments:
        x: points, shape (n, d).
        y: points, shape (n, d).
        order: the power of the Euclidean distance that is the cost.

    Returns:
        The row of y that belongs to each row of x, shape (n,).
    """
    _check(x, y, equal=True)
    return linear_sum_assignment(cdist(x, y) ** order)[1]


def wasserstein(x: Array, y: Array, order: int = 1) -> float:
    r"""Exact Wasserstein distance :math:`W_p` with Euclidean ground distance, in units of x.

    Equal counts are solved as an assignment; unequal ones need the extra `transport`.

    Arguments:
        x: points, shape (n, d).
        y: points, shape (m, d).
        order: p, 1 or 2 as a rule.

    Raises:
        ValueError: if the samples are empty or differ in dimension.
        ImportError: if the counts are unequal and POT is not installed.
    """
    _check(x, y)
    cost = cdist(x, y) ** order
    if len(x) == len(y):
        rows, columns = linear_sum_assignment(cost)
        return float(cost[rows, columns].mean() ** (1 / order))
    try:
        import ot
    except ImportError as error:
        raise ImportError("samples of unequal size need POT: pip install 'fpsde[transport]'") from error
    return float(ot.emd2([], [], cost, numItermax=10_000_000) ** (1 / order))


def energy_distance(x: Array, y: Array) -> float:
    r"""Unbiased estimate of :math:`2 E|x - y| - E|x - x'| - E|y - y'|`, in units of x."""
    _check(x, y)
    return float(2 * cdist(x, y).mean() - pdist(x).mean() - pdist(y).mean())


def mmd(x: Array, y: Array, bandwidth: float | None = None) -> float:
    """Unbiased squared maximum mean discrepancy with a Gaussian kernel; near zero, also below, for equal laws.

    Arguments:
        x: points, shape (n, d).
        y: points, shape (m, d).
        bandwidth: width of the kernel, the median distance of all points if left out.
    """
    _check(x, y)
    within_x, within_y, between = pdist(x, "sqeuclidean"), pdist(y, "sqeuclidean"), cdist(x, y, "sqeuclidean")
    if bandwidth is None:
        bandwidth = float(np.sqrt(np.median(np.concatenate([within_x, within_y, between.ravel()])))) or 1.0
    kernels = (np.exp(-0.5 * squared / bandwidth**2).mean() for squared in (within_x, within_y, between))
    return float(next(kernels) + next(kernels) - 2 * next(kernels))


def transport_midpoint(x: Array, y: Array, fraction: float = 0.5) -> Array:
    """Moves each point of x the given fraction of the way to its partner in y, under quadratic cost, shape (n, d)."""
    return x + fraction * (y[optimal_pairs(x, y)] - x)


def halves(x: Array, n: int, rng: np.random.Generator) -> tuple[Array, Array]:
    """Draws two disjoint samples of n points each from the rows of x."""
    if 2 * n > len(x):
        raise ValueError(f"two disjoint samples of {n} need {2 * n} points, got {len(x)}")
    order = rng.permutation(len(x))
    return x[order[:n]], x[order[n:2 * n]]


def _check(x: Array, y: Array, equal: bool = False) -> None:
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or not len(x) or not len(y):
        raise ValueError(f"expected two samples of shape (n, d) with the same d, got {x.shape} and {y.shape}")
    if equal and len(x) != len(y):
        raise ValueError(f"expected samples of equal size, got {len(x)} and {len(y)} points")

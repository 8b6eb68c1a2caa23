r"""Distances between samples, with the floor and the naive baselines that a distance has to be read against.

A distance between samples shrinks with their sizes, so that only predictions of about as many points compare. The floor
is the distance of two random halves of the same snapshot; carry-forward predicts that nothing moves; the optimal-transport
midpoint interpolates the snapshots before and after along straight lines.

References:
    Computational Optimal Transport (Peyré & Cuturi, 2019), https://arxiv.org/abs/1803.00567
    A Kernel Two-Sample Test (Gretton et al., 2012), https://jmlr.org/papers/v13/gretton12a.html
    Energy statistics (Székely & Rizzo, 2013), https://doi.org/10.1016/j.jspi.2013.03.018
"""

from __future__ import annotations

from types import ModuleType

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist, pdist

__all__ = ["energy_distance", "halves", "mmd", "optimal_pairs", "permutation_test", "transport_midpoint",
           "transport_plan", "wasserstein"]

Array = NDArray[np.float64]

MAX_ITERATIONS = 10_000_000


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


def transport_plan(x: Array, y: Array, order: int = 2) -> tuple[NDArray[np.int_], NDArray[np.int_], Array]:
    """Transports the points of x, of equal mass each, to those of y at least cost.

    Equal counts are solved as an assignment; unequal ones need the extra `transport`.

    Arguments:
        x: points, shape (n, d).
        y: points, shape (m, d).
        order: the power of the Euclidean distance that is the cost.

    Returns:
        Rows of x, rows of y and the mass that goes from one to the other, each of shape (k,) with k < n + m.
    """
    _check(x, y)
    if len(x) == len(y):
        return np.arange(len(x)), optimal_pairs(x, y, order), np.full(len(x), 1 / len(x))
    plan = _exact_transport().emd([], [], cdist(x, y) ** order, numItermax=MAX_ITERATIONS)
    rows, columns = np.nonzero(plan)
    return rows, columns, plan[rows, columns]


def wasserstein(x: Array, y: Array, order: int = 1, mass: Array | None = None) -> float:
    r"""Exact Wasserstein distance :math:`W_p` with Euclidean ground distance, in units of x.

    On a line sorted points belong together. Elsewhere equal counts of equal mass are solved as an assignment; everything
    else needs the extra `transport`.

    Arguments:
        x: points, shape (n, d).
        y: points, shape (m, d).
        order: p, 1 or 2 as a rule.
        mass: mass of each point of x, shape (n,); equal if left out.

    Raises:
        ValueError: if the samples are empty or differ in dimension.
        ImportError: if POT is needed and not installed.
    """
    _check(x, y)
    if x.shape[1] == 1:
        return _on_a_line(x[:, 0], y[:, 0], order, np.ones(len(x)) if mass is None else mass)
    cost = cdist(x, y) ** order
    if len(x) == len(y) and mass is None:
        rows, columns = linear_sum_assignment(cost)
        return float(cost[rows, columns].mean() ** (1 / order))
    weights = [] if mass is None else mass / mass.sum()
    return float(_exact_transport().emd2(weights, [], cost, numItermax=MAX_ITERATIONS) ** (1 / order))


def energy_distance(x: Array, y: Array) -> float:
    r"""Unbiased estimate of :math:`2 E|x - y| - E|x - x'| - E|y - y'|`, in units of x; NaN for a single point."""
    _check(x, y)
    if min(len(x), len(y)) < 2:
        return float("nan")
    return float(2 * cdist(x, y).mean() - pdist(x).mean() - pdist(y).mean())


def mmd(x: Array, y: Array, bandwidth: float | None = None) -> float:
    """Unbiased squared maximum mean discrepancy with a Gaussian kernel; near zero, also below, for equal laws.

    Arguments:
        x: points, shape (n, d).
        y: points, shape (m, d).
        bandwidth: width of the kernel, the median distance of all points if left out.

    Returns:
        The discrepancy; NaN for a single point.
    """
    _check(x, y)
    if min(len(x), len(y)) < 2:
        return float("nan")
    within_x, within_y, between = pdist(x, "sqeuclidean"), pdist(y, "sqeuclidean"), cdist(x, y, "sqeuclidean")
    if bandwidth is None:
        bandwidth = float(np.sqrt(np.median(np.concatenate([within_x, within_y, between.ravel()])))) or 1.0
    kernels = (np.exp(-0.5 * squared / bandwidth**2).mean() for squared in (within_x, within_y, between))
    return float(next(kernels) + next(kernels) - 2 * next(kernels))


def permutation_test(x: Array, y: Array, rng: np.random.Generator, permutations: int = 199) -> float:
    """Tests whether two samples come from one law, by the maximum mean discrepancy under permutations of their points.

    If they do, and points are independent, the p-value is uniform on multiples of 1 / (permutations + 1), whatever the law.

    Arguments:
        x: points, shape (n, d).
        y: points, shape (m, d).
        rng: draws the permutations.
        permutations: how many.

    Returns:
        The p-value: the share of permutations, the observed one included, whose discrepancy is at least as large.
    """
    _check(x, y)
    both = np.concatenate([x, y])
    squared = cdist(both, both, "sqeuclidean")
    width = np.median(squared[np.triu_indices(len(both), 1)]) or 1.0
    kernel = np.exp(-0.5 * squared / width)
    signs = np.concatenate([np.full(len(x), 1 / len(x)), np.full(len(y), -1 / len(y))])
    labels = np.stack([signs, *(rng.permutation(signs) for _ in range(permutations))])
    discrepancies = ((labels @ kernel) * labels).sum(1)
    # Sums in another order differ in their last digits.
    return float((discrepancies >= discrepancies[0] * (1 - 1e-12)).mean())


def transport_midpoint(x: Array, y: Array, fraction: float = 0.5) -> tuple[Array, Array]:
    """Moves the points of x the given fraction of the way to their partners in y, under quadratic cost.

    Arguments:
        x: points, shape (n, d).
        y: points, shape (m, d); unequal counts need the extra `transport`.
        fraction: of the way.

    Returns:
        Points, shape (k, d), and their mass, shape (k,); with equal counts one for each row of x.
    """
    rows, columns, mass = transport_plan(x, y)
    return x[rows] + fraction * (y[columns] - x[rows]), mass


def halves(x: Array, n: int, rng: np.random.Generator) -> tuple[Array, Array]:
    """Draws two disjoint samples of n points each from the rows of x."""
    if 2 * n > len(x):
        raise ValueError(f"two disjoint samples of {n} need {2 * n} points, got {len(x)}")
    order = rng.permutation(len(x))
    return x[order[:n]], x[order[n:2 * n]]


def _on_a_line(x: Array, y: Array, order: int, mass: Array) -> float:
    """The distance of points on a line, shapes (n,) and (m,), by their quantile functions."""
    order_x = x.argsort()
    x, y, ends_x = x[order_x], np.sort(y), mass[order_x].cumsum() / mass.sum()
    ends_y = np.arange(1, len(y) + 1) / len(y)
    # Between neighbouring ends both quantile functions are constant.
    ends = np.sort(np.concatenate([[0.0], ends_x[:-1], ends_y[:-1], [1.0]]))
    middle, share = (ends[1:] + ends[:-1]) / 2, np.diff(ends)
    moved = np.abs(x[np.searchsorted(ends_x[:-1], middle)] - y[np.searchsorted(ends_y[:-1], middle)])
    return float((share @ moved**order) ** (1 / order))


def _exact_transport() -> ModuleType:
    try:
        import ot
    except ImportError as error:
        raise ImportError("samples of unequal size need POT: pip install 'fpsde[transport]'") from error
    return ot


def _check(x: Array, y: Array, equal: bool = False) -> None:
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or not len(x) or not len(y):
        raise ValueError(f"expected two samples of shape (n, d) with the same d, got {x.shape} and {y.shape}")
    if equal and len(x) != len(y):
        raise ValueError(f"expected samples of equal size, got {len(x)} and {len(y)} points")

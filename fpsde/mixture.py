"""Where the mixture path starts: chains of matched points through the snapshots, clustered as whole paths.

Optimal transport pairs equal numbers of points of successive snapshots; following the pairs gives chains, and k-means on
the chains gives components that keep their identity from the first time to the last.

References:
    Waddington-OT (Schiebinger et al., 2019), https://doi.org/10.1016/j.cell.2019.01.006, for couplings between snapshots
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning

from fpsde.covariance import AbstractCovariance, FullCovariance, LowRankCovariance
from fpsde.density import GaussianMixturePath
from fpsde.spline import CubicSplineBasis

__all__ = ["averaged", "initial_path", "matched_chains"]

Array = NDArray[np.float64]

MAX_CHAINS = 1000
MIN_POINTS = 8
FULL_RANK_UP_TO = 20


def matched_chains(snapshots: list[Array], n: int, rng: np.random.Generator) -> Array:
    """Pairs points of successive snapshots by optimal transport with squared Euclidean cost.

    Arguments:
        snapshots: T arrays of shape (n_j, d).
        n: number of chains.
        rng: chooses the points.

    Returns:
        The chains, shape (n, T, d).
    """
    chosen = [x[rng.choice(len(x), n, replace=len(x) < n)] for x in snapshots]
    chains = [chosen[0]]
    for x in chosen[1:]:
        _, order = linear_sum_assignment(cdist(chains[-1], x, "sqeuclidean"))
        chains.append(x[order])
    return np.stack(chains, 1)


def initial_path(snapshots: list[Array], times: Array, n_components: int, rng: np.random.Generator,
                 constant_weights: bool = False, weights: list[Array] | None = None) -> GaussianMixturePath:
    """Starts a mixture path on snapshots.

    Arguments:
        snapshots: T arrays of shape (n_j, d).
        times: their times in [0, 1], increasing, shape (T,).
        n_components: number of components; fewer are used where a component would get fewer than 8 points, or where
            points coincide.
        rng: source of randomness.
        constant_weights: whether the weights of the path are constant in time.
        weights: of the points, T arrays of shape (n_j,); equal if left out.

    Returns:
        The path, in float64.
    """
    if weights is not None:
        snapshots = [_resampled(x, w, rng) for x, w in zip(snapshots, weights, strict=True)]
    dim, fewest = snapshots[0].shape[1], min(len(x) for x in snapshots)
    k = max(1, min(n_components, fewest // MIN_POINTS))
    chains = matched_chains(snapshots, min(max(fewest, 20 * k), MAX_CHAINS), rng)
    # Each snapshot counts alike, however small its cloud: a narrow cloud at the start splits as a wide one does later.
    scaled = chains / chains.std(0).mean(-1, keepdims=True).clip(1e-12)
    labels, counts = _clustered(scaled.reshape(len(chains), -1), k, int(rng.integers(2**31)))
    means = np.stack([chains[labels == c].mean(0) for c in range(len(counts))], 1)
    pooled = np.stack([np.cov(x.T).reshape(dim, dim) for x in snapshots])
    pooled = pooled + 1e-6 * np.eye(dim)
    covariances = np.stack([_covariances(chains[labels == c], pooled, k) for c in range(len(counts))], 1)

    # As many splines as snapshots: with a break at every time, the data would leave the ends of the path open.
    breaks = times if constant_weights or len(times) <= 3 else np.delete(times, [1, -2])
    basis = CubicSplineBasis(breaks)
    log_weights = np.tile(np.log(counts / counts.sum()), (basis.size, 1))
    floor = _at_nodes(pooled, times, basis) * (0.25 * k ** (-1 / dim)) ** 2
    centres = _at_nodes(means, times, basis) if constant_weights else _through(means, times, basis)
    spread = torch.as_tensor(_at_nodes(covariances, times, basis))
    # Between a narrow cloud's own spread and that of all data: fine enough to fit it, coarse enough to move it.
    units = torch.as_tensor(_at_nodes(pooled.diagonal(axis1=1, axis2=2), times, basis)) ** 0.25
    covariance: AbstractCovariance = (
        FullCovariance.of(spread, torch.as_tensor(floor), units) if dim <= FULL_RANK_UP_TO
        else LowRankCovariance.of(spread, torch.as_tensor(floor), units))
    return GaussianMixturePath(basis, torch.as_tensor(log_weights), torch.as_tensor(centres),
                               covariance, constant_weights)


def averaged(paths: Sequence[GaussianMixturePath]) -> GaussianMixturePath:
    """The mean of the densities of several paths with constant weights and the same floor, which is again such a path."""
    first, *others = paths
    logits = torch.cat([path.logits.log_softmax(-1) for path in paths], 1).detach()
    means = torch.cat([path.means * path.covariance.units[:, None] for path in paths], 1).detach()
    return GaussianMixturePath(first.basis, logits, means, first.covariance.joined([path.covariance for path in others]),
                               constant_weights=True)


def _clustered(points: Array, k: int, seed: int) -> tuple[NDArray[np.int_], NDArray[np.int_]]:
    """Labels of at most k clusters, none of them empty, shape (n,), and how many points each has."""
    with warnings.catch_warnings():
        # With fewer different points than clusters some stay empty, which is all that k-means warns of.
        warnings.simplefilter("ignore", ConvergenceWarning)
        found = KMeans(k, n_init=1, random_state=seed).fit_predict(points)
    _, labels, counts = np.unique(found, return_inverse=True, return_counts=True)
    return labels, counts


def _resampled(x: Array, weights: Array, rng: np.random.Generator) -> Array:
    """As many points of equal weight as these are worth, at even steps of the cumulative weight: few come twice."""
    n = max(MIN_POINTS, round(weights.sum() ** 2 / (weights**2).sum()))
    ends = weights.cumsum() / weights.sum()
    return x[np.searchsorted(ends[:-1], (np.arange(n) + rng.random()) / n, side="right")]


def _covariances(members: Array, pooled: Array, k: int) -> Array:
    """Covariance of one cluster at every time, shrunk to the snapshot's by the weight of d + 2 points."""
    dim = pooled.shape[-1]
    centred = members - members.mean(0)
    scatter = centred.transpose(1, 2, 0) @ centred.transpose(1, 0, 2)
    return (scatter + (dim + 2) * k ** (-2 / dim) * pooled) / (len(members) + dim + 2)


def _at_nodes(values: Array, times: Array, basis: CubicSplineBasis) -> Array:
    """Linear interpolation at the spline's nodes: positive matrices give positive coefficients."""
    position = np.interp(basis.nodes, times, np.arange(len(times)))
    left = np.minimum(position.astype(int), len(times) - 2)
    share = (position - left).reshape(-1, *[1] * (values.ndim - 1))
    return (1 - share) * values[left] + share * values[left + 1]


def _through(values: Array, times: Array, basis: CubicSplineBasis) -> Array:
    """Coefficients of the spline through values at the times; the shortest ones where there is more than one spline."""
    matrix = basis(torch.as_tensor(times, dtype=torch.float64))[0].numpy()
    return np.tensordot(np.linalg.pinv(matrix), values, 1)

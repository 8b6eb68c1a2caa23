"""What a short linear fit to the snapshots' moments makes of the same data."""

from __future__ import annotations

import numpy as np
from systems import Array, Field

__all__ = ["linear_baseline"]


def linear_baseline(x: Array, t: Array) -> tuple[Field, Field]:
    """Linear drift and constant noise from the snapshots' means and covariances, by integrated moment equations."""
    times, d = np.unique(t), x.shape[1]
    means = np.stack([x[t == s].mean(0) for s in times])
    seconds = np.stack([(x[t == s].T @ x[t == s]) / (t == s).sum() for s in times])
    gaps = np.diff(times)
    middle, middle_square = (means[1:] + means[:-1]) / 2, (seconds[1:] + seconds[:-1]) / 2
    rows, right = [], []
    # d E[x_i] = (A E[x] + b)_i and d E[x_i x_j] = (A S + b m^T + transpose)_ij + a_i [i = j], by the trapezium rule.
    for k, gap in enumerate(gaps):
        for i in range(d):
            row = np.zeros((d, d + 2))
            row[i, :d], row[i, d] = middle[k], 1
            rows.append(row.ravel())
            right.append((means[k + 1, i] - means[k, i]) / gap)
            for j in range(i, d):
                row = np.zeros((d, d + 2))
                row[i, :d] += middle_square[k][:, j]
                row[i, d] += middle[k, j]
                row[j, :d] += middle_square[k][:, i]
                row[j, d] += middle[k, i]
                row[i, d + 1] += i == j
                rows.append(row.ravel())
                right.append((seconds[k + 1, i, j] - seconds[k, i, j]) / gap)
    solution = np.linalg.lstsq(np.array(rows), np.array(right), rcond=None)[0].reshape(d, d + 2)
    noise = np.sqrt(solution[:, d + 1].clip(0))
    return lambda y: y @ solution[:, :d].T + solution[:, d], lambda y: np.broadcast_to(noise, y.shape)

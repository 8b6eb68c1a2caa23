"""Where figures look at points of any dimension."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fpsde.snapshots import Snapshots

__all__ = ["Plane"]

Array = NDArray[np.float64]


class Plane:
    """A few directions to look along: the coordinates themselves in 2-D, the leading principal directions above.

    Arguments:
        data: the points to look at.
        directions: how many, above 2-D.
    """

    def __init__(self, data: Snapshots, directions: int = 2) -> None:
        self.data, self.dim = data, data.dim
        self.centre, self.scale = data.x.mean(0), data.x.std(0)
        if self.dim > 2:
            z = (data.x - self.centre) / self.scale
            self.axes = np.linalg.svd(z, full_matrices=False)[2][:directions]
            self.labels = tuple(f"principal direction {i + 1}" for i in range(directions))
        else:
            names = (*data.names, "")
            self.axes, self.labels = np.eye(self.dim), names[:2]

    def project(self, x: Array) -> Array:
        """Points (..., d) to those directions (..., 2), or (..., 1) for d = 1."""
        return x if self.dim <= 2 else ((x - self.centre) / self.scale) @ self.axes.T

    def project_vectors(self, v: Array) -> Array:
        """Vectors (..., d) to those directions."""
        return v if self.dim <= 2 else (v / self.scale) @ self.axes.T

    def limits(self, *others: Array) -> Array:
        """Range that holds the points but for the outermost few, with a margin, shape (2, k).

        Arguments:
            others: projected points that must be in it as well, each of shape (m, k).
        """
        ends = np.stack([np.quantile(x, [0.002, 0.998], axis=0) for x in (self.project(self.data.x), *others)])
        low, high = ends[:, 0].min(0), ends[:, 1].max(0)
        # Nearly all points of a coordinate may be the same.
        width = np.where(high > low, high - low, self.project(self.data.x).std(0))
        return np.stack([low - 0.08 * width, high + 0.08 * width])

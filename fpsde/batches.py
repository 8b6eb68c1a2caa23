"""Snapshots on the device, drawn in equal numbers."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["SnapshotBatches"]

MAX_TIMES_PER_STEP = 16


class SnapshotBatches:
    """The points of all snapshots on the device.

    Arguments:
        groups: the snapshots, T arrays of shape (n_j, d).
        generator: chooses the points, on the device.
        device: where the points lie.
        weights: of the points, T arrays of shape (n_j,) and of mean 1; equal if left out.
    """

    def __init__(self, groups: list[NDArray[np.float64]], generator: torch.Generator, device: torch.device,
                 weights: list[NDArray[np.float64]] | None = None) -> None:
        self.generator = generator
        counts = torch.tensor([len(x) for x in groups])
        self.counts = counts.to(device)
        self.first = (counts.cumsum(0) - counts).to(device)
        self.x = torch.as_tensor(np.concatenate(groups), dtype=torch.float32, device=device)
        self.weights: list[Tensor] | None = None
        if weights is not None:
            self.weights = [torch.as_tensor(w, dtype=torch.float64, device=device) for w in weights]
            # Snapshot j takes up [j, j + 1), each of its points as much of it as its share of the weight: in float64 one
            # search finds the points of all snapshots.
            sums = [w.cumsum(0) for w in self.weights]
            self.ends = torch.cat([j + s / s[-1] for j, s in enumerate(sums)])

    def group(self, j: int) -> Tensor:
        """Returns all points of a snapshot, shape (n_j, d)."""
        return self.x[int(self.first[j]):int(self.first[j] + self.counts[j])]

    def mean(self, j: int, values: Tensor) -> Tensor:
        """Returns the mean of values at the points of a snapshot, shape (n_j,), under their weights."""
        return values.mean() if self.weights is None else (values * self.weights[j]).mean()

    def draw(self, t: Tensor, points: int) -> tuple[Tensor, Tensor]:
        """Draws, with replacement, about this many points in all: times (S,) and points (S, B, d), S at most 16.

        Of a snapshot, each point is drawn with a probability in proportion to its weight.
        """
        chosen = torch.arange(len(t), device=t.device)
        if len(t) > MAX_TIMES_PER_STEP:
            chosen = torch.randperm(len(t), generator=self.generator, device=t.device)[:MAX_TIMES_PER_STEP]
        n = max(1, points // len(chosen))
        share = torch.rand(len(chosen), n, generator=self.generator, device=t.device)
        if self.weights is not None:
            return t[chosen], self.x[torch.searchsorted(self.ends, chosen[:, None] + share.double(), right=True)]
        rows = (share * self.counts[chosen, None]).long().clamp_max(self.counts[chosen, None] - 1)
        return t[chosen], self.x[self.first[chosen, None] + rows]

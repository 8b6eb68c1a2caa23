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
    """

    def __init__(self, groups: list[NDArray[np.float64]], generator: torch.Generator, device: torch.device) -> None:
        self.generator = generator
        counts = torch.tensor([len(x) for x in groups])
        self.counts = counts.to(device)
        self.first = (counts.cumsum(0) - counts).to(device)
        self.x = torch.as_tensor(np.concatenate(groups), dtype=torch.float32, device=device)

    def group(self, j: int) -> Tensor:
        """Returns all points of a snapshot, shape (n_j, d)."""
        return self.x[int(self.first[j]):int(self.first[j] + self.counts[j])]

    def draw(self, t: Tensor, points: int) -> tuple[Tensor, Tensor]:
        """Draws, with replacement, about this many points in all: times (S,) and points (S, B, d), S at most 16."""
        chosen = torch.arange(len(t), device=t.device)
        if len(t) > MAX_TIMES_PER_STEP:
            chosen = torch.randperm(len(t), generator=self.generator, device=t.device)[:MAX_TIMES_PER_STEP]
        n = max(1, points // len(chosen))
        share = torch.rand(len(chosen), n, generator=self.generator, device=t.device)
        rows = (share * self.counts[chosen, None]).long().clamp_max(self.counts[chosen, None] - 1)
        return t[chosen], self.x[self.first[chosen, None] + rows]

"""Snapshots on the device, or on disk, drawn in equal numbers."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fpsde.mapped import Mapped
from fpsde.ranks import gathered

__all__ = ["MOST_POINTS", "SnapshotBatches"]

MAX_TIMES_PER_STEP = 16
# Of a snapshot that enters a computation at once.
MOST_POINTS = 16384
MOST_BY_SINGLE = 2**19


class SnapshotBatches:
    """The points of all snapshots on the device; those that stay on disk come there when they are drawn.

    Arguments:
        groups: the snapshots, T arrays of shape (n_j, d).
        generator: chooses the points, on the device.
        device: where the points lie.
        weights: of the points, T arrays of shape (n_j,) and of mean 1; equal if left out.
        counts: the points of the snapshots in all processes, T numbers; those given here if left out.
    """

    def __init__(self, groups: list[NDArray[np.float64]], generator: torch.Generator, device: torch.device,
                 weights: list[NDArray[np.float64]] | None = None, counts: list[int] | None = None) -> None:
        self.generator, self.device = generator, device
        own = torch.tensor([len(x) for x in groups])
        self.all_counts = own.tolist() if counts is None else counts
        ends = own.cumsum(0)
        self.counts, self.first = own.to(device), (ends - own).to(device)
        self.places = [slice(end - n, end) for n, end in zip(own.tolist(), ends.tolist(), strict=True)]
        # Of many points, the 2^24 steps of float32 would reach some far more often than others.
        self.fine = torch.float64 if int(own.max()) > MOST_BY_SINGLE else torch.float32
        self.x: Tensor | _Drawn = _points(groups, device)
        self.weights: list[Tensor] | None = None
        if weights is not None:
            self.weights = [torch.as_tensor(w, dtype=torch.float64, device=device) for w in weights]
            # Snapshot j takes up [j, j + 1), each of its points as much of it as its share of the weight: in float64 one
            # search finds the points of all snapshots.
            sums = [w.cumsum(0) for w in self.weights]
            self.ends = torch.cat([j + s / s[-1] for j, s in enumerate(sums)])

    def group(self, j: int) -> Tensor:
        """Returns all points of a snapshot, shape (n_j, d)."""
        return self.x[self.places[j]]

    def mean(self, j: int, values: Tensor) -> Tensor:
        """Returns the mean of values at the points of a snapshot, shape (n_j,), under their weights."""
        return values.mean() if self.weights is None else (values * self.weights[j]).mean()

    def some(self, most: int = MOST_POINTS) -> tuple[list[Tensor], list[Tensor] | None]:
        """Returns points of every snapshot, (n, d), and their weights, (n,): all, or so many chosen at random.

        Several processes put together what each has.
        """
        points, weights = [], []
        for j, (place, total) in enumerate(zip(self.places, self.all_counts, strict=True)):
            n = place.stop - place.start
            shared = n < total
            wanted = most * n // total if shared else most
            rows = torch.randperm(n, generator=self.generator, device=self.device)[:wanted] if n > wanted else None
            x = self.group(j) if rows is None else self.x[place.start + rows]
            points.append(gathered(x) if shared else x)
            if self.weights is not None:
                w = self.weights[j] if rows is None else self.weights[j][rows]
                weights.append(gathered(w) if shared else w)
        return points, None if self.weights is None else weights

    def draw(self, t: Tensor, points: int) -> tuple[Tensor, Tensor]:
        """Draws, with replacement, about this many points in all: times (S,) and points (S, B, d), S at most 16.

        Of a snapshot, each point is drawn with a probability in proportion to its weight.
        """
        chosen = torch.arange(len(t), device=t.device)
        if len(t) > MAX_TIMES_PER_STEP:
            chosen = torch.randperm(len(t), generator=self.generator, device=t.device)[:MAX_TIMES_PER_STEP]
        n = max(1, points // len(chosen))
        share = torch.rand(len(chosen), n, generator=self.generator, device=t.device, dtype=self.fine)
        if self.weights is not None:
            return t[chosen], self.x[torch.searchsorted(self.ends, chosen[:, None] + share.double(), right=True)]
        rows = (share * self.counts[chosen, None]).long().clamp_max(self.counts[chosen, None] - 1)
        return t[chosen], self.x[self.first[chosen, None] + rows]


class _Drawn:
    """Points on disk that come to the device in float32 when they are indexed."""

    def __init__(self, points: Mapped, device: torch.device) -> None:
        self.points, self.device = points, device

    def __getitem__(self, place: Tensor | slice) -> Tensor:
        if isinstance(place, slice):
            return self._brought(self.points[place])
        rows = place.flatten().cpu().numpy()
        # In the order in which they lie there.
        order = np.argsort(rows)
        drawn = np.empty((len(rows), self.points.shape[1]))
        drawn[order] = self.points[rows[order]]
        return self._brought(drawn).unflatten(0, place.shape)

    def _brought(self, points: NDArray[np.float64]) -> Tensor:
        return torch.as_tensor(points, dtype=torch.float32, device=self.device)


def _points(groups: list[NDArray[np.float64]], device: torch.device) -> Tensor | _Drawn:
    first, *others = groups
    if isinstance(first, Mapped):
        return _Drawn(first.and_then([x for x in others if isinstance(x, Mapped)]), device)
    return torch.as_tensor(np.concatenate(groups), dtype=torch.float32, device=device)

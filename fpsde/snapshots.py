"""Snapshots: unpaired samples of a population at several times."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fpsde.mapped import Mapped, blocks

__all__ = ["MIN_POINTS_PER_TIME", "SnapshotError", "Snapshots", "check_finite", "check_weights", "dense", "floats",
           "listed", "mean_and_variance", "on_disk"]

Array = NDArray[np.float64]

MIN_POINTS_PER_TIME = 3
LARGEST = 1e30
LEAST_SPREAD = 1e-12
LEAST_GAP = 1e-6
# More of a snapshot tell no more of a fit than these do, and cost as much as they are.
MOST_HELD_OUT = 4096
# A snapshot of fewer points for each process is kept by all.
LEAST_SHARE = 16


class SnapshotError(ValueError):
    """The data cannot be used; the message says what is wrong, where, and what to do."""


@dataclass(frozen=True)
class Snapshots:
    """Points observed at times, in data units.

    Attributes:
        x: the points, shape (n, d), finite; :class:`fpsde.mapped.Mapped` if they stay on disk.
        t: the time of each point, shape (n,), finite, at least two different ones.
        names: names of the d coordinates.
        weights: of the points, shape (n,), positive and of mean 1 within each time; None if equal within each.
    """

    x: Array
    t: Array
    names: tuple[str, ...]
    weights: Array | None = None

    @classmethod
    def of(cls, x: ArrayLike, t: ArrayLike, names: tuple[str, ...] | None = None,
           weights: ArrayLike | None = None) -> Snapshots:
        """Checks arrays and builds snapshots from them; points of no weight are dropped.

        Points in a memory map stay there, and are read block by block.

        Raises:
            SnapshotError: if shapes do not match, values are missing, infinite or too large, there are fewer than two
                times, two nearly coincide, a time has fewer than three points of positive weight (or points of less weight
                than three together), a coordinate never varies, or a weight is negative.
        """
        # Copies: what a DataFrame hands out may be read-only, which torch does not take.
        x, t = floats(x, "points").copy() if on_disk(x) is None else on_disk(x), floats(t, "times").copy()
        if x.ndim != 2 or t.ndim != 1 or len(x) != len(t):
            raise SnapshotError(f"points must have shape (n, d) and times shape (n,), got {x.shape} and {t.shape}")
        if x.shape[1] < 1:
            raise SnapshotError("points need at least one coordinate, got none")
        names = names or tuple(f"x{i + 1}" for i in range(x.shape[1]))
        size = check_finite(x, t, names)
        given = None if weights is None else check_weights(weights, len(t))
        times, place = np.unique(t, return_inverse=True)
        if len(times) < 2:
            raise SnapshotError(f"snapshots at two or more times are needed, all points (n_samples = {len(t)}) have time "
                                f"{t[0]:g}" if len(t) else "there are no points")
        counts = np.bincount(place if given is None else place[given > 0], minlength=len(times))
        heavy = np.zeros(len(times), dtype=bool) if given is None else np.bincount(place, given) >= MIN_POINTS_PER_TIME
        few = times[(counts < MIN_POINTS_PER_TIME) & ~heavy]
        if len(few):
            raise SnapshotError(
                f"{len(few)} of {len(times)} times have fewer than {MIN_POINTS_PER_TIME} points"
                f"{'' if given is None else ' of positive weight'}, the first is "
                f"{few[0]:g} with {counts[times == few[0]][0]}; merge times that belong together or drop these points")
        _check_range(x, size, times, names)
        if given is not None:
            # Few points of large weight are what they stand for, several points each.
            copies = np.where(given > 0, np.where(counts < MIN_POINTS_PER_TIME, MIN_POINTS_PER_TIME, 1)[place], 0)
            used = np.repeat(np.arange(len(t)), copies)
            x, t, given = _some(x, used), t[used], _of_mean_one(given[used], t[used])
            size = _largest(x)
        _check_spread(x, size, given, names)
        return cls(x, t, tuple(names), given)

    @cached_property
    def times(self) -> Array:
        """The different times, increasing, shape (T,)."""
        return np.unique(self.t)

    @cached_property
    def counts(self) -> NDArray[np.int_]:
        """Number of points at every time, shape (T,)."""
        return np.unique(self.t, return_counts=True)[1]

    @property
    def dim(self) -> int:
        """Number of coordinates d."""
        return self.x.shape[1]

    def at(self, time: float) -> Array:
        """The points observed at one time, shape (n_j, d)."""
        return _some(self.x, self.t == time)

    def groups(self) -> list[Array]:
        """The points of every time, in the order of :attr:`times`."""
        return [self.at(time) for time in self.times]

    def group_weights(self) -> list[Array] | None:
        """The weights of every time, in the order of :attr:`times`; None if they are equal."""
        return None if self.weights is None else [self.weights[self.t == time] for time in self.times]

    def subset(self, chosen: NDArray[np.bool_]) -> Snapshots:
        """Some of the points, by a mask of shape (n,)."""
        weights = None if self.weights is None else _of_mean_one(self.weights[chosen], self.t[chosen])
        return Snapshots(_some(self.x, chosen), self.t[chosen], self.names, weights)

    def share(self, rank: int, count: int) -> Snapshots:
        """The points that one of several processes keeps: every so manyth of a snapshot, or all of a small one."""
        if count == 1:
            return self
        chosen = np.zeros(len(self.t), dtype=bool)
        for time in self.times:
            rows = np.flatnonzero(self.t == time)
            chosen[rows[rank::count] if len(rows) >= LEAST_SHARE * count else rows] = True
        # The weights stay as they are: what counts is the mean over all processes.
        weights = None if self.weights is None else self.weights[chosen]
        return Snapshots(_some(self.x, chosen), self.t[chosen], self.names, weights)

    def thinned(self, rng: np.random.Generator) -> Snapshots:
        """Keeps each point with a probability in proportion to its weight: a sample of the same law, of equal weights.

        Unlike points drawn with replacement, no two are the same; samples can be compared with it as with any other.

        Raises:
            SnapshotError: if fewer than three points stay at a time.
        """
        if self.weights is None:
            return self
        chosen = rng.random(len(self.t)) < _of_largest(self.weights, self.t)
        for time in self.times:
            if (n := int(chosen[self.t == time].sum())) < MIN_POINTS_PER_TIME:
                raise SnapshotError(f"the weights at time {time:g} are too uneven to compare with: a sample in proportion "
                                    f"to them has {n} points")
        return Snapshots(_some(self.x, chosen), self.t[chosen], self.names)

    def split(self, fraction: float, rng: np.random.Generator) -> tuple[Snapshots, Snapshots | None]:
        """Holds out a fraction of every snapshot, at most 4096 points and as long as three stay; None if none can be."""
        held = np.zeros(len(self.t), dtype=bool)
        for time in self.times:
            rows = np.flatnonzero(self.t == time)
            n = min(round(fraction * len(rows)), MOST_HELD_OUT, len(rows) - MIN_POINTS_PER_TIME)
            held[rng.permutation(rows)[:max(n, 0)]] = True
        complete = all((self.t[held] == time).any() for time in self.times)
        return (self.subset(~held), self.subset(held)) if complete else (self, None)


def on_disk(x: Any) -> Any:
    """Returns points of a memory map as rows that stay on disk; None if they are something else."""
    if isinstance(x, np.memmap) and x.dtype.kind in "fiub" and x.ndim == 2:
        return Mapped(x)
    return x if isinstance(x, Mapped) else None


def _some(x: Array, chosen: NDArray[Any]) -> Array:
    """Some of the points, by a mask or their places; of points on disk nothing is read."""
    return cast(Array, x.part(chosen)) if isinstance(x, Mapped) else x[chosen]


def check_weights(weights: ArrayLike, n: int) -> Array:
    """Returns the weights of n points as numbers.

    Raises:
        SnapshotError: if they are not n finite numbers, one is negative, or all are zero.
    """
    weights = floats(weights, "weights")
    if weights.shape != (n,):
        raise SnapshotError(f"weights must have shape ({n},), one for each point, got {weights.shape}")
    bad = np.flatnonzero(~(np.isfinite(weights) & (weights >= 0)))
    if len(bad):
        raise SnapshotError(f"{len(bad)} weights are negative, missing or infinite, the first in row {bad[0]} "
                            f"({weights[bad[0]]:g})")
    if not weights.any():
        raise SnapshotError("all weights are zero; at least one must be positive")
    return weights


def dense(values: Any) -> Any:
    """Marks masked entries as missing, and refuses what would lose something as real numbers.

    Raises:
        SnapshotError: if there are complex numbers, dates or lengths of time.
    """
    if isinstance(values, (list, tuple)):
        values = np.asarray(values)
    if isinstance(values, np.ma.MaskedArray):
        values = np.where(np.ma.getmaskarray(values), np.nan, values.data)
    kind = getattr(getattr(values, "dtype", None), "kind", "")
    if kind == "c":
        raise SnapshotError("Complex data not supported; give real numbers")
    if kind in ("m", "M"):
        raise SnapshotError("dates and lengths of time have no one unit; give numbers, such as days since the first: "
                            "(t - t.min()) / np.timedelta64(1, 'D')")
    return values


def floats(values: Any, what: str) -> Array:
    """Returns an array of float64 from what users hand in.

    Raises:
        SnapshotError: if it is no array of numbers; it says of what.
    """
    try:
        return np.asarray(dense(values), dtype=np.float64)
    except SnapshotError as error:
        raise SnapshotError(f"{what}: {error}") from error
    except (TypeError, ValueError) as error:
        raise SnapshotError(f"{what} must be an array of numbers, all rows of one length ({error})") from error


def mean_and_variance(x: Array, weights: Array | None = None,
                      of: Callable[[Array], Array] = lambda points: points) -> tuple[Array, Array]:
    """The mean and variance of each coordinate, shape (d,), of points x, shape (n, d), with weights, shape (n,).

    Arguments:
        x: the points, in memory or on disk.
        weights: of the points; equal if left out.
        of: what is done to the points first.
    """
    if isinstance(x, Mapped):
        parts = ((block, None if weights is None else weights[place]) for place, block in blocks(x))
        return _merged((float(len(block) if own is None else own.sum()), *mean_and_variance(block, own, of))
                       for block, own in parts)
    x = of(x)
    if weights is None:
        return x.mean(0), x.var(0)
    mean = np.average(x, 0, weights)
    return mean, np.average((x - mean) ** 2, 0, weights)


def _merged(parts: Iterable[tuple[float, Array, Array]]) -> tuple[Array, Array]:
    """The mean and variance of all points from the weight, mean and variance of each part."""
    total, mean, variance = 0.0, np.zeros(()), np.zeros(())
    for weight, other, spread in parts:
        total += weight
        share = weight / total
        variance = (1 - share) * variance + share * spread + share * (1 - share) * (other - mean) ** 2
        mean = mean + share * (other - mean)
    return mean, variance


def _of_largest(weights: Array, t: Array) -> Array:
    """Weights, shape (n,), divided by the largest at the same time."""
    times, place = np.unique(t, return_inverse=True)
    largest = np.zeros(len(times))
    np.maximum.at(largest, place, weights)
    return weights / largest[place]


def _of_mean_one(weights: Array, t: Array) -> Array | None:
    """Weights, shape (n,), divided by the mean of those at the same time; None if all at the same time are equal."""
    weights = _of_largest(weights, t)
    if (weights == 1).all():
        return None
    place = np.unique(t, return_inverse=True)[1]
    return weights / (np.bincount(place, weights) / np.bincount(place))[place]


def check_finite(x: Array, t: Array, names: tuple[str, ...]) -> Array:
    """Refuses points, shape (n, d), or times, shape (n,), that are not finite.

    Returns:
        The largest absolute value of each coordinate, shape (d,), which tells it in one pass.

    Raises:
        SnapshotError: if one is not; it names the rows.
    """
    size = _largest(x)
    found = [] if np.isfinite(size).all() else [
        (place.start + rows, columns) for place, block in blocks(x)
        for rows, columns in [np.nonzero(~np.isfinite(block))] if len(rows)]
    if found:
        bad, columns = np.unique(np.concatenate([rows for rows, _ in found])), found[0][1]
        raise SnapshotError(f"{len(bad)} points have missing or infinite values (NaN or inf), in rows {listed(bad)}, the "
                            f"first in coordinate {names[columns[0]]!r}; drop or impute them")
    rows = np.flatnonzero(~np.isfinite(t))
    if len(rows):
        raise SnapshotError(f"{len(rows)} times are missing or infinite (NaN or inf), in rows {listed(rows)}; drop these "
                            "points")
    return size


def _largest(x: Array) -> Array:
    """The largest absolute value of each coordinate, shape (d,); not finite where there is one that is not."""
    return np.max([np.zeros(x.shape[1]), *(np.abs(block).max(0, initial=0) for _, block in blocks(x))], 0)


def _check_spread(x: Array, size: Array, weights: Array | None, names: tuple[str, ...]) -> None:
    """Refuses coordinates that do not vary, or too little for floating point."""
    # Squares of what is far from one would be lost.
    unit = np.where(size > 0, size, 1)
    spread = np.sqrt(mean_and_variance(x, weights, lambda points: points / unit)[1])
    place = int((spread > LEAST_SPREAD).argmin())
    if spread[place] <= LEAST_SPREAD:
        ends = [(block[:, place].min(), block[:, place].max()) for _, block in blocks(x)]
        raise SnapshotError(f"coordinate {names[place]!r} never varies; leave it out" if np.ptp(ends) == 0 else
                            f"coordinate {names[place]!r} varies by {spread[place]:.1g} of its size only; subtract what is "
                            "common to all points, or leave it out")
    place = int((spread * size).argmin())
    if spread[place] * size[place] < 1 / LARGEST**2:
        raise SnapshotError(f"coordinate {names[place]!r} varies by {spread[place] * size[place]:.1g}; change its unit")


def _check_range(x: Array, size: Array, times: Array, names: tuple[str, ...]) -> None:
    """Refuses what is lost in floating point: large values when squared, close times in float32."""
    for place, block in blocks(x) if (size > LARGEST).any() else ():
        rows, columns = np.nonzero(np.abs(block) > LARGEST)
        if len(rows):
            raise SnapshotError(f"coordinate {names[columns[0]]!r} has {block[rows[0], columns[0]]:g} in row "
                                f"{place.start + rows[0]}, beyond {LARGEST:g}; drop such points or change the unit")
    span = times[-1] - times[0]
    if not 1 / LARGEST < span < LARGEST:
        raise SnapshotError(f"times from {times[0]:g} to {times[-1]:g} are out of range; change their unit")
    close = int(np.diff(times).argmin())
    if times[close + 1] - times[close] < LEAST_GAP * span:
        raise SnapshotError(f"times {times[close]:.12g} and {times[close + 1]:.12g} are closer than {LEAST_GAP:g} of the "
                            "time from first to last; merge times that belong together")


def listed(places: Iterable[int | str]) -> str:
    """Lists the first five of some places or names, for a message."""
    shown = ["".join(letter if letter.isprintable() else "?" for letter in f"{place!s:.40}") for place in places]
    return ", ".join(shown[:5]) + (", ..." if len(shown) > 5 else "")

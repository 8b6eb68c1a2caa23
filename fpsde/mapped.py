"""Points that stay on disk: read when they are asked for, a few at random or all of them block by block."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Mapped", "blocks"]

Array = NDArray[np.float64]

BLOCK = 2**20


class Mapped:
    """Rows of an array on disk, indexed as an array of float64 would be; only what is indexed is read.

    Arguments:
        array: of numbers, shape (n, d), such as `numpy.load` gives with `mmap_mode="r"`.
        rows: which of its rows, shape (m,); all if left out.
        of: what is done to points that were read, shape (..., d).
    """

    dtype = np.dtype(np.float64)
    ndim = 2

    def __init__(self, array: NDArray[Any], rows: NDArray[Any] | None = None,
                 of: Callable[[Array], Array] | None = None) -> None:
        self._array, self._of = array, of
        self._rows = np.arange(len(array), dtype=np.int32 if len(array) < 2**31 else np.int64) if rows is None else rows

    @property
    def shape(self) -> tuple[int, int]:
        """Number of points and of coordinates."""
        return len(self._rows), self._array.shape[1]

    @property
    def size(self) -> int:
        """Number of values."""
        return self.shape[0] * self.shape[1]

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, place: Any) -> Array:
        points = self._array[self._rows[place]].astype(np.float64)
        return points if self._of is None else self._of(points)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return self[:] if dtype is None else self[:].astype(dtype)

    def part(self, chosen: NDArray[Any]) -> Mapped:
        """Some of the rows, by their places or a mask, still on disk."""
        return Mapped(self._array, self._rows[chosen], self._of)

    def through(self, function: Callable[[Array], Array]) -> Mapped:
        """The same rows, each block or choice of them taken by a function when it is read."""
        before = self._of
        return Mapped(self._array, self._rows, function if before is None else lambda points: function(before(points)))

    def and_then(self, others: list[Mapped]) -> Mapped:
        """These rows and those of others of the same array, one after the other."""
        return Mapped(self._array, np.concatenate([self._rows, *(other._rows for other in others)]), self._of)


def blocks(x: Array | Mapped) -> Iterator[tuple[slice, Array]]:
    """Points, shape (n, d), block by block with their places; what is in memory is one block."""
    if isinstance(x, Mapped):
        n = max(1, BLOCK // x.shape[1])
        for start in range(0, len(x), n):
            yield slice(start, start + n), x[start:start + n]
    else:
        yield slice(0, len(x)), x

"""Trajectories in an npy file that is written some paths at a time: the memory does not depend on how many there are."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from fpsde.files import written_atomically

__all__ = ["PathsFile"]

Array = NDArray[np.float64]


class PathsFile:
    """An npy file of shape (k, n, d) in float64, to be filled in any order.

    Arguments:
        file: what it is written to.
        shape: number of times k, of paths n and of coordinates d.
    """

    def __init__(self, file: BinaryIO, shape: tuple[int, int, int]) -> None:
        self._file, self._shape = file, shape
        npy.write_array_header_1_0(file, {"descr": "<f8", "fortran_order": False, "shape": shape})
        file.flush()
        self._start = file.tell()
        # Found out before the work, not after it, where the system can: too small a disk.
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, self._start + 8 * shape[0] * shape[1] * shape[2])

    def write(self, here: slice, part: Array) -> None:
        """Writes the trajectories, shape (k, m, d), of the paths at a place."""
        _, n, d = self._shape
        for k, points in enumerate(part):
            self._file.seek(self._start + 8 * d * (k * n + here.start))
            self._file.write(np.ascontiguousarray(points, dtype="<f8").data)

    @classmethod
    @contextmanager
    def at(cls, path: str | Path, shape: tuple[int, int, int]) -> Iterator[PathsFile]:
        """Opens a file beside its place, which takes its name when the block is left; after an error nothing stays.

        Raises:
            FileError: if it cannot be written.
        """
        with written_atomically(path) as file:
            yield cls(file, shape)

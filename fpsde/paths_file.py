"""Trajectories in an npy file that is written some paths at a time: the memory does not depend on how many there are."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from fpsde.checkpoint import ModelFileError, check_writable

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
        # Found out before the work, not after it: too small a disk.
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
            ModelFileError: if it cannot be written.
        """
        check_writable(path)
        target = Path(os.path.realpath(path))
        try:
            handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
            try:
                with os.fdopen(handle, "wb") as file:
                    yield cls(file, shape)
                    file.flush()
                    os.fsync(file.fileno())
                umask = os.umask(0)
                os.umask(umask)
                os.chmod(temporary, 0o666 & ~umask)
                os.replace(temporary, target)
            finally:
                with suppress(FileNotFoundError):
                    os.unlink(temporary)
        except OSError as error:
            raise ModelFileError(f"{path}: cannot be written ({error.strerror or error})") from error

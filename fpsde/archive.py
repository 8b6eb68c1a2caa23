"""Npz archives from anywhere: sizes are compared with the file's before anything is unpacked; nothing is unpickled."""

from __future__ import annotations

import math
import struct
import zipfile
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from fpsde.snapshots import SnapshotError

__all__ = ["Archive"]

NUMBERS = "fiub"
# What unpacks to more than this must not unpack to more than so many times the file's size.
UNPACKED, PACKED = 2**28, 200
# What is smaller is as well in memory.
LARGE = 2**28
# Of the two lengths, of name and extra field, in the header of an entry.
LENGTHS = 26


class Archive:
    """An npz file that is open for reading.

    Arguments:
        path: the file.

    Raises:
        SnapshotError: if it is none.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._zip = zipfile.ZipFile(path)
        except Exception as error:
            # What zipfile raises on damage is of many kinds.
            raise SnapshotError("not an npz file, or damaged; write one with numpy.savez") from error
        self.keys = [name.removesuffix(".npy") for name in self._zip.namelist() if name.endswith(".npy")]
        self._largest = max(UNPACKED, PACKED * path.stat().st_size)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._zip.close()

    def array(self, key: str, on_disk: bool = False) -> NDArray[np.float64]:
        """Reads one of the arrays.

        Arguments:
            key: its name.
            on_disk: whether a large one that is not packed may stay there: then it is a memory map of numbers of any kind.

        Raises:
            SnapshotError: if it does not hold numbers, is damaged, or unpacks to far more than the file.
        """
        entry = self._zip.getinfo(f"{key}.npy")
        if entry.file_size > self._largest:
            raise SnapshotError(f"array {key!r:.60} unpacks to {entry.file_size} bytes, far more than the file; if that is "
                                "meant, write it with numpy.savez, which does not pack")
        again = "write the file again with numpy.savez"
        try:
            with self._zip.open(entry) as file:
                read = npy.read_array_header_1_0 if npy.read_magic(file) == (1, 0) else npy.read_array_header_2_0
                shape, by_columns, dtype = read(file)
                size = entry.file_size - file.tell()
                fits = min(shape, default=0) >= 0 and math.prod(shape) * dtype.itemsize == size
                stays = (on_disk and fits and dtype.kind in NUMBERS and size >= LARGE and not by_columns
                         and entry.compress_type == zipfile.ZIP_STORED)
                if stays:
                    # To the end, where zipfile compares what it has read with what was written.
                    while file.read(UNPACKED // 16):
                        pass
                    return np.memmap(self._path, dtype, "r", self._start(entry) + entry.file_size - size, shape)
                content = file.read() if fits and dtype.kind in NUMBERS else b""
        except Exception as error:
            # So it is here, and with numpy's reader of headers.
            raise SnapshotError(f"array {key!r:.60} is damaged ({' '.join(str(error).split()):.200}); {again}") from error
        if dtype.kind not in NUMBERS:
            what = "holds objects, not numbers" if dtype.kind == "O" else f"is not numeric, its type is {str(dtype):.60}"
            raise SnapshotError(f"array {key!r:.60} {what}; save numbers, and times as days since the first")
        if not fits or len(content) != size:
            raise SnapshotError(f"array {key!r:.60} is damaged, {size} bytes are not of shape {str(shape):.60}; {again}")
        array: NDArray[Any] = np.frombuffer(content, dtype).reshape(shape, order="F" if by_columns else "C")
        with np.errstate(over="ignore"):
            return array.astype(np.float64)

    def _start(self, entry: zipfile.ZipInfo) -> int:
        """Where the content of an entry that is not packed begins in the file."""
        with self._path.open("rb") as file:
            file.seek(entry.header_offset + LENGTHS)
            name, extra = struct.unpack("<HH", file.read(4))
        return entry.header_offset + LENGTHS + 4 + name + extra

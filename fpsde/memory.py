"""Memory that is kept between the operations of a step instead of being given back to the system after each.

The C library returns large blocks to the system as soon as they are free and asks for them again at the next operation; the
system clears every page of them anew. A step that makes and drops tensors of megabytes spends up to half its time so.

References:
    The GNU C library, Malloc Tunable Parameters, https://sourceware.org/glibc/manual/latest/html_node/Malloc-Tunable-Parameters.html
"""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["kept_memory"]

TRIM_THRESHOLD, MMAP_THRESHOLD, MMAP_MAX = -1, -3, -4
# Where the library's own adjustment of its thresholds ends, and its limit of mapped blocks.
LARGEST_THRESHOLD, USUAL_MAPS = 32 * 2**20, 65536

_users = 0


@contextmanager
def kept_memory() -> Iterator[None]:
    """Keeps freed memory in the process while it lasts, and gives it back at the end.

    It does nothing where the C library is not glibc, or where the environment says how memory is to be handled.
    """
    global _users
    if platform.libc_ver()[0] != "glibc" or any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ):
        yield
        return
    library = ctypes.CDLL(None)
    _users += 1
    library.mallopt(MMAP_MAX, 0)
    library.mallopt(TRIM_THRESHOLD, -1)
    try:
        yield
    finally:
        _users -= 1
        if not _users:
            library.mallopt(MMAP_MAX, USUAL_MAPS)
            library.mallopt(MMAP_THRESHOLD, LARGEST_THRESHOLD)
            library.mallopt(TRIM_THRESHOLD, 2 * LARGEST_THRESHOLD)
            library.malloc_trim(0)

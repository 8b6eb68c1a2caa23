"""Files that are whole or not there: written beside their place, flushed and renamed; a digest tells damage."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

__all__ = ["FileError", "check_writable", "digest", "write_atomically", "written_atomically"]


class FileError(ValueError):
    """A file cannot be read or written; the message says why."""


def check_writable(path: str | Path, *inputs: str | Path) -> None:
    """Finds out before the work, not after it, that a file cannot or must not be written.

    Arguments:
        path: the file to write.
        inputs: files that are read, which it must not replace.

    Raises:
        FileError: if it is an input, or no file, if there is no folder for it, or without permission.
    """
    try:
        target = _target(path)
        for other in inputs:
            if os.path.exists(other) and os.path.exists(target) and os.path.samefile(other, target):
                raise FileError(f"{path}: not written over {other}, which is read; choose another file")
        if not target.parent.is_dir():
            raise FileError(f"{path}: cannot be written (no folder {target.parent})")
        if not os.access(target.parent, os.W_OK) or (target.exists() and not os.access(target, os.W_OK)):
            raise FileError(f"{path}: cannot be written (no permission)")
        # Written first beside its place, under a name that is longer by a few letters.
        with tempfile.NamedTemporaryFile(dir=target.parent, prefix=f".{target.name}."):
            pass
    except OSError as error:
        raise FileError(f"{path}: cannot be written ({error.strerror or error})") from error


@contextmanager
def written_atomically(path: str | Path) -> Iterator[BinaryIO]:
    """Opens a file beside its place; flushed, it takes its name when the block is left; of a link, what it points to.

    Raises:
        FileError: if that fails, or if there is something else than a file; after any error nothing is left behind.
    """
    try:
        target = _target(path)
        handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            umask = os.umask(0)
            os.umask(umask)
            os.chmod(temporary, 0o666 & ~umask)
            os.replace(temporary, target)
        finally:
            Path(temporary).unlink(missing_ok=True)
        _flush_folder(target.parent)
    except OSError as error:
        raise FileError(f"{path}: cannot be written ({error.strerror or error})") from error


def write_atomically(path: str | Path, content: bytes) -> None:
    """Writes a file whole or not at all, as :func:`written_atomically` does."""
    with written_atomically(path) as file:
        file.write(content)


def _target(path: str | Path) -> Path:
    """The file behind any links; refuses what is there and is no file, which a rename would destroy."""
    target = Path(os.path.realpath(path))
    if os.path.lexists(target) and not target.is_file():
        what = "a folder" if target.is_dir() else "no regular file"
        raise FileError(f"{path}: cannot be written (it is {what})")
    return target


def _flush_folder(folder: Path) -> None:
    """Writes a new name to disk, where the system can."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def digest(text: str, tensors: Mapping[str, Tensor]) -> str:
    """Returns the SHA-256, in hexadecimal, of a text and of the name, type, shape and bytes of tensors on the CPU."""
    total = hashlib.sha256(text.encode())
    for name, tensor in sorted(tensors.items()):
        total.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        # One without elements may have no stride to view bytes by.
        if tensor.numel():
            total.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return total.hexdigest()

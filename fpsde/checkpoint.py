"""Model files: weights and a JSON header in one safetensors file, without pickle, written atomically.

A digest of both is beside them. It tells damage, not forgery: who changes a file can write its digest anew.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

__all__ = ["FORMAT", "FORMAT_VERSION", "ModelFileError", "check_writable", "load_file", "save_file", "write_atomically"]

FORMAT = "fpsde-model"
FORMAT_VERSION = 3
# What each version that can be read keeps beside the weights.
METADATA = {"2": {"format", "version", "header"}, "3": {"format", "version", "header", "digest"}}
DTYPES = ("F32", "F64", "BOOL")
LARGEST_HEADER = 2**24


class ModelFileError(ValueError):
    """A model file cannot be read or written; the message says why."""


def save_file(path: str | Path, tensors: dict[str, Tensor], header: dict[str, Any]) -> None:
    """Writes tensors and a header to one file, whole or not at all.

    Arguments:
        path: the file to write.
        tensors: the weights by name.
        header: anything that JSON holds.

    Raises:
        ModelFileError: if the file cannot be written, if a tensor is not finite, or if the header is too large.
    """
    bad = [name for name, tensor in tensors.items() if not bool(torch.isfinite(tensor).all())]
    if bad:
        raise ModelFileError(f"{path}: not written, {bad[0]} is not finite; fit again, without outliers or with "
                             "fewer components")
    text = json.dumps(header)
    if len(text) > LARGEST_HEADER:
        raise ModelFileError(f"{path}: not written, the header has {len(text)} characters, more than {LARGEST_HEADER}; use "
                             "shorter names")
    cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_atomically(path, save(cpu, {"format": FORMAT, "version": str(FORMAT_VERSION), "header": text,
                                      "digest": digest(cpu, text)}))


def digest(tensors: dict[str, Tensor], header: str) -> str:
    """Returns the SHA-256, in hexadecimal, of a header and of the name, type, shape and bytes of every tensor, by name."""
    total = hashlib.sha256(header.encode())
    for name, tensor in sorted(tensors.items()):
        total.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        total.update(tensor.numpy().tobytes())
    return total.hexdigest()


def check_writable(path: str | Path, *inputs: str | Path) -> None:
    """Finds out before the work, not after it, that a file cannot or must not be written.

    Arguments:
        path: the file to write.
        inputs: files that are read, which it must not replace.

    Raises:
        ModelFileError: if it is an input, or no file, if there is no folder for it, or without permission.
    """
    try:
        target = _target(path)
        for other in inputs:
            if os.path.exists(other) and os.path.exists(target) and os.path.samefile(other, target):
                raise ModelFileError(f"{path}: not written over {other}, which is read; choose another file")
        if not target.parent.is_dir():
            raise ModelFileError(f"{path}: cannot be written (no folder {target.parent})")
        if not os.access(target.parent, os.W_OK) or (target.exists() and not os.access(target, os.W_OK)):
            raise ModelFileError(f"{path}: cannot be written (no permission)")
        # Written first beside its place, under a name that is longer by a few letters.
        with tempfile.NamedTemporaryFile(dir=target.parent, prefix=f".{target.name}."):
            pass
    except OSError as error:
        raise ModelFileError(f"{path}: cannot be written ({error.strerror or error})") from error


def write_atomically(path: str | Path, content: bytes) -> None:
    """Writes a file beside its place, flushes it to disk and renames it; of a link, what it points to.

    Raises:
        ModelFileError: if that fails, or if there is something else than a file; nothing is left behind.
    """
    temporary = None
    try:
        target = _target(path)
        handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, target)
        _flush_folder(target.parent)
    except OSError as error:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
        raise ModelFileError(f"{path}: cannot be written ({error.strerror or error})") from error


def _target(path: str | Path) -> Path:
    """The file behind any links; refuses what is there and is no file, which a rename would destroy."""
    target = Path(os.path.realpath(path))
    if os.path.lexists(target) and not target.is_file():
        what = "a folder" if target.is_dir() else "no regular file"
        raise ModelFileError(f"{path}: cannot be written (it is {what})")
    return target


def _flush_folder(folder: Path) -> None:
    """Writes a new name to disk, where the system can."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def load_file(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Reads what :func:`save_file` wrote.

    Returns:
        The tensors, on the CPU, and the header.

    Raises:
        ModelFileError: if the file is missing, damaged, not a model of this package, or of a later version.
    """
    path = Path(path)
    if not os.path.isfile(path):
        raise ModelFileError(f"{path}: {'a folder, not a file' if os.path.isdir(path) else 'no such file'}")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            _check_metadata(path, metadata)
            for name in file.keys():  # noqa: SIM118
                found = file.get_slice(name).get_dtype()
                if found not in DTYPES:
                    raise ModelFileError(f"{path}: damaged, {name!r:.60} is of type {found}, expected F32 or F64")
            # Copies: what is mapped into memory would change with the file, after it was checked, and lies at addresses
            # where products differ in the last bit.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        header = json.loads(metadata["header"])
    except ModelFileError:
        raise
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        said = "".join(letter if letter.isprintable() else " " for letter in f"{error!s:.200}")
        raise ModelFileError(f"{path}: not a model file, or damaged ({said})") from error
    if metadata["version"] != "2" and metadata["digest"] != digest(tensors, metadata["header"]):
        raise ModelFileError(f"{path}: damaged, its content is not what its digest says; fetch the file again or fit again")
    if not isinstance(header, dict) or not all(bool(torch.isfinite(v).all()) for v in tensors.values()):
        raise ModelFileError(f"{path}: damaged, its header or weights are not usable")
    return tensors, header


def _check_metadata(path: Path, metadata: dict[str, str]) -> None:
    """Refuses what is no model file, of a version that is not known, or has more or less beside the weights than that."""
    if metadata.get("format") != FORMAT:
        raise ModelFileError(f"{path}: not a model file of fpsde")
    version = metadata.get("version", "")
    if version not in METADATA:
        raise ModelFileError(f"{path}: model format {version!r:.20}, this fpsde reads {' and '.join(METADATA)}; "
                             f"{'fit again' if version in ('0', '1') else 'update fpsde'}")
    for name in sorted(metadata.keys() ^ METADATA[version]):
        what = "missing" if name in METADATA[version] else "unknown in this version"
        raise ModelFileError(f"{path}: damaged, {name!r:.60} is {what}")
    if len(metadata["header"]) > LARGEST_HEADER:
        raise ModelFileError(f"{path}: damaged, its header has more than {LARGEST_HEADER} characters")

"""Model files: weights and a JSON header in one safetensors file, without pickle, written atomically."""

from __future__ import annotations

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
FORMAT_VERSION = 2
DTYPES = (torch.float32, torch.float64, torch.bool)


class ModelFileError(ValueError):
    """A model file cannot be read or written; the message says why."""


def save_file(path: str | Path, tensors: dict[str, Tensor], header: dict[str, Any]) -> None:
    """Writes tensors and a header to one file, whole or not at all.

    Arguments:
        path: the file to write.
        tensors: the weights by name.
        header: anything that JSON holds.

    Raises:
        ModelFileError: if the file cannot be written, or if a tensor is not finite.
    """
    bad = [name for name, tensor in tensors.items() if not bool(torch.isfinite(tensor).all())]
    if bad:
        raise ModelFileError(f"{path}: not written, {bad[0]} is not finite; fit again, without outliers or with "
                             "fewer components")
    metadata = {"format": FORMAT, "version": str(FORMAT_VERSION), "header": json.dumps(header)}
    cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_atomically(path, save(cpu, metadata))


def check_writable(path: str | Path) -> None:
    """Finds out before the work, not after it, that a file cannot be written.

    Raises:
        ModelFileError: if it is a folder, if there is no folder for it, or without permission.
    """
    target = Path(path)
    try:
        if target.is_dir():
            raise ModelFileError(f"{path}: cannot be written (it is a folder)")
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
    """Writes a file beside its place, flushes it to disk and renames it.

    Raises:
        ModelFileError: if that fails; nothing is left behind.
    """
    path = Path(path)
    temporary = None
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, path)
        _flush_folder(path.parent)
    except OSError as error:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
        raise ModelFileError(f"{path}: cannot be written ({error.strerror or error})") from error


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
        raise ModelFileError(f"{path}: no such file")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise ModelFileError(f"{path}: not a model file of fpsde")
            version = metadata.get("version", "")
            if version != str(FORMAT_VERSION):
                what = "fit again" if version.isdecimal() and int(version) < FORMAT_VERSION else "update fpsde"
                raise ModelFileError(f"{path}: model format {version!r}, this fpsde reads {FORMAT_VERSION}; {what}")
            # Copies: where a tensor lies in the file, its address is not a multiple of what sums are taken in, and the last
            # bit of a product differs from that of the model that was saved.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
            header = json.loads(metadata["header"])
    except (SafetensorError, OSError, KeyError, json.JSONDecodeError) as error:
        raise ModelFileError(f"{path}: not a model file, or damaged ({error})") from error
    for name, tensor in tensors.items():
        if tensor.dtype not in DTYPES:
            raise ModelFileError(f"{path}: damaged, {name} is of type {tensor.dtype}, expected float32 or float64")
    if not isinstance(header, dict) or not all(bool(torch.isfinite(v).all()) for v in tensors.values()):
        raise ModelFileError(f"{path}: damaged, its header or weights are not usable")
    return tensors, header

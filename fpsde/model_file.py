"""Model files: weights and a JSON header in one safetensors file, without pickle, written atomically.

A digest of both is beside them. It tells damage, not forgery: who changes a file can write its digest anew.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from fpsde.files import FileError, digest, write_atomically

__all__ = ["FORMAT", "FORMAT_VERSION", "load_file", "save_file"]

FORMAT = "fpsde-model"
FORMAT_VERSION = 4
# What each version that can be read keeps beside the weights.
METADATA = {"2": {"format", "version", "header"}, "3": {"format", "version", "header", "digest"},
            "4": {"format", "version", "header", "digest"}}
# Of these masked conditioners had matrices, which are no longer computed with.
MATRICES, MASK = ("2", "3"), "conditioner.before"
DTYPES = ("F32", "F64", "BOOL")
LARGEST_HEADER = 2**24


def save_file(path: str | Path, tensors: dict[str, Tensor], header: dict[str, Any]) -> None:
    """Writes tensors and a header to one file, whole or not at all.

    Arguments:
        path: the file to write.
        tensors: the weights by name.
        header: anything that JSON holds.

    Raises:
        FileError: if the file cannot be written, if a tensor is not finite, or if the header is too large.
    """
    bad = [name for name, tensor in tensors.items() if not bool(torch.isfinite(tensor).all())]
    if bad:
        raise FileError(f"{path}: not written, {bad[0]} is not finite; fit again, without outliers or with "
                        "fewer components")
    text = json.dumps(header)
    if len(text) > LARGEST_HEADER:
        raise FileError(f"{path}: not written, the header has {len(text)} characters, more than {LARGEST_HEADER}; use "
                        "shorter names")
    cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_atomically(path, save(cpu, {"format": FORMAT, "version": str(FORMAT_VERSION), "header": text,
                                      "digest": digest(text, cpu)}))


def load_file(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Reads what :func:`save_file` wrote.

    Returns:
        The tensors, on the CPU, and the header.

    Raises:
        FileError: if the file is missing, damaged, not a model of this package, or of a later version.
    """
    path = Path(path)
    if not os.path.isfile(path):
        raise FileError(f"{path}: {'a folder, not a file' if os.path.isdir(path) else 'no such file'}")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            _check_metadata(path, metadata)
            for name in file.keys():  # noqa: SIM118
                found = file.get_slice(name).get_dtype()
                if found not in DTYPES:
                    raise FileError(f"{path}: damaged, {name!r:.60} is of type {found}, expected F32 or F64")
            # Copies: what is mapped into memory would change with the file, after it was checked, and lies at addresses
            # where products differ in the last bit.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        header = json.loads(metadata["header"])
    except FileError:
        raise
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        said = "".join(letter if letter.isprintable() else " " for letter in f"{error!s:.200}")
        raise FileError(f"{path}: not a model file, or damaged ({said})") from error
    if metadata["version"] != "2" and metadata["digest"] != digest(metadata["header"], tensors):
        raise FileError(f"{path}: damaged, its content is not what its digest says; fetch the file again or fit again")
    if metadata["version"] in MATRICES and any(name.endswith(MASK) for name in tensors):
        raise FileError(f"{path}: model format {metadata['version']} with conditioner 'masked', which is no longer read; "
                        "fit again")
    if not isinstance(header, dict) or not all(bool(torch.isfinite(v).all()) for v in tensors.values()):
        raise FileError(f"{path}: damaged, its header or weights are not usable")
    return tensors, header


def _check_metadata(path: Path, metadata: dict[str, str]) -> None:
    """Refuses what is no model file, of a version that is not known, or has more or less beside the weights than that."""
    if metadata.get("format") != FORMAT:
        raise FileError(f"{path}: not a model file of fpsde")
    version = metadata.get("version", "")
    if version not in METADATA:
        raise FileError(f"{path}: model format {version!r:.20}, this fpsde reads {min(METADATA)} to {max(METADATA)}; "
                        f"{'fit again' if version in ('0', '1') else 'update fpsde'}")
    for name in sorted(metadata.keys() ^ METADATA[version]):
        what = "missing" if name in METADATA[version] else "unknown in this version"
        raise FileError(f"{path}: damaged, {name!r:.60} is {what}")
    if len(metadata["header"]) > LARGEST_HEADER:
        raise FileError(f"{path}: damaged, its header has more than {LARGEST_HEADER} characters")

"""States of work that is not finished, in files: a tree of tensors, numbers and words in one safetensors file, no pickle.

The tensors are under the paths that lead to them; the rest of the tree is JSON in the file's metadata, with the whole
numbers of any size and the floats bit for bit. A digest over both tells a file that was damaged later.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from fpsde.files import digest, write_atomically
from fpsde.train import State

__all__ = ["StateFileError", "read_state", "write_state"]

FORMAT = "fpsde-state"
FORMAT_VERSION = "2"
TENSOR = "tensor at"


class StateFileError(ValueError):
    """A state cannot be read; the message says why."""


def write_state(path: Path, state: State) -> None:
    """Writes a state to one file, whole or not at all.

    Raises:
        FileError: if the file cannot be written; nothing is left behind.
    """
    tensors: dict[str, Tensor] = {}
    tree = json.dumps(_take_out(state, "", tensors))
    metadata = {"format": FORMAT, "version": FORMAT_VERSION, "tree": tree, "digest": digest(tree, tensors)}
    write_atomically(path, save(tensors, metadata))


def read_state(path: Path) -> State:
    """Reads what :func:`write_state` wrote; tensors are on the CPU.

    Raises:
        StateFileError: if the file is missing, damaged, something else, or of another version.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise StateFileError(f"{path}: not a checkpoint of fpsde")
            if metadata.get("version") != FORMAT_VERSION:
                raise StateFileError(f"{path}: written by another version of fpsde")
            # Copies, for the file may be removed.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        tree = metadata["tree"]
        if digest(tree, tensors) != metadata["digest"]:
            raise StateFileError(f"{path}: damaged, its content is not what was written")
        state: State = _put_back(json.loads(tree), tensors)
    except StateFileError:
        raise
    except (SafetensorError, OSError, LookupError, TypeError, ValueError, RecursionError) as error:
        raise StateFileError(f"{path}: damaged ({' '.join(str(error).split()):.200})") from error
    return state


def _take_out(node: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    """Moves the tensors of a tree, below a path, to a place of their own."""
    if isinstance(node, Tensor):
        tensors[path] = node.detach().cpu().clone(memory_format=torch.contiguous_format)
        return {TENSOR: path}
    if isinstance(node, dict):
        return {name: _take_out(part, f"{path}/{name}", tensors) for name, part in node.items()}
    if isinstance(node, (list, tuple)):
        return [_take_out(part, f"{path}/{place}", tensors) for place, part in enumerate(node)]
    return node


def _put_back(node: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(node, dict):
        return tensors[node[TENSOR]] if TENSOR in node else {k: _put_back(part, tensors) for k, part in node.items()}
    return [_put_back(part, tensors) for part in node] if isinstance(node, list) else node

"""What users pass to the estimator, checked and brought into one form."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import MethodType
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from fpsde.snapshots import SnapshotError

__all__ = ["Setting", "check_positive", "known_diffusion", "plain", "times_of", "to_numpy", "which_positive"]

Array = NDArray[np.float64]


class Setting:
    """A constructor argument that shares its name with a method.

    Assigning stores the argument, as scikit-learn wants it; reading gives the bound method, as users want it;
    `get_params` returns the argument.
    """

    def __init__(self, method: Callable[..., Any]) -> None:
        self._method = method
        self.__doc__ = method.__doc__

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __set__(self, instance: object, value: Any) -> None:
        vars(instance)[self._name] = value

    def __get__(self, instance: object | None, owner: type | None = None) -> Callable[..., Any]:
        return self._method if instance is None else MethodType(self._method, instance)


def to_numpy(values: Any) -> Any:
    """Turns torch tensors into numpy arrays and leaves everything else to scikit-learn."""
    return values.detach().cpu().numpy() if isinstance(values, torch.Tensor) else values


def times_of(t: ArrayLike, n: int) -> Array:
    """Returns n times from one or n of them, shape (n,)."""
    times = np.asarray(to_numpy(t), dtype=np.float64)
    if times.shape not in ((), (n,)) or not np.isfinite(times).all():
        raise ValueError(f"times must be one finite number or {n} of them, got shape {times.shape}")
    return np.full(n, times)


def known_diffusion(diffusion: Any, dim: int) -> tuple[float, ...]:
    """Returns the level of every coordinate from one number or d of them."""
    try:
        values = np.asarray(to_numpy(diffusion), dtype=np.float64)
    except (TypeError, ValueError):
        values = np.full(0, np.nan)
    if values.shape not in ((), (dim,)) or not np.isfinite(values).all() or (values < 0).any():
        raise ValueError("diffusion must be 'state', 'constant', or known values that are not negative, one number or "
                         f"{dim}, got {diffusion!r}")
    return tuple(np.broadcast_to(values, (dim,)).tolist())


def which_positive(wanted: bool | Sequence[str | int], names: tuple[str, ...]) -> tuple[bool, ...]:
    """Which coordinates are meant: all, none, or those of the given names or places."""
    if isinstance(wanted, (bool, np.bool_)):
        return (bool(wanted),) * len(names)
    places = range(len(names))
    unknown = [v for v in wanted if v not in names and not (isinstance(v, (int, np.integer)) and v in places)]
    if unknown or isinstance(wanted, str):
        missing = unknown[0] if unknown else wanted
        raise ValueError(f"positive must be True, False or coordinates, there is no {missing!r} among {', '.join(names)}")
    return tuple(name in wanted or i in wanted for i, name in enumerate(names))


def check_positive(x: Array, positive: NDArray[np.bool_], names: tuple[str, ...]) -> None:
    """Refuses points, shape (n, d), that are not above zero where they are said to be."""
    rows, columns = np.nonzero((x <= 0) & positive)
    if len(rows):
        raise SnapshotError(f"coordinate {names[columns[0]]!r} is said to be positive, but row {rows[0]} has "
                            f"{x[rows[0], columns[0]]:g}; leave it out of `positive`, or drop the {len(np.unique(rows))} "
                            "points of that kind")


def plain(parameters: dict[str, Any]) -> dict[str, Any]:
    """The parameters as JSON holds them; a random state that is no number is left out."""
    plain = {name: value.tolist() if isinstance(value, (np.ndarray, np.generic)) else value
             for name, value in parameters.items()}
    plain["hidden"] = list(plain["hidden"])
    plain["positive"] = plain["positive"] if isinstance(plain["positive"], bool) else list(plain["positive"])
    plain["diffusion"] = to_numpy(plain["diffusion"])
    if isinstance(plain["diffusion"], np.ndarray):
        plain["diffusion"] = plain["diffusion"].tolist()
    if not isinstance(plain["random_state"], (int, type(None))):
        plain["random_state"] = None
    return plain

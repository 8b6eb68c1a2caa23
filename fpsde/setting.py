"""Constructor arguments: those that share their name with a method, and levels of noise."""

from __future__ import annotations

from collections.abc import Callable
from types import MethodType
from typing import Any

import numpy as np
from torch import Tensor

__all__ = ["Setting", "known_levels"]


class Setting:
    """Makes of a method a constructor argument too.

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


def known_levels(diffusion: Any, dim: int) -> tuple[float, ...]:
    """Returns known levels of noise, one number or an array, as one for each of the d coordinates.

    Raises:
        ValueError: if they are anything else.
    """
    try:
        values = np.asarray(diffusion.cpu() if isinstance(diffusion, Tensor) else diffusion, dtype=np.float64)
    except (TypeError, ValueError):
        values = np.full(0, np.nan)
    if values.shape not in ((), (dim,)) or not np.isfinite(values).all() or (values < 0).any():
        raise ValueError("diffusion must be 'state', 'constant', a function of (X, t), or known values that are not "
                         f"negative, one number or {dim}, got {diffusion!r}")
    return tuple(np.broadcast_to(values, (dim,)).tolist())

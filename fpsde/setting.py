"""Constructor arguments of an estimator that share their name with a method."""

from __future__ import annotations

from collections.abc import Callable
from types import MethodType
from typing import Any

__all__ = ["Setting"]


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

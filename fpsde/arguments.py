"""What users pass to the estimator, checked and brought into one form."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from types import MethodType
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from fpsde.config import IdentificationConfig
from fpsde.snapshots import SnapshotError, Snapshots, refuse_dates

__all__ = ["Setting", "check_positive", "fit_config", "positive_places", "times_of", "to_numpy"]

Array = NDArray[np.float64]

UNEVEN = 1.5


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
    """Turns torch tensors into numpy arrays, refuses dates, and leaves everything else to scikit-learn."""
    refuse_dates(values)
    return values.detach().cpu().numpy() if isinstance(values, torch.Tensor) else values


def times_of(t: ArrayLike, n: int) -> Array:
    """Returns n times from one or n of them, shape (n,)."""
    times = np.asarray(to_numpy(t), dtype=np.float64)
    if times.shape not in ((), (n,)) or not np.isfinite(times).all():
        got = times[~np.isfinite(times)][0] if times.shape in ((), (n,)) else f"shape {times.shape}"
        raise ValueError(f"times must be one finite number{f' or {n} of them' if n != 1 else ''}, got {got}")
    return np.full(n, times)


def _known_levels(diffusion: Any, dim: int) -> tuple[float, ...]:
    """Returns known levels of noise, one number or an array, as one for each of the d coordinates.

    Raises:
        ValueError: if they are anything else.
    """
    try:
        values = np.asarray(to_numpy(diffusion), dtype=np.float64)
    except (TypeError, ValueError):
        values = np.full(0, np.nan)
    if values.shape not in ((), (dim,)) or not np.isfinite(values).all() or (values < 0).any():
        raise ValueError("diffusion must be 'state', 'constant', a function of (X, t), or known values that are not "
                         f"negative, one number or {dim}, got {diffusion!r}")
    return tuple(np.broadcast_to(values, (dim,)).tolist())


def positive_places(wanted: bool | Sequence[str | int], names: tuple[str, ...]) -> list[int]:
    """Returns the places of the coordinates that are meant: all, none, or those of the given names or places.

    Raises:
        ValueError: if there is no such coordinate.
    """
    if isinstance(wanted, (bool, np.bool_)):
        return list(range(len(names))) if wanted else []
    places = range(len(names))
    unknown = [v for v in wanted if v not in names and not (isinstance(v, (int, np.integer)) and v in places)]
    if unknown or isinstance(wanted, str):
        missing = unknown[0] if unknown else wanted
        raise ValueError(f"positive must be True, False or coordinates, there is no {missing!r} among {', '.join(names)}")
    return [i for i, name in enumerate(names) if name in wanted or i in wanted]


def check_positive(x: Array, positive: NDArray[np.bool_], names: tuple[str, ...]) -> None:
    """Refuses points, shape (n, d), that are not above zero where they are said to be."""
    rows, columns = np.nonzero((x <= 0) & positive)
    if len(rows):
        raise SnapshotError(f"coordinate {names[columns[0]]!r} is said to be positive, but row {rows[0]} has "
                            f"{x[rows[0], columns[0]]:g}; leave it out of `positive`, or drop the {len(np.unique(rows))} "
                            "points of that kind")


def fit_config(given: dict[str, Any], data: Snapshots) -> IdentificationConfig:
    """Returns how to fit, from the estimator's parameters by name.

    Raises:
        ValueError: if a parameter cannot be used, alone or with another or with the data.
    """
    drift, diffusion = given["drift"], given["diffusion"]
    if drift not in ("time", "autonomous", "gradient"):
        raise ValueError(f"drift must be 'time', 'autonomous' or 'gradient', got {drift!r}")
    if given["drift_prior"] is not None and not callable(given["drift_prior"]):
        raise ValueError(f"drift_prior must be a function of (X, t) or None, got {given['drift_prior']!r}")
    if not callable(diffusion) and not (isinstance(diffusion, str) and diffusion in ("state", "constant")):
        diffusion = _known_levels(diffusion, data.dim)
    for name, least in (("n_components", 1), ("max_steps", 1), ("n_members", 1)):
        if not isinstance(given[name], (int, np.integer)) or given[name] < least:
            raise ValueError(f"{name} must be a whole number of at least {least}, got {given[name]!r}")
    if not 0 <= given["validation_fraction"] < 1:
        raise ValueError(f"validation_fraction must be at least 0 and below 1, got {given['validation_fraction']!r}")
    places = positive_places(given["positive"], data.names)
    positive = tuple(i in places for i in range(data.dim))
    check_positive(data.x, np.array(positive), data.names)
    if any(positive) and drift == "gradient":
        raise ValueError("drift='gradient' is a gradient in data units; with `positive` use 'autonomous'")
    if any(positive) and isinstance(diffusion, tuple):
        raise ValueError("known noise of positive coordinates must be a function: diffusion=lambda X, t: 0.3 * X")
    growth = given["growth"]
    if growth not in (None, "learned", "counts"):
        raise ValueError(f"growth must be None, 'learned' or 'counts', got {growth!r}")
    if growth is not None and drift == "time":
        raise ValueError("a drift free in time can make up for any growth: with growth use drift='autonomous'")
    counts = np.array([len(x) for x in data.groups()])
    if growth is None and counts.max() > UNEVEN * counts.min():
        warnings.warn(f"the number of points at a time varies from {counts.min()} to {counts.max()}, which is taken to say "
                      "nothing; where points multiply or die, fit with growth='learned', or growth='counts' if these "
                      "numbers are the size of the population", UserWarning, stacklevel=3)
    return IdentificationConfig(
        n_components=int(given["n_components"]), drift=drift, drift_prior=given["drift_prior"], diffusion=diffusion,
        positive=positive, growth=growth, conditioner=given["conditioner"], hidden=tuple(given["hidden"]),
        steps=int(given["max_steps"]), held_out=float(given["validation_fraction"]))

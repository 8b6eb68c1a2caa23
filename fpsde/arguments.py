"""What users pass to the estimator, checked and brought into one form."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from types import MethodType
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator
from sklearn.utils.validation import validate_data

from fpsde.config import IdentificationConfig
from fpsde.mapped import blocks
from fpsde.snapshots import SnapshotError, Snapshots, dense, floats, listed, mean_and_variance, on_disk

__all__ = ["Setting", "check_positive", "checked", "fit_config", "positive_places", "times_of", "to_numpy"]

Array = NDArray[np.float64]

UNEVEN = 1.5
UNLIKE = 1e9


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
    """Turns torch tensors into numpy arrays, masked entries into NaN, and leaves everything else to scikit-learn.

    Raises:
        SnapshotError: if there are complex numbers or dates.
    """
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu()
        values = (values.float() if values.dtype == torch.bfloat16 else values).numpy()
    return dense(values)


def checked(estimator: BaseEstimator, x: Any, y: Any = "no_validation", **options: Any) -> Any:
    """Brings points, and times if there are any, into arrays by scikit-learn's rules; what is not finite is left in.

    Points in a memory map that `fit` is given with times stay where they are.

    Raises:
        TypeError, ValueError: if they cannot be used.
    """
    x, y = to_numpy(x), to_numpy(y)
    if getattr(getattr(y, "dtype", None), "kind", "") in ("O", "U", "S"):
        y = floats(y, "times")
    if isinstance(y, np.ndarray) and y.dtype.kind == "f" and not np.isfinite(y).all():
        rows = np.flatnonzero(~np.isfinite(y))
        raise SnapshotError(f"{len(rows)} times are missing or infinite (NaN or inf), in rows {listed(rows)}; drop these "
                            "points")
    try:
        if y is not None and not isinstance(y, str) and on_disk(x) is not None:
            # Something of its shape that takes no memory.
            shape = np.broadcast_to(np.zeros(()), x.shape)
            return x, validate_data(estimator, shape, y, dtype=None, ensure_all_finite=False, **options)[1]
        return validate_data(estimator, x, y, dtype=np.float64, ensure_all_finite=False, **options)
    except ValueError as error:
        if "could not convert" not in str(error):
            raise
        words = [name for name, dtype in getattr(x, "dtypes", {}).items() if getattr(dtype, "kind", "O") not in "fiub"]
        raise SnapshotError(f"points must be numbers ({error}); turn words into numbers or leave their columns out"
                            f"{f', here {listed(words)}' if words else ''}") from error


def times_of(t: ArrayLike, n: int) -> Array:
    """Returns n times from one or n of them, shape (n,)."""
    times = floats(to_numpy(t), "times")
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


def _whole(value: Any) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool) and int(value) >= 1


def positive_places(wanted: bool | Sequence[str | int], names: tuple[str, ...]) -> list[int]:
    """Returns the places of the coordinates that are meant: all, none, or those of the given names or places.

    Raises:
        ValueError: if there is no such coordinate.
    """
    if isinstance(wanted, (bool, np.bool_)):
        return list(range(len(names))) if wanted else []
    if not isinstance(wanted, (Sequence, np.ndarray)):
        raise ValueError(f"positive must be True, False or coordinates by name or place, got {wanted!r}")
    places = range(len(names))
    unknown = [v for v in wanted if v not in names and not (isinstance(v, (int, np.integer)) and v in places)]
    if unknown or isinstance(wanted, str):
        missing = unknown[0] if unknown else wanted
        raise ValueError(f"positive must be True, False or coordinates, there is no {missing!r} among {', '.join(names)}")
    return [i for i, name in enumerate(names) if name in wanted or i in wanted]


def check_positive(x: Array, positive: NDArray[np.bool_], names: tuple[str, ...]) -> None:
    """Refuses points, shape (n, d), that are not above zero where they are said to be."""
    found = [(place.start + rows, columns, block[rows[0], columns[0]]) for place, block in blocks(x)
             for rows, columns in [np.nonzero((block <= 0) & positive)] if len(rows)]
    if found:
        rows, columns, value = found[0]
        count = sum(len(np.unique(part)) for part, *_ in found)
        raise SnapshotError(f"coordinate {names[columns[0]]!r} is said to be positive, but row {rows[0]} has {value:g}; "
                            f"leave it out of `positive`, or drop the {count} points of that kind")


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
    for name in ("n_components", "max_steps", "n_members"):
        if not _whole(given[name]):
            raise ValueError(f"{name} must be a whole number of at least 1, got {given[name]!r}")
    hidden = given["hidden"]
    if not isinstance(hidden, Sequence) or isinstance(hidden, str) or not hidden or not all(map(_whole, hidden)):
        raise ValueError(f"hidden must be a sequence of widths, whole numbers of at least 1, got {hidden!r}")
    if given["conditioner"] not in ("leave-one-out", "masked"):
        raise ValueError(f"conditioner must be 'leave-one-out' or 'masked', got {given['conditioner']!r}")
    if not (given["compile"] == "auto" or isinstance(given["compile"], (bool, np.bool_))):
        raise ValueError(f"compile must be 'auto', True or False, got {given['compile']!r}")
    share = given["validation_fraction"]
    if share is None:
        # Inner leave-outs were nearer with 5 % where the drift is free in time; the moments gained nothing by it.
        share = 0.05 if drift == "time" else 0.1
    if not isinstance(share, (int, float, np.floating)) or not 0 <= share < 1:
        raise ValueError(f"validation_fraction must be at least 0 and below 1, got {share!r}")
    places = positive_places(given["positive"], data.names)
    positive = tuple(i in places for i in range(data.dim))
    if any(positive):
        check_positive(data.x, np.array(positive), data.names)
    widths = np.sqrt(mean_and_variance(data.x)[1]) if drift == "gradient" else np.ones(data.dim)
    if widths.max() > UNLIKE * widths.min():
        raise ValueError(f"drift='gradient' is a gradient in data units, one for all coordinates, but their spreads go "
                         f"from {widths.min():.1g} to {widths.max():.1g}; bring them to one unit or use 'autonomous'")
    if any(positive) and drift == "gradient":
        raise ValueError("drift='gradient' is a gradient in data units; with `positive` use 'autonomous'")
    if any(positive) and isinstance(diffusion, tuple):
        raise ValueError("known noise of positive coordinates must be a function, which only Python takes: "
                         "diffusion=lambda X, t: 0.3 * X")
    growth = given["growth"]
    if growth not in (None, "learned", "counts"):
        raise ValueError(f"growth must be None, 'learned' or 'counts', got {growth!r}")
    if growth is not None and drift == "time":
        raise ValueError("a drift free in time can make up for any growth: with growth use drift='autonomous'")
    counts = data.counts
    if growth is None and counts.max() > UNEVEN * counts.min():
        how = "drift='autonomous' and " if drift == "time" else ""
        warnings.warn(f"the number of points at a time varies from {counts.min()} to {counts.max()}, which is taken to say "
                      f"nothing; where points multiply or die, fit with {how}growth='learned', or growth='counts' if these "
                      "numbers are the size of the population", UserWarning, stacklevel=3)
    return IdentificationConfig(
        n_components=int(given["n_components"]), drift=drift, drift_prior=given["drift_prior"], diffusion=diffusion,
        positive=positive, growth=growth, conditioner=given["conditioner"], hidden=tuple(hidden),
        steps=int(given["max_steps"]), held_out=float(share),
        compile=None if given["compile"] == "auto" else bool(given["compile"]))

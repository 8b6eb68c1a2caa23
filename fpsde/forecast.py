r"""Bands for what a population will do, from members that were each fitted to a resample of the data.

With the statistic's mean :math:`\bar v` and standard deviation s over m members, the band of level q is

.. math:: \bar v \pm t_{m-1,\,(1+q)/2}\; s\, \sqrt{1 + 1/m}

the prediction interval of one more draw from the members' law: the truth is taken to err from their mean as a member does.

References:
    The Bayesian bootstrap (Rubin, 1981), https://doi.org/10.1214/aos/1176345338
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import t as student

__all__ = ["Forecast", "Statistic", "check_band", "prediction_band", "values_at"]

Array = NDArray[np.float64]
Statistic = Callable[[Array], ArrayLike]

MIN_MEMBERS = 3


class Forecast(NamedTuple):
    """A statistic of the population at increasing times, with its band."""

    times: Array
    """The k times, shape (k,)."""
    mean: Array
    """Mean over the members, shape (k, ...), with what the statistic returns in place of the dots."""
    low: Array
    """Lower end of the band, shape (k, ...)."""
    high: Array
    """Upper end of the band, shape (k, ...)."""


def check_band(m: int, level: float) -> None:
    """Refuses a band of fewer than three members m, or of a level that is not between 0 and 1."""
    if m < MIN_MEMBERS:
        raise ValueError(f"a band needs {MIN_MEMBERS} or more members, got {m}: fit with n_members={MIN_MEMBERS} or more")
    if not 0 < level < 1:
        raise ValueError(f"level must be between 0 and 1, got {level!r}")


def prediction_band(times: Array, values: Array, level: float) -> Forecast:
    """The band of a statistic from its values for every member.

    Arguments:
        times: the k times, shape (k,).
        values: of m members, shape (m, k, ...).
        level: chance that the band of one number at one time holds the truth, between 0 and 1.

    Raises:
        ValueError: if there are fewer than three members, or the level is not between 0 and 1.
    """
    m = len(values)
    check_band(m, level)
    mean = values.mean(0)
    half = float(student.ppf((1 + level) / 2, m - 1)) * math.sqrt(1 + 1 / m) * values.std(0, ddof=1)
    return Forecast(times, mean, mean - half, mean + half)


def values_at(populations: Sequence[Array], statistic: Statistic | None) -> Array:
    """A statistic, the mean of each coordinate if None, of k populations of shape (n, d): shape (k, ...).

    Raises:
        ValueError: if it returns anything but finite numbers, as many for every population.
    """
    values = [np.asarray(x.mean(0) if statistic is None else statistic(x), dtype=np.float64) for x in populations]
    shapes = {v.shape for v in values}
    if len(shapes) > 1 or not all(np.isfinite(v).all() for v in values):
        raise ValueError("statistic must return finite numbers, as many for every population of shape (n, d); got shapes "
                         f"{', '.join(map(str, sorted(shapes)))}")
    return np.stack(values)

"""Errors against a known truth, and how tables show them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from systems import Array

__all__ = ["relative_error", "spread"]


def relative_error(value: Array, truth: Array) -> float:
    """Root mean square of the difference over that of the truth, all coordinates together."""
    return float(np.sqrt(((value - truth) ** 2).sum() / (truth**2).sum()))


def spread(values: Sequence[float | None], factor: float = 100.0, digits: int = 1, short: bool = False) -> str:
    """Median of the values that are there, with least and largest, in % unless asked otherwise; short, a value alone."""
    there = factor * np.array([v for v in values if v is not None])
    if not len(there):
        return ""
    middle = f"{np.median(there):.{digits}f}"
    return middle if short and len(values) == 1 else f"{middle} ({there.min():.{digits}f} to {there.max():.{digits}f})"

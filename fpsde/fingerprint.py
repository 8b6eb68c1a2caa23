"""What a fit is decided by, field by field, so that it can be said what differs between two."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fpsde.assembly import plain_parameters
from fpsde.files import digest
from fpsde.given import check_at
from fpsde.mapped import blocks
from fpsde.snapshots import Snapshots

__all__ = ["fingerprint"]

# These change nothing but round-off, or are given by the seed and the device that are chosen.
LEFT_OUT = ("verbose", "random_state", "device", "compile")


def fingerprint(parameters: Mapping[str, Any], data: Snapshots, seed: int | None, device: torch.device,
                version: str) -> dict[str, Any]:
    """Returns what decides a fit as numbers and words by name.

    Of points, times and weights it is how many there are and the beginning of a digest; functions are stood for by their
    values at the points; of points on disk, at the first block of them.

    Arguments:
        parameters: of the estimator, by name.
        data: what is fitted to.
        seed: of all randomness; None if any will do.
        device: where the fit runs.
        version: of this package.

    Raises:
        ValueError: if a function that is given cannot be used.
    """
    plain = plain_parameters(dict(parameters))
    for name, function in parameters.items():
        if name in ("drift_prior", "diffusion") and callable(function):
            check_at(name, function, data, device)
            place, x = next(blocks(data.x))
            points, t = (torch.as_tensor(values, dtype=torch.float64, device=device) for values in (x, data.t[place]))
            plain[name] = _shown(function(points, t))
    return {"points": _points(data.x), "times": _shown(torch.as_tensor(data.t)),
            "weights": None if data.weights is None else _shown(torch.as_tensor(data.weights)),
            **{name: value for name, value in plain.items() if name not in LEFT_OUT},
            "seed": seed, "device": device.type, "fpsde": version}


def _points(x: NDArray[np.float64]) -> str:
    """What :func:`_shown` says of points in memory, without having them all there."""
    found = hashlib.sha256(f" {torch.float64} {x.shape} ".encode())
    for _, block in blocks(x):
        found.update(np.ascontiguousarray(block).data)
    return f"{x.shape[0]} x {x.shape[1]} values {found.hexdigest()[:16]}"


def _shown(values: torch.Tensor) -> str:
    """The shape of values and the first of the digits that tell them from others."""
    shape = " x ".join(map(str, values.shape))
    return f"{shape} values {digest('', {'': values.detach().cpu().contiguous()})[:16]}"

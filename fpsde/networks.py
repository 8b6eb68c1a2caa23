"""Drift and diffusion as a fit starts with them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fpsde.config import IdentificationConfig
from fpsde.coordinates import Coordinates
from fpsde.diffusion import AbstractDiffusion, ConstantDiffusion, FunctionDiffusion, KnownDiffusion, StateDiffusion
from fpsde.drift import AbstractDrift, PriorDrift
from fpsde.given import GivenField
from fpsde.hollow import HollowNet
from fpsde.library import LibraryDrift
from fpsde.potential import GradientDrift
from fpsde.snapshots import Snapshots, mean_and_variance

__all__ = ["networks"]

# A potential has as many features for each coordinate as a net, up to four of them.
POTENTIAL_COORDINATES = 4
# Coordinates up to which a drift has a library, and up to which it has one where there are so many snapshots of so many
# points: few let in some of thousands of terms that are not there (benchmarks/results/wide.md). And the bends of each.
LIBRARY_COORDINATES, MOST_COORDINATES, LIBRARY_BENDS = 10, 20, 16
MANY_SNAPSHOTS, MANY_POINTS = 8, 1000


def networks(c: IdentificationConfig, coordinates: Coordinates, data: Snapshots,
             given: Mapping[str, GivenField]) -> tuple[AbstractDrift, AbstractDiffusion]:
    """Returns the drift and the diffusion that are to be learned, by torch's own random numbers.

    Arguments:
        c: how to fit.
        coordinates: the way to data units.
        data: what is fitted to.
        given: what is known as functions, by the name of the argument.
    """
    new: dict[str, Any] = {"dim": data.dim, "conditioner": c.conditioner, "hidden": c.hidden, "activation": c.activation,
                           "time": c.drift == "time", "random_readout": False}
    if c.drift != "time" and c.solve:
        # Features that are not trained: close to polynomials, half of them without coupling between coordinates.
        new.update(bend=0.5, own_share=0.5)
    drift: AbstractDrift
    if c.drift == "gradient":
        metric = (2 * coordinates.scale.log().mean()).exp() / coordinates.scale.square()
        drift = GradientDrift(data.dim, c.hidden[-1] * min(data.dim, POTENTIAL_COORDINATES), metric.float())
    elif c.drift == "autonomous" and c.solve and data.dim <= _library_coordinates(data):
        # Of a single coordinate, the net's own features bend it already.
        drift = LibraryDrift(LIBRARY_BENDS if data.dim > 1 else 0, **new)
    else:
        drift = HollowNet(**new)
    if "drift_prior" in given:
        drift = PriorDrift(drift, given["drift_prior"])
    level = _typical_width(coordinates, data)
    if c.diffusion == "constant":
        return drift, ConstantDiffusion(level)
    if c.diffusion == "state":
        return drift, StateDiffusion(HollowNet(**new), level)
    if "diffusion" in given:
        return drift, FunctionDiffusion(given["diffusion"])
    known = torch.as_tensor(c.diffusion, dtype=torch.float64) * math.sqrt(coordinates.span)
    return drift, KnownDiffusion((known / coordinates.scale).float())


def _library_coordinates(data: Snapshots) -> int:
    many = len(data.times) >= MANY_SNAPSHOTS and np.mean(data.counts) >= MANY_POINTS
    return MOST_COORDINATES if many else LIBRARY_COORDINATES


def _typical_width(coordinates: Coordinates, data: Snapshots) -> Tensor:
    """Noise that would spread points over one snapshot's width in the time of the data: where the search starts."""
    weights = data.group_weights()
    widths = np.sqrt(np.mean([mean_and_variance(x, None if weights is None else weights[j])[1]
                              for j, x in enumerate(coordinates.groups(data))], axis=0))
    return torch.as_tensor(widths, dtype=torch.float32)

"""What a model file holds: how density, drift and diffusion are taken apart and put together again.

No file holds a function: those that the user gave are named, and have to be given again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fpsde.checkpoint import ModelFileError
from fpsde.coordinates import Coordinates
from fpsde.covariance import AbstractCovariance, FullCovariance, LowRankCovariance
from fpsde.density import GaussianMixturePath
from fpsde.diffusion import AbstractDiffusion, ConstantDiffusion, FunctionDiffusion, KnownDiffusion, StateDiffusion
from fpsde.drift import AbstractDrift, PriorDrift
from fpsde.ensemble import Member
from fpsde.given import Function, GivenField, given_fields
from fpsde.growth import Growth
from fpsde.hollow import HollowNet
from fpsde.potential import GradientDrift, learned_potential
from fpsde.sde import FittedSDE
from fpsde.spline import CubicSplineBasis

__all__ = ["build_members", "check_functions", "describe_members", "plain_parameters"]


def describe_members(members: Sequence[Member]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Returns what cannot be told from the weights, and the weights by name: of one member its own, of several a list."""
    if len(members) == 1:
        return _describe_parts(*members[0])
    parts = [_describe_parts(*member) for member in members]
    tensors = {f"{k}.{name}": tensor for k, (_, weights) in enumerate(parts) for name, tensor in weights.items()}
    return {"functions": parts[0][0]["functions"], "members": [header for header, _ in parts]}, tensors


def _describe_parts(sde: FittedSDE, density: GaussianMixturePath) -> tuple[dict[str, Any], dict[str, Tensor]]:
    diffusion = sde.diffusion
    header: dict[str, Any] = {
        "drift": sde.drift.settings,
        "drift_kind": "hollow" if learned_potential(sde.drift) is None else "gradient",
        "diffusion": {"kind": {KnownDiffusion: "known", FunctionDiffusion: "function", ConstantDiffusion: "constant",
                               StateDiffusion: "state"}[type(diffusion)]},
        "functions": ["drift_prior"] * isinstance(sde.drift, PriorDrift)
        + ["diffusion"] * isinstance(diffusion, FunctionDiffusion),
        "growth": None if sde.growth is None else sde.growth.settings,
        "density": {"constant_weights": density.constant_weights},
    }
    if isinstance(diffusion, StateDiffusion):
        header["diffusion"]["net"] = diffusion.net.settings
    tensors = {f"sde.{name}": tensor for name, tensor in sde.state_dict().items()}
    tensors.update({f"density.{name}": tensor for name, tensor in density.state_dict().items()})
    return header, tensors


def check_functions(path: str | Path, header: dict[str, Any], functions: Mapping[str, Function | None]) -> None:
    """Compares the functions that are given with those that the model was fitted with.

    Raises:
        ModelFileError: if one is missing, is none, or is one too many.
    """
    for name, function in functions.items():
        if name in header.get("functions", ()):
            if function is None:
                raise ModelFileError(f"{path}: fitted with a function as {name}, which no file holds; give it again: "
                                     f"FokkerPlanckSDE.load(path, {name}=...)")
            if not callable(function):
                raise ModelFileError(f"{path}: {name} must be the function of (X, t) of the fit, got {function!r}")
        elif function is not None:
            raise ModelFileError(f"{path}: fitted without a function as {name}; leave {name} out")


def build_members(header: dict[str, Any], tensors: dict[str, Tensor],
                  functions: Mapping[str, Function | None]) -> list[Member]:
    """Puts the members together, with the functions that no file holds.

    Nothing larger than the weights themselves is allocated: nets are built without storage and then given theirs.

    Raises:
        KeyError, ValueError, RuntimeError: if the header and the weights do not fit together.
    """
    if "members" not in header:
        return [_build_parts(header, tensors, functions)]
    parts = header["members"]
    members = [_build_parts(part, _below(tensors, f"{k}."), functions) for k, part in enumerate(parts)]
    units = [member.sde.coordinates.state_dict() for member in members]
    if len(parts) < 2 or any(part != parts[0] for part in parts[1:]) or any(
            not torch.equal(unit[name], values) for unit in units[1:] for name, values in units[0].items()):
        raise ValueError("the members differ in kind or units")
    return members


def _build_parts(header: dict[str, Any], tensors: dict[str, Tensor],
                 functions: Mapping[str, Function | None]) -> Member:
    units = Coordinates(*(tensors[f"sde.coordinates.{name}"] for name in ("centre", "scale", "clock", "positive")))
    given = given_fields(functions, units)
    with torch.device("meta"):
        drift = _build_drift(header, given.get("drift_prior"))
        diffusion = _build_diffusion(header["diffusion"], units.dim, given.get("diffusion"))
        growth = None if header.get("growth") is None else Growth(**header["growth"])
    sde = FittedSDE(drift, diffusion, units, growth)
    if not units.span > 0 or not (units.scale > 0).all():
        raise ValueError("the scaling is not usable")
    _fill(sde, tensors, "sde.")

    inner = _below(tensors, "density.")
    factors, floor, widths = (inner[f"covariance.{name}"] for name in ("factors", "floor", "units"))
    covariance: AbstractCovariance = (
        LowRankCovariance(factors, inner["covariance.log_rest"], floor, widths) if "covariance.log_rest" in inner
        else FullCovariance(factors, floor, widths))
    density = GaussianMixturePath(CubicSplineBasis(inner["basis.breaks"].double().numpy()), inner["logits"],
                                  inner["means"], covariance, bool(header["density"]["constant_weights"]))
    _fill(density, tensors, "density.")
    if density.dim != drift.dim or units.dim != drift.dim:
        raise ValueError("drift and density differ in dimension")
    return Member(sde.eval().requires_grad_(False), density.eval().requires_grad_(False))


def _below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _fill(module: torch.nn.Module, tensors: dict[str, Tensor], prefix: str) -> None:
    module.load_state_dict(_below(tensors, prefix), strict=True, assign=True)


def _build_drift(header: dict[str, Any], prior: GivenField | None) -> AbstractDrift:
    kinds: dict[str, type[AbstractDrift]] = {"hollow": HollowNet, "gradient": GradientDrift}
    learned = kinds[header.get("drift_kind", "hollow")](**header["drift"])
    return learned if prior is None else PriorDrift(learned, prior)


def _build_diffusion(header: dict[str, Any], dim: int, given: GivenField | None) -> AbstractDiffusion:
    if given is not None:
        return FunctionDiffusion(given)
    level = torch.ones(dim)
    if header["kind"] == "known":
        return KnownDiffusion(level)
    if header["kind"] == "constant":
        return ConstantDiffusion(level)
    return StateDiffusion(HollowNet(**header["net"]), level)


def plain_parameters(parameters: dict[str, Any]) -> dict[str, Any]:
    """Returns an estimator's parameters as JSON holds them: without functions or a random state that is no number."""
    plain = {name: value.tolist() if isinstance(value, (np.ndarray, np.generic, Tensor)) else value
             for name, value in parameters.items()}
    plain.update({name: None for name in ("drift_prior", "diffusion") if callable(plain[name])})
    plain["hidden"] = list(plain["hidden"])
    plain["positive"] = plain["positive"] if isinstance(plain["positive"], bool) else list(plain["positive"])
    if not isinstance(plain["random_state"], (int, type(None))):
        plain["random_state"] = None
    return plain

"""What a model file holds: how density, drift and diffusion are taken apart and put together again.

No file holds a function: those that the user gave are named, and have to be given again.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fpsde.coordinates import Coordinates
from fpsde.covariance import LowRankCovariance
from fpsde.density import GaussianMixturePath
from fpsde.diffusion import AbstractDiffusion, ConstantDiffusion, FunctionDiffusion, KnownDiffusion, StateDiffusion
from fpsde.drift import AbstractDrift, PriorDrift, learned
from fpsde.ensemble import Member
from fpsde.files import FileError
from fpsde.given import Function, GivenField, given_fields
from fpsde.growth import Growth
from fpsde.hollow import HollowNet
from fpsde.library import LibraryDrift
from fpsde.potential import GradientDrift
from fpsde.sde import FittedSDE

__all__ = ["build_members", "check_fitted", "check_functions", "check_header", "describe_members", "plain_parameters",
           "reason"]

SUMMARY = ("skipped_steps", "residual", "held_out_likelihood")
# All that a header may hold, by part.
HEADER = {"parts", "fitted"}
ENSEMBLE = {"functions", "members"}
PARTS = {"drift", "drift_kind", "diffusion", "functions", "growth", "density"}
FITTED = {"parameters", "names", "named", "times", "counts", "history", "summary", "written_by"}
DRIFTS: dict[str, type[AbstractDrift]] = {"hollow": HollowNet, "library": LibraryDrift, "gradient": GradientDrift}
LONGEST = 300
FASTEST, SLOWEST = 1e-6, 1.0


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
        "drift_kind": next(name for name, kind in DRIFTS.items() if type(learned(sde.drift)) is kind),
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
        FileError: if one is missing, is none, or is one too many.
    """
    for name, function in functions.items():
        if name in header.get("functions", ()):
            if function is None:
                raise FileError(f"{path}: fitted with a function as {name}, which no file holds; give it again, which only "
                                f"Python can: FokkerPlanckSDE.load(path, {name}=...)")
            if not callable(function):
                raise FileError(f"{path}: {name} must be the function of (X, t) of the fit, got {function!r}")
        elif function is not None:
            raise FileError(f"{path}: fitted without a function as {name}; leave {name} out")


def check_header(header: dict[str, Any], parameters: Iterable[str]) -> None:
    """Refuses a header with a part that this version does not know, and so would leave out of account.

    Arguments:
        header: of the file.
        parameters: names of the estimator's parameters.

    Raises:
        KeyError, TypeError, ValueError: if a part is unknown, missing, or not of its kind.
    """
    parts = header["parts"]
    kinds = {"the header": (header, HEADER), "parts": (parts, ENSEMBLE if "members" in parts else PARTS),
             "fitted": (header["fitted"], FITTED), "parameters": (header["fitted"]["parameters"], {*parameters})}
    kinds |= {f"member {k}": (part, PARTS) for k, part in enumerate(parts.get("members", ()))}
    for where, (part, known) in kinds.items():
        if not isinstance(part, dict):
            raise ValueError(f"{where} is no table of names and values")
        for name in sorted(part.keys() - known):
            raise ValueError(f"{name!r:.60} in {where} is unknown")


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
    if units.centre.ndim != 1:
        raise ValueError(f"sde.coordinates.centre has shape {tuple(units.centre.shape)}, expected one axis")
    given = given_fields(functions, units)
    with torch.device("meta"):
        drift = _build_drift(header, given.get("drift_prior"))
        diffusion = _build_diffusion(header["diffusion"], units.dim, given.get("diffusion"))
        growth = None if header.get("growth") is None else Growth(**header["growth"])
    sde = FittedSDE(drift, diffusion, units, growth)
    _fill(sde, tensors, "sde.")
    step = float(sde.time_step) / units.span if units.span > 0 else 0.0
    if not (FASTEST <= step <= SLOWEST and bool((units.scale > 0).all())):
        raise ValueError("the scaling is not usable")
    nets = [part for part in (drift, diffusion, growth) if part is not None]
    if len({tensor.dtype for net in nets for tensor in net.state_dict().values()}) > 1:
        raise ValueError("drift, diffusion and growth differ in precision")

    inner = _below(tensors, "density.")
    _check_shapes(inner, bool(header["density"]["constant_weights"]))
    density = GaussianMixturePath.shaped(inner, bool(header["density"]["constant_weights"]))
    _fill(density, tensors, "density.")
    if {density.dim, units.dim} != {drift.dim} or (growth is not None and growth.dim != drift.dim):
        raise ValueError("drift, growth and density differ in dimension")
    _try_out(density)
    return Member(sde.eval().requires_grad_(False), density.eval().requires_grad_(False))


def _below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _check_shapes(inner: dict[str, Tensor], constant_weights: bool) -> None:
    """Compares the shapes of a density's weights with each other, so that none is broadcast into a larger one."""
    n, (b, k, d, r) = len(inner["basis.breaks"]), inner["covariance.factors"].shape
    diagonal = "covariance.log_rest" in inner
    expected = {"basis.breaks": (n,), "basis.coefficients": (n - 1, 4, b), "logits": (1 if constant_weights else b, k),
                "means": (b, k, d), "covariance.units": (b, d), "covariance.floor": (b, d) if diagonal else (b, d, d)}
    if diagonal:
        expected["covariance.log_rest"] = (b, k, d)
    for name, shape in expected.items():
        if inner[name].shape != shape:
            raise ValueError(f"density.{name} has shape {tuple(inner[name].shape)}, expected {shape}")
    if b != n + 2 or not (r <= d if diagonal else r == d):
        raise ValueError(f"density.covariance.factors has shape {(b, k, d, r)}, which does not fit {n} break points")


def _fill(module: torch.nn.Module, tensors: dict[str, Tensor], prefix: str) -> None:
    state = _below(tensors, prefix)
    needed = module.state_dict()
    for name in sorted(state.keys() ^ needed.keys()):
        raise ValueError(f"{prefix}{name} is {'missing' if name in needed else 'one too many'}")
    for name, tensor in needed.items():
        if state[name].shape != tensor.shape:
            raise ValueError(f"{prefix}{name} has shape {tuple(state[name].shape)}, expected {tuple(tensor.shape)}")
        if state[name].is_floating_point() != tensor.is_floating_point():
            raise ValueError(f"{prefix}{name} is of type {state[name].dtype}, expected {tensor.dtype}")
    module.load_state_dict(state, strict=True, assign=True)


@torch.no_grad()
def _try_out(density: GaussianMixturePath) -> None:
    t = torch.linspace(0, 1, 5, dtype=torch.float64)
    trial = deepcopy(density).double()
    # The root of a diagonal with a few directions is far larger than what is in the file.
    x = (torch.zeros(5, 2, trial.dim, dtype=t.dtype) if isinstance(trial.covariance, LowRankCovariance)
         else trial.sample(t, 2, torch.Generator().manual_seed(0)))
    log_prob = trial.log_prob(t, x)
    if log_prob.shape != (5, 2) or not bool(torch.isfinite(log_prob).all()):
        raise ValueError("the density has no finite values")


def _build_drift(header: dict[str, Any], prior: GivenField | None) -> AbstractDrift:
    kind = header.get("drift_kind", "hollow")
    if kind not in DRIFTS:
        raise ValueError(f"unknown kind of drift {kind!r}")
    drift = DRIFTS[kind](**header["drift"])
    return drift if prior is None else PriorDrift(drift, prior)


def _build_diffusion(header: dict[str, Any], dim: int, given: GivenField | None) -> AbstractDiffusion:
    if given is not None:
        return FunctionDiffusion(given)
    level = torch.ones(dim)
    if header["kind"] == "known":
        return KnownDiffusion(level)
    if header["kind"] == "constant":
        return ConstantDiffusion(level)
    if header["kind"] != "state":
        raise ValueError(f"unknown kind of diffusion {header['kind']!r}")
    net = HollowNet(**header["net"])
    if net.dim != dim:
        raise ValueError(f"the diffusion has {net.dim} coordinates, the scaling {dim}")
    return StateDiffusion(net, level)


def check_fitted(fitted: Mapping[str, Any], dim: int) -> None:
    """Checks what a file says of the fit beside its parts.

    Raises:
        KeyError, TypeError, ValueError: if something is missing or not of its kind.
    """
    names, times, counts, parameters = (fitted[name] for name in ("names", "times", "counts", "parameters"))
    if len(names) != dim or not all(isinstance(name, str) for name in names):
        raise ValueError(f"expected {dim} names of coordinates, got {str(names):.60}")
    if len(times) < 2 or not np.isfinite(times).all() or not (np.diff(times) > 0).all():
        raise ValueError("the times are not two or more increasing numbers")
    if len(counts) != len(times) or not all(isinstance(count, int) and count > 0 for count in counts):
        raise ValueError(f"the counts are not one for each of {len(times)} times")
    if any(unicodedata.category(letter) == "Cc" for name in names for letter in name):
        raise ValueError("a name of a coordinate has a control character")
    for name in SUMMARY:
        fitted["summary"][name]
    rows = [fitted["summary"], *fitted["history"]]
    if not all(isinstance(value, (int, float)) for row in rows for value in row.values()):
        raise ValueError("history or summary hold something else than numbers")
    if not np.isfinite(fitted["summary"]["skipped_steps"]):
        raise ValueError("the number of skipped steps is not finite")
    if not all("step" in row for row in rows[1:]):
        raise ValueError("a row of the history has no step")
    if parameters["drift"] not in ("time", "autonomous", "gradient"):
        raise ValueError(f"unknown drift {parameters['drift']!r}")
    if parameters["diffusion"] not in ("state", "constant", None) and not np.isfinite(
            np.asarray(parameters["diffusion"], dtype=np.float64)).all():
        raise ValueError("the diffusion is neither a word that is known nor numbers")
    for name in ("max_steps", "verbose"):
        if not isinstance(parameters[name], int):
            raise ValueError(f"{name} is not a whole number, got {parameters[name]!r}")


def reason(error: Exception) -> str:
    """What an error says, in one line that is not too long."""
    said = f"{error.args[0]} is missing" if isinstance(error, KeyError) else " ".join(str(error).split())
    said = "".join(letter if letter.isprintable() else "?" for letter in said)
    return said if len(said) <= LONGEST else f"{said[:LONGEST]} ..."


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

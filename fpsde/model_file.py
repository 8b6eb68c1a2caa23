"""What a model file holds: how density, drift and diffusion are taken apart and put together again."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fpsde.coordinates import Coordinates
from fpsde.covariance import AbstractCovariance, FullCovariance, LowRankCovariance
from fpsde.density import GaussianMixturePath
from fpsde.diffusion import AbstractDiffusion, ConstantDiffusion, KnownDiffusion, StateDiffusion
from fpsde.hollow import HollowNet
from fpsde.sde import FittedSDE
from fpsde.spline import CubicSplineBasis

__all__ = ["build_parts", "describe_parts"]


def describe_parts(sde: FittedSDE, density: GaussianMixturePath) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Returns what cannot be told from the weights, and the weights by name."""
    diffusion = sde.diffusion
    header: dict[str, Any] = {
        "drift": sde.drift.settings,
        "diffusion": {"kind": {KnownDiffusion: "known", ConstantDiffusion: "constant", StateDiffusion: "state"}[
            type(diffusion)]},
        "density": {"constant_weights": density.constant_weights},
    }
    if isinstance(diffusion, StateDiffusion):
        header["diffusion"]["net"] = diffusion.net.settings
    tensors = {f"sde.{name}": tensor for name, tensor in sde.state_dict().items()}
    tensors.update({f"density.{name}": tensor for name, tensor in density.state_dict().items()})
    return header, tensors


def build_parts(header: dict[str, Any], tensors: dict[str, Tensor]) -> tuple[FittedSDE, GaussianMixturePath]:
    """Puts the parts together.

    Nothing larger than the weights themselves is allocated: nets are built without storage and then given theirs.

    Raises:
        KeyError, ValueError, RuntimeError: if the header and the weights do not fit together.
    """
    units = [tensors[f"sde.coordinates.{name}"] for name in ("centre", "scale", "clock", "positive")]
    with torch.device("meta"):
        drift, diffusion = HollowNet(**header["drift"]), _build_diffusion(header["diffusion"], units[0])
    sde = FittedSDE(drift, diffusion, Coordinates(*units))
    if not sde.coordinates.span > 0 or not (sde.coordinates.scale > 0).all():
        raise ValueError("the scaling is not usable")
    _fill(sde, tensors, "sde.")

    inner = {name.removeprefix("density."): tensor for name, tensor in tensors.items() if name.startswith("density.")}
    factors, floor, widths = (inner[f"covariance.{name}"] for name in ("factors", "floor", "units"))
    covariance: AbstractCovariance = (
        LowRankCovariance(factors, inner["covariance.log_rest"], floor, widths) if "covariance.log_rest" in inner
        else FullCovariance(factors, floor, widths))
    density = GaussianMixturePath(CubicSplineBasis(inner["basis.breaks"].double().numpy()), inner["logits"],
                                  inner["means"], covariance, bool(header["density"]["constant_weights"]))
    _fill(density, tensors, "density.")
    if density.dim != drift.dim or sde.coordinates.dim != drift.dim:
        raise ValueError("drift and density differ in dimension")
    return sde.eval().requires_grad_(False), density.eval().requires_grad_(False)


def _fill(module: torch.nn.Module, tensors: dict[str, Tensor], prefix: str) -> None:
    state = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    module.load_state_dict(state, strict=True, assign=True)


def _build_diffusion(header: dict[str, Any], centre: Tensor) -> AbstractDiffusion:
    level = torch.ones(centre.shape)
    if header["kind"] == "known":
        return KnownDiffusion(level)
    if header["kind"] == "constant":
        return ConstantDiffusion(level)
    return StateDiffusion(HollowNet(**header["net"]), level)

r"""The fitted stochastic differential equation in data units, and its simulation with torchsde.

Inside, coordinates and time are dimensionless, :math:`z = (x - m) / \sigma` and :math:`\tau = (t - t_0) / T`. Outside,

.. math:: f(t, x) = \frac{\sigma}{T}\, \hat f(\tau, z), \qquad g(t, x) = \frac{\sigma}{\sqrt T}\, \hat g(\tau, z)

References:
    Scalable Gradients for Stochastic Differential Equations (Li et al., 2020), https://arxiv.org/abs/2001.01328
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torchsde import BaseBrownian, BrownianInterval, sdeint

from fpsde.diffusion import AbstractDiffusion
from fpsde.drift import AbstractDrift
from fpsde.potential import learned_potential

__all__ = ["FittedSDE", "FreshIncrements", "SimulationError", "simulate"]

FIXED_STEP_METHODS = ("euler", "milstein")


class SimulationError(ArithmeticError):
    """A simulated path left the numbers; the message says when and what to try."""


class FittedSDE(nn.Module):
    """An Ito equation with diagonal noise in data units, as `torchsde.sdeint` takes it.

    Arguments:
        drift: the dimensionless drift.
        diffusion: the dimensionless diffusion.
        centre: the point m, shape (d,), in data units.
        scale: the scale of every coordinate, shape (d,), in data units.
        start: the first time of the data.
        span: the time between the first and the last snapshot.
    """

    noise_type = "diagonal"
    sde_type = "ito"
    centre: Tensor
    scale: Tensor
    clock: Tensor
    time_step: Tensor

    def __init__(self, drift: AbstractDrift, diffusion: AbstractDiffusion, centre: Tensor, scale: Tensor, start: float,
                 span: float) -> None:
        super().__init__()
        self.drift, self.diffusion = drift, diffusion
        self.register_buffer("centre", centre)
        self.register_buffer("scale", scale)
        self.register_buffer("clock", torch.tensor([start, span], dtype=torch.float64))
        self.register_buffer("time_step", torch.tensor(span / 200, dtype=torch.float64))

    @property
    def autonomous(self) -> bool:
        """Whether what is learned of drift and diffusion does not depend on time."""
        return not self.drift.time

    @property
    def time_range(self) -> tuple[float, float]:
        """First and last time of the data."""
        return float(self.clock[0]), float(self.clock[0] + self.clock[1])

    def f(self, t: Tensor, y: Tensor) -> Tensor:
        """Drift at time t, shape () or (n,), and points y, shape (n, d): shape (n, d), data units per time unit."""
        tau, z = self._dimensionless(t, y)
        return self.drift(tau, z) * (self.scale / self.clock[1]).to(y)

    def g(self, t: Tensor, y: Tensor) -> Tensor:
        """Diffusion at time t and points y, shape (n, d), data units per square root of the time unit."""
        tau, z = self._dimensionless(t, y)
        return self.diffusion(tau, z) * (self.scale / self.clock[1].sqrt()).to(y)

    def f_and_g(self, t: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Drift and diffusion together."""
        tau, z = self._dimensionless(t, y)
        f, g = self.drift(tau, z), self.diffusion(tau, z)
        return f * (self.scale / self.clock[1]).to(y), g * (self.scale / self.clock[1].sqrt()).to(y)

    def potential(self, y: Tensor) -> Tensor:
        """Potential whose gradient the learned drift follows downhill, at points y, shape (n, d): shape (n,).

        It is in data units squared per time unit, up to a constant; data units are the same for all coordinates.

        Raises:
            ValueError: if the drift was not learned as a gradient.
        """
        learned = learned_potential(self.drift)
        if learned is None:
            raise ValueError("the drift has no potential: fit with drift='gradient'")
        unit = (learned.metric[0] * self.scale[0].square() / self.clock[1]).to(y)
        return learned.potential((y - self.centre) / self.scale) * unit

    def _dimensionless(self, t: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        tau = (torch.as_tensor(t, dtype=torch.float64, device=y.device) - self.clock[0]) / self.clock[1]
        if not self.autonomous:
            # Outside the data's times the equation stays what it was at the nearest one.
            tau = tau.clamp(0.0, 1.0)
        return tau.to(y.dtype), (y - self.centre) / self.scale

    @torch.no_grad()
    def choose_time_step(self, t: Tensor, z: Tensor) -> None:
        """Sets the step so that the fastest of the given points moves by a small part of its surroundings in one.

        Arguments:
            t: dimensionless times, shape (M,).
            z: dimensionless points of the density at these times, shape (M, N, d).
        """
        f, slope = self.drift.derivatives(t[:, None], z, order=1)
        width = z.std(1, keepdim=True).clamp_min(1e-3)
        rates = torch.stack([slope.abs(), 0.2 * f.abs() / width, 0.2 * (self.diffusion(t[:, None], z) / width).square()])
        fastest = float(torch.quantile(rates.amax(-1).flatten(1), 0.95, dim=1).max())
        steps = min(max(20 * fastest, 100.0), 5000.0)
        self.time_step.fill_(float(self.clock[1]) / steps)


class FreshIncrements(BaseBrownian):
    """Brownian increments drawn anew for every step from a generator: for fixed steps that are never revisited.

    Arguments:
        size: (n, d).
        generator: where the increments come from.
        dtype: of the increments.
    """

    def __init__(self, size: tuple[int, int], generator: torch.Generator, dtype: torch.dtype) -> None:
        self._size, self._generator, self._dtype = torch.Size(size), generator, dtype

    def __call__(self, ta: Tensor, tb: Tensor | None = None, return_U: bool = False,
                 return_A: bool = False) -> Tensor:
        if tb is None or return_U or return_A:
            raise ValueError("fresh increments serve steps of euler and milstein only")
        noise = torch.randn(self._size, generator=self._generator, dtype=self._dtype, device=self._generator.device)
        return noise * math.sqrt(float(tb) - float(ta))

    def __repr__(self) -> str:
        return f"{type(self).__name__}(size={tuple(self._size)})"

    @property
    def dtype(self) -> torch.dtype:
        return self._dtype

    @property
    def device(self) -> torch.device:
        return self._generator.device

    @property
    def shape(self) -> torch.Size:
        return self._size

    @property
    def levy_area_approximation(self) -> str:
        return "none"


@torch.no_grad()
def simulate(sde: nn.Module, y0: Tensor, times: Tensor, time_step: float, seed: int, method: str = "euler",
             report: Callable[[int, int], None] | None = None) -> Tensor:
    """Simulates trajectories, one call of torchsde for each output interval, so that no output is interpolated.

    Arguments:
        sde: what torchsde takes, with diagonal Ito noise.
        y0: start points at times[0], shape (n, d).
        times: increasing times, shape (k,), at least one.
        time_step: largest step.
        seed: of the noise.
        method: "euler" or "milstein" in fixed steps, or "srk" in adaptive ones.
        report: called with (intervals done, intervals in all).

    Returns:
        The trajectories, shape (k, n, d).

    Raises:
        SimulationError: if a path becomes infinite or NaN.
    """
    if method not in (*FIXED_STEP_METHODS, "srk"):
        raise ValueError(f"method must be one of 'euler', 'milstein', 'srk', got {method!r}")
    generator = torch.Generator(device=y0.device).manual_seed(seed)
    increments = FreshIncrements((y0.shape[0], y0.shape[1]), generator, y0.dtype)
    path = [y0]
    stops = times.double().cpu()
    for k in range(len(stops) - 1):
        first, last = float(stops[k]), float(stops[k + 1])
        # A hair more than an even part: round-off then leaves no sliver of a step at the end.
        step = (last - first) / math.ceil((last - first) / time_step * (1 - 1e-9)) * (1 + 1e-9)
        noise: BaseBrownian = increments
        if method == "srk":
            noise = BrownianInterval(first, last, size=tuple(y0.shape), dtype=y0.dtype, device=y0.device, dt=step,
                                     entropy=seed + k, levy_area_approximation="space-time")
        y = sdeint(sde, path[-1], torch.tensor([first, last], dtype=torch.float64, device=y0.device), bm=noise,
                   method=method, dt=step, adaptive=method == "srk")[-1].to(y0.dtype)
        if not bool(torch.isfinite(y).all()):
            bad = int((~torch.isfinite(y).all(-1)).sum())
            raise SimulationError(f"{bad} of {len(y)} paths became infinite between times {first:g} and {last:g}; try "
                                  f"a smaller time step than {step:g}, or times within those of the data")
        path.append(y)
        if report is not None:
            report(k + 1, len(stops) - 1)
    return torch.stack(path)

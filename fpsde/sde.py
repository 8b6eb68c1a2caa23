r"""The fitted stochastic differential equation in data units, and its simulation with torchsde.

Inside, coordinates are dimensionless (:mod:`fpsde.coordinates`), and there paths are simulated: far from zero, float32
would swallow small steps in data units, and a positive coordinate would not stay above zero.

References:
    Scalable Gradients for Stochastic Differential Equations (Li et al., 2020), https://arxiv.org/abs/2001.01328
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torchsde import BaseBrownian, BrownianInterval, sdeint

from fpsde.coordinates import Coordinates
from fpsde.diffusion import AbstractDiffusion
from fpsde.drift import AbstractDrift
from fpsde.growth import Growth
from fpsde.potential import learned_potential

__all__ = ["FittedSDE", "FreshIncrements", "SimulationError", "simulate"]

FIXED_STEP_METHODS = ("euler", "milstein")
CALLS_BETWEEN_REPORTS = 16
BLOCK = 1024


class SimulationError(ArithmeticError):
    """A simulated path left the numbers; the message says when and what to try."""


class FittedSDE(nn.Module):
    """An Ito equation with diagonal noise in data units, as `torchsde.sdeint` takes it.

    Arguments:
        drift: the dimensionless drift.
        diffusion: the dimensionless diffusion.
        coordinates: the way to data units.
        growth: the dimensionless rate at which points multiply, if they do; no path divides or ends for it.
    """

    noise_type = "diagonal"
    sde_type = "ito"
    time_step: Tensor

    def __init__(self, drift: AbstractDrift, diffusion: AbstractDiffusion, coordinates: Coordinates,
                 growth: Growth | None = None) -> None:
        super().__init__()
        self.drift, self.diffusion, self.coordinates, self.growth = drift, diffusion, coordinates, growth
        self.register_buffer("time_step", coordinates.clock[1] / 200)

    @property
    def autonomous(self) -> bool:
        """Whether what is learned of drift and diffusion does not depend on time."""
        return not self.drift.time

    @property
    def time_range(self) -> tuple[float, float]:
        """First and last time of the data."""
        return self.coordinates.start, self.coordinates.start + self.coordinates.span

    def f(self, t: Tensor, y: Tensor) -> Tensor:
        """Drift at time t, shape () or (n,), and points y, shape (n, d): shape (n, d), data units per time unit."""
        if self.coordinates.any_positive:
            return self.f_and_g(t, y)[0]
        return self.coordinates.drift(y, self.drift(*self._place(t, self.coordinates.inside(y)))).to(y)

    def g(self, t: Tensor, y: Tensor) -> Tensor:
        """Diffusion at time t and points y, shape (n, d), data units per square root of the time unit."""
        return self.coordinates.diffusion(y, self.diffusion(*self._place(t, self.coordinates.inside(y)))).to(y)

    def f_and_g(self, t: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Drift and diffusion together."""
        f, g = self.dimensionless(t, self.coordinates.inside(y))
        return self.coordinates.drift(y, f, g).to(y), self.coordinates.diffusion(y, g).to(y)

    def potential(self, y: Tensor) -> Tensor:
        """Potential whose gradient the learned drift follows downhill, at points y, shape (n, d): shape (n,).

        It is in data units squared per time unit, up to a constant; data units are the same for all coordinates.

        Raises:
            ValueError: if the drift was not learned as a gradient.
        """
        learned = learned_potential(self.drift)
        if learned is None:
            raise ValueError("the drift has no potential: fit with drift='gradient'")
        unit = learned.metric[0] * self.coordinates.scale[0].square() / self.coordinates.clock[1]
        z = self.coordinates.inside(y).to(learned.metric)
        return (learned.potential(z) * unit).to(y)

    def rate(self, t: Tensor, y: Tensor) -> Tensor:
        """Growth rate at points y, shape (n, d): shape (n,), per time unit.

        Raises:
            ValueError: if no growth was learned.
        """
        if self.growth is None:
            raise ValueError("no growth was learned: fit with growth='learned' or growth='counts'")
        return (self.growth(self.coordinates.inside(y).to(self.growth.readout)) / self.coordinates.clock[1]).to(y)

    def dimensionless(self, t: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """Drift and diffusion at times in data units and dimensionless points z, shape (n, d), in dimensionless units."""
        place = self._place(t, z)
        return self.drift(*place), self.diffusion(*place)

    def _place(self, t: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """Dimensionless time and points in the nets' precision."""
        tau = self.coordinates.time(torch.as_tensor(t, dtype=torch.float64, device=z.device))
        if not self.autonomous:
            # Outside the data's times the equation stays what it was at the nearest one.
            tau = tau.clamp(0.0, 1.0)
        z = z.to(next(self.drift.parameters()).dtype)
        return tau.to(z), z

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
        self.time_step.fill_(self.coordinates.span / steps)

    @torch.no_grad()
    def paths(self, x0: Tensor, times: Tensor, time_step: float, seed: int, method: str = "euler",
              report: Callable[[float], None] | None = None) -> Tensor:
        """Simulates trajectories in dimensionless coordinates; arguments and result as those of :func:`simulate`.

        What is reported, now and then, is the share of the time from first to last that is behind.
        """
        start = self.coordinates.inside(x0).to(next(self.drift.parameters()).dtype)
        first, last = float(times[0]), float(times[-1])
        behind, parts = 0, 1

        def started(chunk: int, chunks: int) -> None:
            nonlocal behind, parts
            behind, parts = chunk, chunks

        def reached(t: Tensor) -> None:
            if report is not None:
                report((behind + (float(t) - first) / (last - first)) / parts)

        inside = simulate(_Dimensionless(self, reached), start, times, time_step, seed, method, started=started)
        if report is not None:
            report(1.0)
        path = torch.empty(inside.shape, dtype=x0.dtype, device=x0.device)
        # One time after the other: beside the result there is never more than the dimensionless one.
        for k, z in enumerate(inside):
            path[k] = self.coordinates.outside(z)
        path[0] = x0
        return path


class _Dimensionless(nn.Module):
    """The fitted equation for dimensionless points, in data time."""

    noise_type, sde_type = "diagonal", "ito"

    def __init__(self, sde: FittedSDE, reached: Callable[[Tensor], None]) -> None:
        super().__init__()
        self.sde, self.reached, self.calls = sde, reached, 0

    def f_and_g(self, t: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        # On a GPU, to ask for the time is to wait for it.
        if self.calls % CALLS_BETWEEN_REPORTS == 0:
            self.reached(t)
        self.calls += 1
        f, g = self.sde.dimensionless(t, y)
        return f / self.sde.coordinates.span, g / math.sqrt(self.sde.coordinates.span)

    def f(self, t: Tensor, y: Tensor) -> Tensor:
        return self.f_and_g(t, y)[0]

    def g(self, t: Tensor, y: Tensor) -> Tensor:
        return self.f_and_g(t, y)[1]


class FreshIncrements(BaseBrownian):
    """Brownian increments drawn anew for every step: for fixed steps that are never revisited.

    Every block of 1024 paths has a generator of its own, which draws for all of a block even if there are fewer paths: the
    noise of a path does not depend on the paths after it, nor on how many are simulated at once.

    Arguments:
        size: (n, d).
        generators: where the increments of each block come from.
        dtype: of the increments.
    """

    def __init__(self, size: tuple[int, int], generators: Sequence[torch.Generator], dtype: torch.dtype) -> None:
        self._size, self._generators, self._dtype = torch.Size(size), generators, dtype

    def __call__(self, ta: Tensor, tb: Tensor | None = None, return_U: bool = False,
                 return_A: bool = False) -> Tensor:
        if tb is None or return_U or return_A:
            raise ValueError("fresh increments serve steps of euler and milstein only")
        noise = torch.cat([torch.randn(BLOCK, self._size[1], generator=generator, dtype=self._dtype, device=self.device)
                           for generator in self._generators])
        return noise[:self._size[0]].mul_(math.sqrt(float(tb) - float(ta)))

    def __repr__(self) -> str:
        return f"{type(self).__name__}(size={tuple(self._size)})"

    @property
    def dtype(self) -> torch.dtype:
        return self._dtype

    @property
    def device(self) -> torch.device:
        return self._generators[0].device

    @property
    def shape(self) -> torch.Size:
        return self._size

    @property
    def levy_area_approximation(self) -> str:
        return "none"


@torch.no_grad()
def simulate(sde: nn.Module, y0: Tensor, times: Tensor, time_step: float, seed: int, method: str = "euler",
             chunk: int = 4 * BLOCK, started: Callable[[int, int], None] | None = None) -> Tensor:
    """Simulates trajectories, one call of torchsde for each output interval, so that no output is interpolated.

    Paths are taken a chunk at a time, which bounds the memory by that of the result. The same seed gives the same noise
    whatever the chunks.

    Arguments:
        sde: what torchsde takes, with diagonal Ito noise.
        y0: start points at times[0], shape (n, d).
        times: increasing times, shape (k,), at least one.
        time_step: largest step.
        seed: of the noise.
        method: "euler" or "milstein" in fixed steps, or "srk" in adaptive ones, which every block of 1024 paths chooses for
            itself.
        chunk: paths simulated at once, in blocks of 1024.
        started: called with the number of every chunk, from 0, and how many there are.

    Returns:
        The trajectories, shape (k, n, d).

    Raises:
        SimulationError: if a path becomes infinite or NaN.
    """
    if method not in (*FIXED_STEP_METHODS, "srk"):
        raise ValueError(f"method must be one of 'euler', 'milstein', 'srk', got {method!r}")
    blocks = 1 if method == "srk" else max(1, chunk // BLOCK)
    starts = range(0, len(y0), blocks * BLOCK)
    stops = times.double().cpu()
    path = y0.new_empty(len(stops), *y0.shape)
    for k, start in enumerate(starts):
        if started is not None:
            started(k, len(starts))
        here = slice(start, start + blocks * BLOCK)
        _simulate_chunk(sde, y0[here], stops, time_step, (seed, start // BLOCK), method, path[:, here])
    return path


def _simulate_chunk(sde: nn.Module, y0: Tensor, stops: Tensor, time_step: float, seed: tuple[int, int], method: str,
                    path: Tensor) -> None:
    """Simulates some paths into their place; the seed is that of all paths with the number of the first block."""
    seeds = [_seed(seed[0], seed[1] + k) for k in range(-(-len(y0) // BLOCK))]
    generators = [torch.Generator(device=y0.device).manual_seed(s) for s in seeds]
    increments = FreshIncrements((y0.shape[0], y0.shape[1]), generators, y0.dtype)
    path[0] = y0
    for k in range(len(stops) - 1):
        first, last = float(stops[k]), float(stops[k + 1])
        # A hair more than an even part: round-off then leaves no sliver of a step at the end.
        step = (last - first) / math.ceil((last - first) / time_step * (1 - 1e-9)) * (1 + 1e-9)
        noise: BaseBrownian = increments
        if method == "srk":
            noise = BrownianInterval(first, last, size=tuple(y0.shape), dtype=y0.dtype, device=y0.device, dt=step,
                                     entropy=seeds[0] + k, levy_area_approximation="space-time")
        # The times stay on the CPU, where torchsde compares them at every step.
        y = sdeint(sde, path[k], stops[k:k + 2], bm=noise, method=method, dt=step, adaptive=method == "srk")[-1]
        if not bool(torch.isfinite(y).all()):
            bad = int((~torch.isfinite(y).all(-1)).sum())
            raise SimulationError(f"{bad} of {len(y)} paths became infinite between times {first:g} and {last:g}; try "
                                  f"a smaller time step than {step:g}, or times within those of the data")
        path[k + 1] = y


def _seed(seed: int, block: int) -> int:
    """A seed for each block of paths, unlike those of all other blocks and seeds."""
    return int(np.random.SeedSequence((seed, block)).generate_state(1)[0])

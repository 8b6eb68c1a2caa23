"""Trajectories of an equation with torchsde, some thousand at a time; the noise does not depend on how many there are.

References:
    Scalable Gradients for Stochastic Differential Equations (Li et al., 2020), https://arxiv.org/abs/2001.01328
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchsde import BaseBrownian, BrownianInterval, sdeint

__all__ = ["BLOCK", "FreshIncrements", "SimulationError", "simulate", "simulate_in_chunks"]

FIXED_STEP_METHODS = ("euler", "milstein")
BLOCK = 1024


class SimulationError(ArithmeticError):
    """A simulated path left the numbers; the message says when and what to try."""


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


class _Watched(nn.Module):
    """An equation that notes which of n paths were not finite, and since when; on a GPU, to ask at once were to wait."""

    sde: Any

    def __init__(self, sde: nn.Module, n: int, device: torch.device) -> None:
        super().__init__()
        self.sde, self.noise_type, self.sde_type = sde, sde.noise_type, sde.sde_type
        self.finite = torch.ones(n, dtype=torch.bool, device=device)
        self.lost = torch.full((), math.inf, dtype=torch.float64, device=device)

    def look(self, t: Tensor, y: Tensor) -> None:
        """Takes note of points y, shape (n, d), at a time."""
        self.finite = self.finite & torch.isfinite(y).all(-1)
        now = torch.zeros_like(self.lost) + t.double()
        self.lost = torch.minimum(self.lost, torch.where(self.finite.all(), math.inf, now))


class _Together(_Watched):
    """Drift and diffusion in one call, for Euler's method.

    To see shapes, torchsde evaluates an equation where each call starts, and then again for the first step: once is enough.
    """

    last: tuple[Tensor, Tensor, tuple[Tensor, Tensor]] | None = None

    def f_and_g(self, t: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        if self.last is None or y is not self.last[1] or t != self.last[0]:
            self.look(t, y)
            both = self.sde.f_and_g(t, y) if hasattr(self.sde, "f_and_g") else (self.sde.f(t, y), self.sde.g(t, y))
            self.last = t, y, both
        return self.last[2]


class _Apart(_Watched):
    """Drift and diffusion in two calls, for the methods that want them at different places."""

    def f(self, t: Tensor, y: Tensor) -> Tensor:
        self.look(t, y)
        drift: Tensor = self.sde.f(t, y)
        return drift

    def g(self, t: Tensor, y: Tensor) -> Tensor:
        noise: Tensor = self.sde.g(t, y)
        return noise


def simulate(sde: nn.Module, y0: Tensor, times: Tensor, time_step: float, seed: int, method: str = "euler",
             chunk: int = 4 * BLOCK) -> Tensor:
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

    Returns:
        The trajectories, shape (k, n, d).

    Raises:
        SimulationError: if a path becomes infinite or NaN.
    """
    path = y0.new_empty(len(times), *y0.shape)
    for here, part in simulate_in_chunks(sde, y0, times, time_step, seed, method, chunk):
        path[:, here] = part
    return path


@torch.no_grad()
def simulate_in_chunks(sde: nn.Module, y0: Tensor, times: Tensor, time_step: float, seed: int, method: str = "euler",
                       chunk: int = 4 * BLOCK,
                       started: Callable[[int, int], None] | None = None) -> Iterator[tuple[slice, Tensor]]:
    """Simulates trajectories as :func:`simulate` does, with the same arguments, and gives them chunk by chunk.

    Each comes with the places of its paths and has shape (k, m, d). `started` is called with the number of every chunk,
    from 0, and how many there are.
    """
    if method not in (*FIXED_STEP_METHODS, "srk"):
        raise ValueError(f"method must be one of 'euler', 'milstein', 'srk', got {method!r}")
    blocks = 1 if method == "srk" else max(1, chunk // BLOCK)
    starts = range(0, len(y0), blocks * BLOCK)
    stops = times.double().cpu()
    for k, start in enumerate(starts):
        if started is not None:
            started(k, len(starts))
        here = slice(start, min(start + blocks * BLOCK, len(y0)))
        yield here, _simulate_chunk(sde, y0[here], stops, time_step, (seed, start // BLOCK), method)


def _simulate_chunk(sde: nn.Module, y0: Tensor, stops: Tensor, time_step: float, seed: tuple[int, int],
                    method: str) -> Tensor:
    """Simulates some paths; the seed is that of all paths with the number of the first block."""
    seeds = [_seed(seed[0], seed[1] + k) for k in range(-(-len(y0) // BLOCK))]
    generators = [torch.Generator(device=y0.device).manual_seed(s) for s in seeds]
    increments = FreshIncrements((y0.shape[0], y0.shape[1]), generators, y0.dtype)
    watched = (_Together if method == "euler" else _Apart)(sde, len(y0), y0.device)
    path = y0.new_empty(len(stops), *y0.shape)
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
        try:
            path[k + 1] = sdeint(watched, path[k], stops[k:k + 2], bm=noise, method=method, dt=step,
                                 adaptive=method == "srk")[-1]
            watched.look(stops[k + 1], path[k + 1])
            lost = not bool(torch.isfinite(path[k + 1]).all())
        except AssertionError:
            # So torchsde says that it cannot find a step between numbers and what is none.
            lost = True
        if lost:
            raise SimulationError(f"{int((~watched.finite).sum())} of {len(y0)} paths became infinite, the first by time "
                                  f"{min(float(watched.lost), last):g}; try a smaller time step than {step:g}, or times "
                                  "within those of the data")
    return path


def _seed(seed: int, block: int) -> int:
    """A seed for each block of paths, unlike those of all other blocks and seeds."""
    return int(np.random.SeedSequence((seed, block)).generate_state(1)[0])

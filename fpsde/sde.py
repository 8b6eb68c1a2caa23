r"""The fitted stochastic differential equation in data units, and its paths.

Inside, coordinates are dimensionless (:mod:`fpsde.coordinates`), and there paths are simulated: far from zero, float32
would swallow small steps in data units, and a positive coordinate would not stay above zero.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from fpsde.coordinates import Coordinates
from fpsde.diffusion import AbstractDiffusion
from fpsde.drift import AbstractDrift
from fpsde.growth import Growth
from fpsde.potential import learned_potential
from fpsde.simulation import SimulationError, simulate_in_chunks
from fpsde.time_step import steps_needed

__all__ = ["FittedSDE"]

CALLS_BETWEEN_REPORTS = 16


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
        return self.coordinates.drift(y, self.drift(*self.place(t, self.coordinates.inside(y)))).to(y)

    def g(self, t: Tensor, y: Tensor) -> Tensor:
        """Diffusion at time t and points y, shape (n, d), data units per square root of the time unit."""
        return self.coordinates.diffusion(y, self.diffusion(*self.place(t, self.coordinates.inside(y)))).to(y)

    def f_and_g(self, t: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Drift and diffusion together."""
        place = self.place(t, self.coordinates.inside(y))
        f, g = self.drift(*place), self.diffusion(*place)
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

    def place(self, t: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """Where drift and diffusion are evaluated: dimensionless time and points, in their precision.

        Arguments:
            t: time in data units, shape () or (n,).
            z: dimensionless points, shape (n, d).
        """
        t = torch.as_tensor(t, dtype=torch.float64)
        # One time goes along as a number; to be sent to a GPU as a tensor, at every step, it would have to wait.
        tau = self.coordinates.time(t.to(z.device) if t.ndim else t)
        if not self.autonomous:
            # Outside the data's times the equation stays what it was at the nearest one.
            tau = tau.clamp(0.0, 1.0)
        z = z.to(next(self.drift.parameters()).dtype)
        return tau.to(z), z

    def choose_time_step(self, t: Tensor, z: Tensor) -> None:
        """Sets the step to what :func:`fpsde.time_step.steps_needed` says of dimensionless times and points."""
        self.time_step.fill_(self.coordinates.span / steps_needed(self.drift, self.diffusion, t, z))

    def paths(self, x0: Tensor, times: Tensor, time_step: float, seed: int, method: str = "euler",
              report: Callable[[float], None] | None = None) -> Tensor:
        """Simulates trajectories in dimensionless coordinates; arguments and result as those of :func:`simulate`.

        What is reported, now and then, is the share of the time from first to last that is behind.
        """
        path = torch.empty(len(times), *x0.shape, dtype=x0.dtype, device=x0.device)
        for here, part in self.paths_in_chunks(x0, times, time_step, seed, method, report):
            path[:, here] = part
        return path

    @torch.no_grad()
    def paths_in_chunks(self, x0: Tensor, times: Tensor, time_step: float, seed: int, method: str = "euler",
                        report: Callable[[float], None] | None = None) -> Iterator[tuple[slice, Tensor]]:
        """The same some thousand paths at a time: which they are, and their trajectories."""
        start = self.coordinates.inside(x0).to(next(self.drift.parameters()).dtype)
        first, last = float(times[0]), float(times[-1])
        behind, parts = 0, 1

        def started(chunk: int, chunks: int) -> None:
            nonlocal behind, parts
            behind, parts = chunk, chunks

        def reached(t: Tensor) -> None:
            if report is not None:
                report((behind + (float(t) - first) / (last - first)) / parts)

        inside = simulate_in_chunks(_Dimensionless(self, reached), start, times, time_step, seed, method, started=started)
        for here, z in inside:
            path = self.coordinates.outside(z).to(x0)
            path[0] = x0[here]
            self._check_range(path, times)
            yield here, path
        if report is not None:
            report(1.0)

    def _check_range(self, path: Tensor, times: Tensor) -> None:
        """Refuses paths, shape (k, n, d), where the logarithm of a positive coordinate is beyond the numbers."""
        lost = ~torch.isfinite(path) | (self.coordinates.positive & (path <= 0))
        if bool(lost.any()):
            bad, when = int(lost.any(0).any(-1).sum()), float(times[int(lost.flatten(1).any(1).int().argmax())])
            raise SimulationError(f"{bad} of {path.shape[1]} paths had a positive coordinate beyond the numbers, the first "
                                  f"by time {when:g}; try a smaller time step, or times within those of the data")


class _Dimensionless(nn.Module):
    """The fitted equation for dimensionless points, in data time."""

    noise_type, sde_type = "diagonal", "ito"

    def __init__(self, sde: FittedSDE, reached: Callable[[Tensor], None]) -> None:
        super().__init__()
        self.sde, self.reached, self.calls = sde, reached, 0

    def f_and_g(self, t: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        self._count(t)
        place = self.sde.place(t, y)
        return self._drift(*place), self._diffusion(*place)

    def f(self, t: Tensor, y: Tensor) -> Tensor:
        self._count(t)
        return self._drift(*self.sde.place(t, y))

    def g(self, t: Tensor, y: Tensor) -> Tensor:
        return self._diffusion(*self.sde.place(t, y))

    def _count(self, t: Tensor) -> None:
        # On a GPU, to ask for the time is to wait for it.
        if self.calls % CALLS_BETWEEN_REPORTS == 0:
            self.reached(t)
        self.calls += 1

    def _drift(self, tau: Tensor, z: Tensor) -> Tensor:
        return self.sde.drift(tau, z) / self.sde.coordinates.span

    def _diffusion(self, tau: Tensor, z: Tensor) -> Tensor:
        return self.sde.diffusion(tau, z) / math.sqrt(self.sde.coordinates.span)

"""Stochastic differential equations with known truth: what the benchmarks draw their snapshots from.

All are autonomous, with noise that acts on each coordinate by itself. Snapshots are unpaired: every one comes from runs of
its own. `CORE` are the five systems of the short table, `WIDE` those of the wide one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from fpsde.given import Function

__all__ = ["CORE", "ROTATION", "WIDE", "Array", "Field", "System"]

Array = NDArray[np.float64]
Field = Callable[[Array], Array]

ROTATION = np.array([[-0.6, 1.5], [-1.5, -0.6]])


@dataclass(frozen=True)
class System:
    """An autonomous SDE with diagonal noise, its start and what has been aimed at.

    Attributes:
        drift: f at points (n, d).
        diffusion: g at points (n, d).
        start: draws n points at time zero.
        duration: time of the last snapshot; the first is at zero.
        goal: aims for the relative errors of f and g.
        points: in a snapshot, unless asked otherwise.
        noise: the values of g, shape (d,), where it is constant.
        told: |g| as a function of points and times for a fit that is told it, where it is not constant.
        form: parametric form of the truth for `likelihood.py`: "linear" as a whole, or one for each coordinate where
            they do not act on each other; empty if its likelihood cannot be had.
    """

    name: str
    drift: Field
    diffusion: Field
    start: Callable[[int, np.random.Generator], Array]
    duration: float
    goal: tuple[float, float] = (0.04, 0.06)
    points: int = 2000
    noise: tuple[float, ...] = ()
    told: Function | None = None
    form: tuple[str, ...] = ()

    @property
    def dim(self) -> int:
        """Number of coordinates."""
        return self.start(1, np.random.default_rng(0)).shape[1]

    def run(self, n: int, times: Array, rng: np.random.Generator) -> list[Array]:
        """Euler-Maruyama in steps of a 2000th of the duration; the states of n runs at the times."""
        x, now, states = self.start(n, rng), 0.0, []
        for stop in times:
            steps = int(np.ceil((stop - now) / self.duration * 2000 - 1e-9))
            for _ in range(steps):
                h = (stop - now) / steps
                x = x + self.drift(x) * h + self.diffusion(x) * np.sqrt(h) * rng.standard_normal(x.shape)
            now = stop
            states.append(x)
        return states

    def push(self, x: Array, span: float, rng: np.random.Generator) -> Array:
        """Points after some time of the true equation."""
        return replace(self, start=lambda n, rng: x).run(len(x), np.array([span]), rng)[0]

    def snapshots(self, rng: np.random.Generator, count: int = 11, points: int | None = None) -> tuple[Array, Array]:
        """Unpaired snapshots at even times, eleven unless asked otherwise: points and their times."""
        times, points = np.linspace(0, self.duration, count), points or self.points
        xs = [self.run(points, np.array([t]), rng)[0] for t in times]
        return np.concatenate(xs), np.repeat(times, points)


def gaussian(mean: Array, width: Array | float) -> Callable[[int, np.random.Generator], Array]:
    """A start with independent Gaussian coordinates."""
    return lambda n, rng: mean + width * rng.standard_normal((n, len(mean)))


def even(noise: Array) -> Field:
    """A noise that is the same everywhere."""
    return lambda x: np.full_like(x, 1.0) * noise


def rotating(scale: float = 1.0) -> System:
    """The 2-D rotating Ornstein-Uhlenbeck process with its noise scaled."""
    noise = scale * np.array([0.5, 0.7])
    return System("Ornstein-Uhlenbeck, 2-D, rotating", lambda x: x @ ROTATION.T, even(noise),
                  gaussian(np.array([3.0, 0.0]), 0.4), 4.0, noise=tuple(noise), form=("linear",))


def coupled(d: int) -> System:
    """Ornstein-Uhlenbeck with every coordinate coupled to every other; the matrices are drawn once, from seed d.

    The skew part of A is the larger, so that the population turns. It starts off its fixed point, far narrower than at rest
    in some coordinates and wider in others: in many dimensions only such a start tells A from the noise.
    """
    rng = np.random.default_rng(d)
    r = rng.standard_normal((d, d)) / np.sqrt(d)
    a = -np.diag(np.linspace(0.6, 1.2, d)) + 0.8 * (r - r.T) + 0.2 * rng.standard_normal((d, d)) / np.sqrt(d)
    b, mean = 0.5 * rng.standard_normal(d), 2.0 * rng.standard_normal(d)
    noise = rng.permutation(np.linspace(0.3, 0.9, d))
    return System("Ornstein-Uhlenbeck, coupled", lambda x: x @ a.T + b, even(noise),
                  gaussian(mean, rng.permutation(np.geomspace(0.2, 2.0, d))), 4.0, noise=tuple(noise), form=("linear",))


def gene_network(d: int, linear_noise: bool) -> System:
    """A ring of genes, each held down by the one before: f_i = 4 / (1 + x_{i-1}^4) + 0.1 - x_i.

    A ring of five oscillates, one of ten settles into every other gene being on.
    """
    mean = 1.2 + 0.8 * np.sin(2.0 * np.arange(d))
    noise = 0.2 * np.ones(d)
    return System(f"gene ring, noise {'linear in x' if linear_noise else 'constant'}",
                  lambda x: 4.0 / (1.0 + np.roll(x, 1, axis=1) ** 4) + 0.1 - x,
                  (lambda x: 0.2 * x) if linear_noise else even(noise), gaussian(mean, 0.2), 5.0,
                  noise=() if linear_noise else tuple(noise),
                  told=(lambda x, t: (0.2 * x).abs().clamp_min(1e-3)) if linear_noise else None)


def lorenz96(d: int) -> System:
    """dx_i = ((x_{i+1} - x_{i-2}) x_{i-1} - x_i + 4) dt + 0.5 dW_i over two time units."""
    noise = 0.5 * np.ones(d)
    return System("Lorenz-96, forcing 4",
                  lambda x: (np.roll(x, -1, 1) - np.roll(x, 2, 1)) * np.roll(x, 1, 1) - x + 4.0, even(noise),
                  gaussian(2.0 + np.cos(2.0 * np.arange(d)), 0.5), 2.0, noise=tuple(noise))


def bent(d: int) -> System:
    """Noise free in form, g_i = 0.6 (1 + 0.5 tanh x_i): with a linear pull in 1-D, a rotation in 2-D."""
    drift = (lambda x: -x) if d == 1 else (lambda x: x @ ROTATION.T)
    return System(f"noise 0.6 (1 + 0.5 tanh x), {'linear' if d == 1 else 'rotating'} drift", drift,
                  lambda x: 0.6 * (1.0 + 0.5 * np.tanh(x)), gaussian(np.array([2.0, 0.0][:d]), 0.4), 4.0,
                  told=lambda x, t: 0.6 * (1.0 + 0.5 * torch.tanh(x)), form=("bent",) if d == 1 else ())


CORE = [
    rotating(),
    System("double well, 1-D", lambda x: x - x**3, lambda x: np.full_like(x, 0.7),
           lambda n, rng: 0.3 * rng.standard_normal((n, 1)), 4.0, noise=(0.7,), form=("well",)),
    System("double well, 2-D", lambda x: np.stack([x[:, 0] - x[:, 0] ** 3, -x[:, 1]], 1), even(np.array([0.7, 0.5])),
           lambda n, rng: rng.standard_normal((n, 2)) * [0.3, 1.0], 4.0, noise=(0.7, 0.5), form=("well", "pull")),
    System("geometric Brownian motion, 2-D", lambda x: x * [0.4, -0.3], lambda x: x * [0.3, 0.2],
           lambda n, rng: np.array([1.0, 2.0]) * np.exp(0.1 * rng.standard_normal((n, 2))), 2.0, (0.06, 0.12),
           told=lambda x, t: x * x.new_tensor([0.3, 0.2]), form=("geometric", "geometric")),
    System("Lotka-Volterra (lv.npz), 200 points",
           lambda x: np.stack([x[:, 0] - 0.4 * x[:, 0] * x[:, 1], 0.1 * x[:, 0] * x[:, 1] - 0.4 * x[:, 1]], 1),
           lambda x: 0.02 * x, lambda n, rng: np.array([5.0, 4.0]) + 0.1 * rng.random((n, 2)), 10.0, (0.05, 0.15), 200,
           told=lambda x, t: 0.02 * x),
]

WIDE = [
    replace(CORE[1], name="double well"), bent(1), coupled(2), replace(CORE[3], name="geometric Brownian motion"), bent(2),
    replace(CORE[4], name="Lotka-Volterra, noise linear in x", points=2000), coupled(5), gene_network(5, False),
    gene_network(5, True), lorenz96(5), coupled(10), gene_network(10, False), gene_network(10, True), lorenz96(10),
    coupled(20), gene_network(20, False), lorenz96(20),
]

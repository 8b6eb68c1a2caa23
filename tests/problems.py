"""SDEs whose density is known in closed form, as densities and coefficients for tests, and samplers for benchmarks."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from fpsde.density import DensityTerms


@dataclass(frozen=True)
class ClosedForm:
    """A drift, a variance and the log-density that they leave behind: functions of (t (), x (d,))."""

    name: str
    dim: int
    drift: Callable[[Tensor, Tensor], Tensor]
    variance: Callable[[Tensor, Tensor], Tensor]
    log_prob: Callable[[Tensor, Tensor], Tensor]
    sample: Callable[[int], Tensor]

    def density_terms(self, t: Tensor, x: Tensor) -> DensityTerms:
        """All terms by dense autograd, for times (M,) and points (M, N, d)."""
        def one(t, x):
            return (self.log_prob(t, x), torch.func.grad(self.log_prob, 0)(t, x), torch.func.grad(self.log_prob, 1)(t, x),
                    torch.func.hessian(self.log_prob, 1)(t, x).diagonal())

        value, rate, score, curvature = torch.vmap(torch.vmap(one, (None, 0)))(t, x)
        return DensityTerms(value, rate, score, curvature, torch.zeros_like(x))

    def drift_terms(self, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """(f, D f)."""
        slope = torch.func.jacrev(self.drift, 1)
        return torch.vmap(torch.vmap(lambda t, x: (self.drift(t, x), slope(t, x).diagonal()), (None, 0)))(t, x)

    def variance_terms(self, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(a, D a, D^2 a)."""
        def one(t, x):
            slope = torch.func.jacrev(self.variance, 1)(t, x).diagonal()
            bend = torch.stack([torch.func.hessian(lambda x, i=i: self.variance(t, x)[i])(x)[i, i]
                                for i in range(self.dim)])
            return self.variance(t, x), slope, bend

        return torch.vmap(torch.vmap(one, (None, 0)))(t, x)


def ornstein_uhlenbeck() -> ClosedForm:
    """3-D, rotating, from a correlated Gaussian: mean and covariance by the matrix exponential."""
    a = torch.tensor([[-0.7, 1.3, 0.2], [-1.3, -0.7, -0.4], [0.1, 0.3, -1.1]], dtype=torch.float64)
    b = torch.tensor([0.3, -0.2, 0.5], dtype=torch.float64)
    g2 = torch.tensor([0.5, 0.9, 0.2], dtype=torch.float64)
    m0 = torch.tensor([2.0, -1.0, 0.5], dtype=torch.float64)
    s0 = torch.tensor([[0.6, 0.2, 0.0], [0.2, 0.4, -0.1], [0.0, -0.1, 0.3]], dtype=torch.float64)
    fixed = -torch.linalg.solve(a, b)
    kronecker = torch.kron(a, torch.eye(3, dtype=torch.float64)) + torch.kron(torch.eye(3, dtype=torch.float64), a)
    stationary = -torch.linalg.solve(kronecker, torch.diag(g2).flatten()).reshape(3, 3)

    def log_prob(t, x):
        flow = torch.matrix_exp(a * t)
        mean = fixed + flow @ (m0 - fixed)
        covariance = stationary + flow @ (s0 - stationary) @ flow.T
        z = x - mean
        # Written out: the Hessian of a solve under two vmaps comes out wrong in torch 2.13.
        distance = (z[:, None] * torch.linalg.inv(covariance) * z).sum()
        return -0.5 * (distance + torch.linalg.slogdet(covariance)[1]
                       + 3 * math.log(2 * math.pi))

    return ClosedForm("ornstein-uhlenbeck", 3, lambda t, x: (a * x).sum(-1) + b, lambda t, x: g2 + 0 * x, log_prob,
                      lambda n: 1.5 * torch.randn(n, 3, dtype=torch.float64))


def geometric_brownian_motion() -> ClosedForm:
    """2-D: log x is Gaussian with mean m + (mu - s^2 / 2) t and variance v + s^2 t."""
    mu, s = (torch.tensor(v, dtype=torch.float64) for v in ([0.4, -0.3], [0.5, 0.3]))
    m, v = (torch.tensor(u, dtype=torch.float64) for u in ([0.1, 0.6], [0.2, 0.1]))

    def log_prob(t, x):
        spread = v + s**2 * t
        z = x.log() - m - (mu - 0.5 * s**2) * t
        return (-0.5 * z**2 / spread - 0.5 * (2 * math.pi * spread).log() - x.log()).sum()

    return ClosedForm("geometric Brownian motion", 2, lambda t, x: mu * x, lambda t, x: s**2 * x**2, log_prob,
                      lambda n: torch.rand(n, 2, dtype=torch.float64) * 2 + 0.3)


def bent_brownian_motion() -> ClosedForm:
    """1-D with g = 1 / cosh(x): y = sinh(x) is an Ornstein-Uhlenbeck process with dy = -y dt + dW.

    Ito for x = asinh(y): f = -y x'(y) + x''(y) / 2 with x' = 1 / cosh(x), x'' = -sinh(x) / cosh(x)^3.
    """
    m0, v0 = 0.8, 0.3

    def log_prob(t, x):
        mean, variance = m0 * torch.exp(-t), 0.5 + (v0 - 0.5) * torch.exp(-2 * t)
        y = torch.sinh(x)
        return (-0.5 * (y - mean) ** 2 / variance - 0.5 * (2 * math.pi * variance).log() + torch.cosh(x).log()).sum()

    return ClosedForm(
        "bent", 1, lambda t, x: -torch.tanh(x) - 0.5 * torch.sinh(x) / torch.cosh(x) ** 3,
        lambda t, x: 1 / torch.cosh(x) ** 2, log_prob, lambda n: torch.randn(n, 1, dtype=torch.float64))


CLOSED_FORMS = [ornstein_uhlenbeck(), geometric_brownian_motion(), bent_brownian_motion()]


def rotating_law(t: float) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance of a 2-D rotating Ornstein-Uhlenbeck process, f = A x, g = (0.5, 0.7)."""
    stationary = np.linalg.solve(np.kron(ROTATION, np.eye(2)) + np.kron(np.eye(2), ROTATION),
                                 -np.diag(ROTATION_NOISE**2).ravel()).reshape(2, 2)
    flow = torch.matrix_exp(torch.as_tensor(ROTATION * t)).numpy()
    return flow @ np.array([3.0, 0.0]), stationary + flow @ (0.16 * np.eye(2) - stationary) @ flow.T


def rotating_snapshots(n: int, times: np.ndarray, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Exact unpaired draws of that process."""
    rng = np.random.default_rng(seed)
    laws = [rotating_law(t) for t in times]
    xs = [mean + rng.standard_normal((n, 2)) @ np.linalg.cholesky(covariance).T for mean, covariance in laws]
    return np.concatenate(xs), np.repeat(times, n)


ROTATION = np.array([[-0.6, 1.5], [-1.5, -0.6]])
ROTATION_NOISE = np.array([0.5, 0.7])


def double_well_potential(x: np.ndarray) -> np.ndarray:
    """V of a 2-D double well whose coordinates are coupled, shape (n,)."""
    return x[:, 0] ** 4 / 4 - x[:, 0] ** 2 / 2 + x[:, 1] ** 2 / 2 + 0.4 * x[:, 0] * x[:, 1]


def double_well_force(x: np.ndarray) -> np.ndarray:
    """Minus its gradient, shape (n, 2)."""
    return np.stack([x[:, 0] - x[:, 0] ** 3 - 0.4 * x[:, 1], -x[:, 1] - 0.4 * x[:, 0]], 1)


def double_well_snapshots(n: int, times: np.ndarray, noise: float = 0.6, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Unpaired draws from dx = -grad V dt + noise dW, from a narrow cloud near the ridge."""
    rng, step, groups = np.random.default_rng(seed), 0.005, []
    for time in times:
        x = np.array([0.2, 0.8]) + 0.3 * rng.standard_normal((n, 2))
        for _ in range(round(time / step)):
            x = x + double_well_force(x) * step + noise * math.sqrt(step) * rng.standard_normal((n, 2))
        groups.append(x)
    return np.concatenate(groups), np.repeat(times, n)


def set_entry(tree, place, value):
    """Sets an entry of dictionaries in dictionaries, at a place given by its keys with dots."""
    *keys, last = place.split(".")
    for key in keys:
        tree = tree[key]
    tree[last] = value


class Terms(NamedTuple):
    """What a loss returns, as far as training asks."""

    loss: Tensor


class Bowl(nn.Module):
    """(w - target)^2, with a target that can be made infinite at chosen steps."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(3))

    def forward(self, target):
        return Terms((self.w - target).square().sum())

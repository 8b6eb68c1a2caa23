r"""Ensembles: several fits, each to a Bayesian bootstrap of the data, and the one equation that stands for them.

.. math:: f = \frac1m \sum_k f_k, \qquad g^2 = \frac1m \sum_k g_k^2, \qquad \gamma = \frac1m \sum_k \gamma_k, \qquad
    p = \frac1m \sum_k p_k

The spread of the members holds the sampling error of the data, by the weights of the bootstrap, as well as the chance of
the fit, by the seeds. It is the squares of g that are averaged: the Fokker-Planck equation is linear in them, and Ito's
term of a positive coordinate is then the mean of the members' too.

References:
    The Bayesian bootstrap (Rubin, 1981), https://doi.org/10.1214/aos/1176345338
    Deep ensembles (Lakshminarayanan, Pritzel & Blundell, 2017), https://arxiv.org/abs/1612.01474
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn

from fpsde.density import AbstractDensity, DensityTerms, GaussianMixturePath
from fpsde.diffusion import AbstractDiffusion, AbstractKnownDiffusion
from fpsde.drift import AbstractDrift
from fpsde.field import AbstractField, Operator
from fpsde.growth import Growth
from fpsde.sde import FittedSDE
from fpsde.snapshots import Snapshots

__all__ = ["MeanDensity", "MeanDiffusion", "MeanDrift", "Member", "bootstraps", "mean_density", "mean_equation",
           "mean_growth"]


class Member(NamedTuple):
    """One fit of an ensemble."""

    sde: FittedSDE
    """Its equation, in data units."""
    density: GaussianMixturePath
    """Its density path, dimensionless."""


def bootstraps(data: Snapshots, seed: int, n_members: int) -> list[tuple[Snapshots, int]]:
    """What each member is fitted to, and its seed; a single one is fitted to the data as they are.

    Every point's weight is multiplied by a draw of its own from the exponential distribution.
    """
    if n_members == 1:
        return [(data, seed)]
    rng = np.random.default_rng(seed)
    given = np.ones(len(data.t)) if data.weights is None else data.weights
    weights = given * rng.standard_exponential((n_members, len(data.t)))
    return [(Snapshots.of(data.x, data.t, data.names, w), int(rng.integers(2**31 - 1))) for w in weights]


class _Members(AbstractField):
    """Fields of the same kind whose mean this one is; its readout is theirs, side by side."""

    def __init__(self, members: Sequence[AbstractField]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def columns(self, t: Tensor, x: Tensor, operators: Sequence[Operator], rows: Tensor | None = None) -> list[Tensor]:
        parts = [member.columns(t, x, operators, rows) for member in self._fields()]
        return [torch.cat(part, -1) / len(self.members) for part in zip(*parts, strict=True)]

    def get_readout(self) -> Tensor:
        return torch.cat([member.get_readout() for member in self._fields()], -1)

    def set_readout(self, values: Tensor) -> None:
        for member, part in zip(self._fields(), values.chunk(len(self.members), -1), strict=True):
            member.set_readout(part)

    def readout_parameters(self) -> list[nn.Parameter]:
        return [parameter for member in self._fields() for parameter in member.readout_parameters()]

    def penalty(self, hidden: float, linear: float) -> Tensor:
        return torch.cat([member.penalty(hidden, linear) for member in self._fields()])

    def groups(self) -> Tensor:
        return torch.cat([member.groups() for member in self._fields()], -1)

    def _fields(self) -> list[AbstractField]:
        return cast(list[AbstractField], list(self.members))


class MeanDrift(_Members, AbstractDrift):
    """The mean of several drifts.

    Arguments:
        members: drifts of the same kind.
    """

    def __init__(self, members: Sequence[AbstractDrift]) -> None:
        super().__init__(members)
        self.dim, self.time = members[0].dim, members[0].time
        self.settings = {"members": [member.settings for member in members]}

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        return _mean([member(t, x) for member in self.members])

    def derivatives(self, t: Tensor, x: Tensor, order: int = 2, *, rows: Tensor | None = None) -> tuple[Tensor, ...]:
        parts = [cast(AbstractDrift, member).derivatives(t, x, order, rows=rows) for member in self.members]
        return tuple(_mean(part) for part in zip(*parts, strict=True))

    def known(self, t: Tensor, x: Tensor) -> Tensor:
        return _mean([cast(AbstractDrift, member).known(t, x) for member in self.members])


class MeanDiffusion(_Members, AbstractDiffusion):
    """The root of the mean of the squares of several diffusions.

    Arguments:
        members: diffusions of the same kind.
    """

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        return _mean([member(t, x).square() for member in self.members]).sqrt()

    def variance(self, t: Tensor, x: Tensor, rows: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        parts = [cast(AbstractDiffusion, member).variance(t, x, rows) for member in self.members]
        a, slope, bend = (_mean(part) for part in zip(*parts, strict=True))
        return a, slope, bend


class MeanDensity(AbstractDensity):
    """The equal mixture of several density paths.

    Arguments:
        members: paths of the same dimension.
    """

    def __init__(self, members: Sequence[GaussianMixturePath]) -> None:
        super().__init__()
        self._members = nn.ModuleList(members)
        self.dim, self.n_components = members[0].dim, sum(member.n_components for member in members)

    @property
    def members(self) -> list[GaussianMixturePath]:
        """The paths that this one is the mixture of."""
        return cast(list[GaussianMixturePath], list(self._members))

    def log_prob(self, t: Tensor, x: Tensor) -> Tensor:
        return torch.stack([member.log_prob(t, x) for member in self.members]).logsumexp(0) - math.log(len(self._members))

    def terms(self, t: Tensor, x: Tensor) -> DensityTerms:
        log_probs, rates, scores, bends, velocities = (
            torch.stack(part) for part in zip(*(member.terms(t, x) for member in self.members), strict=True))
        share = log_probs.softmax(0)
        each = share[..., None]
        score = (each * scores).sum(0)
        return DensityTerms(
            log_prob=log_probs.logsumexp(0) - math.log(len(self._members)), time_derivative=(share * rates).sum(0),
            score=score, curvature=(each * (bends + (scores - score).square())).sum(0),
            velocity=(each * velocities).sum(0))

    def sample(self, t: Tensor, n: int, generator: torch.Generator | None = None) -> Tensor:
        drawn = torch.stack([member.sample(t, n, generator) for member in self.members], 2)
        chosen = torch.randint(len(self._members), (len(t), n, 1, 1), generator=generator, device=drawn.device)
        return drawn.take_along_dim(chosen, 2).squeeze(2)

    def spread(self, t: Tensor, n: int, seed: int) -> Tensor:
        m = len(self._members)
        counts = [n // m + (k < n % m) for k in range(m)]
        return torch.cat([member.spread(t, count, seed + k * len(t))
                          for k, (member, count) in enumerate(zip(self.members, counts, strict=True)) if count], 1)

    def kinetic_energy(self, t: Tensor) -> Tensor:
        return _mean([member.kinetic_energy(t) for member in self.members])


def mean_equation(members: Sequence[FittedSDE]) -> FittedSDE:
    """The equation that stands for several with the same coordinates; of one, that one."""
    first = members[0]
    if len(members) == 1:
        return first
    known = isinstance(first.diffusion, AbstractKnownDiffusion)
    diffusion = first.diffusion if known else MeanDiffusion([member.diffusion for member in members])
    rates = [member.growth for member in members if member.growth is not None]
    sde = FittedSDE(MeanDrift([member.drift for member in members]), diffusion, first.coordinates,
                    mean_growth(rates) if rates else None)
    sde.time_step = torch.stack([member.time_step for member in members]).amin(0)
    return sde.eval()


def mean_growth(rates: Sequence[Growth]) -> Growth:
    """The mean of several rates, which is a rate with all their features."""
    dim, readouts = rates[0].dim, [rate.get_readout()[0] / len(rates) for rate in rates]
    with torch.device("meta"):
        mean = Growth(dim, sum(rate.n_features for rate in rates))
    mean.directions = torch.cat([rate.directions for rate in rates])
    mean.shifts = torch.cat([rate.shifts for rate in rates])
    linear = torch.stack([values[-dim - 1:] for values in readouts]).sum(0)
    mean.readout = nn.Parameter(torch.cat([*(values[:-dim - 1] for values in readouts), linear]))
    return mean


def mean_density(paths: Sequence[GaussianMixturePath]) -> GaussianMixturePath | MeanDensity:
    """The equal mixture of several paths; of one, that one."""
    return paths[0] if len(paths) == 1 else MeanDensity(paths)


def _mean(values: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(values)).mean(0)

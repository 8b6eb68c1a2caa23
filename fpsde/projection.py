r"""Solve, do not descend: least squares for the readouts of drift and diffusion.

The residual is linear in the drift and in the variance a, so for the density of the moment the readouts w of both are a
damped linear least-squares problem, with the same weights as in the loss:

.. math:: \min_w\ \lambda E\,\omega (c + J w)^2 + \mu E |q|^2 + \epsilon E |f|^2 + \rho\, |R^{1/2} (w - w_0)|^2

Here c + J w is the residual linearised about the present readouts (exact in the drift, Gauss-Newton in the diffusion) and
omega are the weights that bound the influence of the tails. The normal equations are running averages over steps: each
step adds its batch and solves, while the inner layers descend: variable projection. It serves a drift that is free in
time, whose density is fitted beforehand; an autonomous drift is solved for in :mod:`fpsde.moments` instead.

References:
    The differentiation of pseudo-inverses and nonlinear least squares problems whose variables separate (Golub &
    Pereyra, 1973), https://doi.org/10.1137/0710036
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fpsde.density import DensityTerms
from fpsde.fokker_planck import FokkerPlanckLoss, LossWeights, excess_velocity, influence, residual
from fpsde.ranks import mean
from fpsde.train import State

__all__ = ["ReadoutSolver", "Ridge", "Rows", "Seen", "strong_rows"]

MAX_UNKNOWNS = 2000
MAX_ELEMENTS = 2**29
# Of the matrix products; with a power of two they took a third longer.
BLOCK = 192
CHEAP_UNKNOWNS = 400
LARGEST_CHANGE = 0.3
DAMPING = 1e-6


class Ridge(NamedTuple):
    """Weights of the squared readouts, relative to the residual's.

    What the data leave open is decided here: the noise is taken to be as even as the data allow, and linear rather than
    bent, since a bend in the noise and one in the drift look much alike in the marginals.
    """

    drift: float = 3e-4
    """Of the drift's hidden features."""
    diffusion: float = 10.0
    """Of the diffusion's hidden features."""
    linear: float = 1e-5
    """Of the linear parts, and of the noise level's distance from where it started."""


class Rows(NamedTuple):
    """A block of the least-squares problem.

    Matrices of shape (n, G P) couple the G coordinates; those of shape (G, n, P) treat each by itself, and may know of the
    first of its unknowns only.
    """

    matrix: Tensor
    misfit: Tensor
    weight: float


class ReadoutSolver:
    """Keeps the readouts of drift and diffusion at their least-squares optimum while the nets' inner layers move.

    With more than 2000 unknowns the coordinates are solved for in groups, each with the others as they are, a group a step.

    Arguments:
        model: density, drift and diffusion.
        ridge: weights of the squared readouts.
        memory: decay of the running averages of the normal equations.
    """

    def __init__(self, model: FokkerPlanckLoss, ridge: Ridge, memory: float = 0.98) -> None:
        self.model, self.memory = model, memory
        drift, diffusion = model.drift, model.diffusion
        start = self._values()
        self.split = drift.get_readout().shape[1]
        penalty = torch.cat([drift.penalty(ridge.drift, ridge.linear), diffusion.penalty(ridge.diffusion, ridge.linear)])
        self.penalty = penalty.double().expand_as(start)
        self.target = torch.cat([torch.zeros_like(start[:, :self.split]), start[:, self.split:]], 1)
        groups = torch.arange(drift.dim, device=start.device).split(max(1, MAX_UNKNOWNS // start.shape[1]))
        self.systems = [_NormalEquations(group, start[group].numel(), start.device) for group in groups]
        self.turn = 0
        largest = max(len(group) for group in groups) * start.shape[1]
        self.interval = math.ceil((largest / CHEAP_UNKNOWNS) ** 2)
        """Steps between solves that keep their cost in proportion to that of a step."""

    @staticmethod
    def fits(model: FokkerPlanckLoss) -> bool:
        """Whether all groups' normal equations can be held in memory; in several hundred dimensions they cannot."""
        drift, diffusion = model.drift.get_readout(), model.diffusion.get_readout()
        each = drift.shape[1] + diffusion.shape[1]
        return len(drift) * each * max(each, min(MAX_UNKNOWNS, len(drift) * each)) <= MAX_ELEMENTS

    def state(self) -> State:
        """Returns what earlier steps have left."""
        return {"turn": self.turn, "systems": [system.averages() for system in self.systems]}

    def restore(self, state: State) -> None:
        """Goes on from a state of a solver that was made for the same start."""
        self.turn = int(state["turn"]) % len(self.systems)
        for system, averages in zip(self.systems, state["systems"], strict=True):
            for name, average in system.averages().items():
                average.copy_(averages[name])

    @torch.no_grad()
    def step(self, t: Tensor, x: Tensor, weights: LossWeights, density: DensityTerms | None = None) -> None:
        """Adds collocation points to the running averages and solves, for the group of coordinates whose turn it is.

        Arguments:
            t: collocation times, shape (M,).
            x: collocation points, shape (M, N, d).
            weights: weights of the terms; only their ratios matter.
            density: terms of the density there, if they are known.
        """
        system = self.systems[self.turn]
        self.turn = (self.turn + 1) % len(self.systems)
        self._solve(system, strong_rows(self.model, Seen.at(self.model, t, x, density), weights, system.group))

    @torch.no_grad()
    def sweep(self, t: Tensor, x: Tensor, weights: LossWeights) -> None:
        """The same for one group after the other, all on the same points: what is of other coordinates stays as it is."""
        seen = Seen.at(self.model, t, x)
        for system in self.systems:
            self._solve(system, strong_rows(self.model, seen, weights, system.group))
            seen = seen.refreshed(self.model, system.group)

    def _solve(self, system: _NormalEquations, rows: list[Rows]) -> None:
        """Adds rows to one group's system, solves it and sets the readouts; a solution that is not finite does nothing."""
        values, group = self._values(), system.group
        system.add(rows, values[group], self.memory)
        change = system.solve(self.penalty[group], self.target[group], values[group]) - values[group]
        # The diffusion is linearised: no more than a moderate step at once.
        largest = change[:, self.split:].abs().amax() if change.shape[1] > self.split else change.new_zeros(())
        change = change * (LARGEST_CHANGE / largest.clamp_min(LARGEST_CHANGE))
        change = torch.where(torch.isfinite(change).all(), change, torch.zeros_like(change))
        values = values.index_add(0, group, change)
        self.model.drift.set_readout(values[:, :self.split])
        self.model.diffusion.set_readout(values[:, self.split:])

    def _values(self) -> Tensor:
        return torch.cat([self.model.drift.get_readout(), self.model.diffusion.get_readout()], 1).double()


class _NormalEquations:
    """Running averages of J^T J, its lower half, and J^T c for one group of coordinates, in float64."""

    def __init__(self, group: Tensor, unknowns: int, device: torch.device) -> None:
        self.group = group
        self.normal = torch.zeros(unknowns, unknowns, dtype=torch.float64, device=device)
        self.right = torch.zeros(unknowns, dtype=torch.float64, device=device)
        self.amount = torch.zeros((), dtype=torch.float64, device=device)

    def averages(self) -> dict[str, Tensor]:
        return {"normal": self.normal, "right": self.right, "amount": self.amount}

    def add(self, rows: list[Rows], values: Tensor, memory: float) -> None:
        """Adds a batch of every process to the averages, unless one holds anything that is not finite."""
        normal, right = torch.zeros_like(self.normal), torch.zeros_like(self.right)
        for matrix, misfit, weight in rows:
            if matrix.dim() == 2:
                constant = misfit - matrix @ values.flatten()
                share = weight / len(misfit)
                _add_products(normal, matrix, share)
                right += share * (matrix.T @ constant)
            else:
                known = matrix.shape[-1]
                constant = misfit - (matrix @ values[:, :known, None]).squeeze(-1)
                share = weight / misfit.shape[1]
                _add_products(_blocks(normal, len(matrix))[:, :known, :known], matrix, share)
                right.view_as(values)[:, :known] += share * (matrix.mT @ constant[..., None]).squeeze(-1)
        normal, right = mean(normal), mean(right)
        usable = torch.isfinite(normal).all() & torch.isfinite(right).all()
        for average, batch in ((self.normal, normal), (self.right, right), (self.amount, torch.ones_like(self.amount))):
            average.copy_(torch.where(usable, memory * average + (1 - memory) * batch, average))

    def solve(self, penalty: Tensor, target: Tensor, values: Tensor) -> Tensor:
        normal = self.normal / self.amount + torch.diag(penalty.flatten())
        right = (penalty * target).flatten() - self.right / self.amount
        # Levenberg damping holds to the present values what neither data nor ridge determine.
        damping = DAMPING * normal.diagonal() + 1e-10
        factor, _ = torch.linalg.cholesky_ex(normal + torch.diag(damping))
        right = right + damping * values.flatten()
        return torch.cholesky_solve(right[:, None], factor).reshape(values.shape)


def _blocks(normal: Tensor, n: int) -> Tensor:
    """The n blocks of equal size along the diagonal of a matrix, shape (n, P, P), in place."""
    return normal.unflatten(0, (n, -1)).unflatten(-1, (n, -1)).diagonal(dim1=0, dim2=2).permute(2, 0, 1)


def _add_products(normal: Tensor, matrix: Tensor, share: float) -> None:
    """Adds share M^T M, on and below the blocks of the diagonal: of what is symmetric, no more is read."""
    for start in range(0, matrix.shape[-1], BLOCK):
        block = matrix[..., start:start + BLOCK]
        normal[..., start:, start:start + BLOCK].add_(matrix[..., start:].mT @ block, alpha=share)


class Seen(NamedTuple):
    """Collocation points, and what density, drift and noise are there."""

    t: Tensor
    """Shape (M, 1)."""
    x: Tensor
    """Shape (M, N, d)."""
    density: DensityTerms
    drift: tuple[Tensor, ...]
    """(f, D f), each of shape (M, N, d)."""
    variance: tuple[Tensor, Tensor, Tensor]
    """(a, D a, D^2 a), each of shape (M, N, d)."""

    @classmethod
    @torch.no_grad()
    def at(cls, model: FokkerPlanckLoss, t: Tensor, x: Tensor, density: DensityTerms | None = None) -> Seen:
        """Evaluates all at times t, shape (M,), and points x, shape (M, N, d), unless the density's terms are known."""
        clock = t[:, None]
        return cls(clock, x, density or model.density.terms(t, x), model.drift.derivatives(clock, x, order=1),
                   model.diffusion.variance(clock, x))

    @torch.no_grad()
    def refreshed(self, model: FokkerPlanckLoss, group: Tensor) -> Seen:
        """Returns the same with drift and noise evaluated anew for some coordinates, shape (G,)."""
        f, f_slope = _replaced(self.drift, model.drift.derivatives(self.t, self.x, 1, rows=group), group)
        a, slope, bend = _replaced(self.variance, model.diffusion.variance(self.t, self.x, group), group)
        return self._replace(drift=(f, f_slope), variance=(a, slope, bend))


def _replaced(held: Sequence[Tensor], parts: Sequence[Tensor], group: Tensor) -> Iterator[Tensor]:
    return (every.index_copy(-1, group, part) for every, part in zip(held, parts, strict=True))


@torch.no_grad()
def strong_rows(model: FokkerPlanckLoss, seen: Seen, weights: LossWeights, group: Tensor) -> list[Rows]:
    """Linearises the residual and its companions at collocation points, for one group of coordinates, in float64.

    Arguments:
        model: density, drift and diffusion.
        seen: the collocation points, n in all.
        weights: weights of the terms; one of zero leaves its rows out.
        group: the coordinates to solve for, shape (G,).
    """
    clock, x, density, (f, f_slope), variance = seen
    s = density.score.flatten(0, 1)[:, group]
    one, bend = torch.ones_like(s), density.curvature.flatten(0, 1)[:, group] + s * s
    # Those of the velocity, and of the residual if it is asked for.
    drift_operators, noise_operators = [[one], [s, one]], [[-0.5 * s, -0.5 * one], [-0.5 * bend, -s, -0.5 * one]]
    asked = 2 if weights.residual else 1
    of_drift, *by_drift = model.drift.columns(clock, x, drift_operators[:asked], group)
    of_noise, *by_noise = model.diffusion.columns(clock, x, noise_operators[:asked], group)
    rows = []
    if weights.residual:
        r = model.less_growth(residual(density, (f, f_slope), variance), x)
        root = influence(density.log_prob, r).double().sqrt().flatten()
        rows.append(Rows(_weighed([*by_drift, *by_noise], root), r.flatten() * root, weights.residual))
    if weights.velocity:
        q = excess_velocity(density, f, variance).flatten(0, 1)[:, group].T.double()
        rows.append(Rows(torch.cat([of_drift, of_noise], -1).double(), q, weights.velocity))
    if weights.drift_energy:
        learned = (f - model.drift.known(clock, x)).flatten(0, 1)[:, group]
        rows.append(Rows(of_drift.double(), learned.T.double(), weights.drift_energy))
    return rows


def _weighed(columns: Sequence[Tensor], root: Tensor) -> Tensor:
    """Columns of G coordinates, shape (G, n, P) each, side by side, times a root for each row: shape (n, G P) in all."""
    widths = [part.shape[-1] for part in columns]
    matrix = root.new_empty(len(root), len(columns[0]), sum(widths))
    for part, place in zip(columns, matrix.split(widths, -1), strict=True):
        torch.mul(part.transpose(0, 1), root[:, None, None], out=place)
    return matrix.flatten(1)

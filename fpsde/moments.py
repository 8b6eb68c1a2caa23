r"""Drift and diffusion from the snapshots' own moments: the weak form of the Fokker-Planck equation.

Between two snapshots, the mean of any smooth function psi(t, x) changes by

.. math:: E_{j+1}[\psi] - E_j[\psi]
    = \int_{t_j}^{t_{j+1}} E_p\Big[\partial_t \psi + f \cdot \nabla \psi + \tfrac12 \sum_i a_i\, \partial_i^2 \psi\Big] dt

The left side is measured, with a known covariance. The right side is linear in f and a; the density path only has to
interpolate, and where it misses a snapshot it is corrected by the points themselves. Neither score nor residual enters, so
that noise in the density does not pull drift and diffusion towards zero, as it does in least squares on the residual
(errors in the variables). The functions move with the cloud, so that a narrow cloud on a long way is seen as sharply as a
wide one at rest. How much drift and noise may bend is decided by the evidence.

The unknowns are the readouts of drift and diffusion, row by row; known terms of the drift move the functions' means as
their own motion does.

References:
    Weak SINDy for partial differential equations (Messenger & Bortz, 2021), https://arxiv.org/abs/2007.02848
    Large sample properties of generalized method of moments estimators (Hansen, 1982), https://doi.org/10.2307/1912775
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from fpsde.field import AbstractField
from fpsde.fokker_planck import FokkerPlanckLoss
from fpsde.frame import NODES, MovingFrame, Tested, TestFunctions, lobatto

__all__ = ["MomentEquations", "by_unknown", "columns_at", "kinds"]

# Of the path at a node: 512 a coordinate, for a mean over a cloud errs by more where it has more directions.
POINTS = 512
MOST_AT_A_NODE = 4096
MOST_POINTS = 16384
MAX_ELEMENTS = 2**26
# Entries of a function's derivatives that are held at a time.
AT_ONCE = 2**23
LEAST_NOISE = 0.01


class _Block(NamedTuple):
    """Points at nodes of an interval, whose means enter the equations."""

    t: Tensor
    """Times, shape (M,)."""
    x: Tensor
    """Shape (M, N, d)."""
    weight: Tensor
    """Of the quadrature, shape (M,)."""
    node: list[int]
    own: Tensor | None = None
    """Weights of the points, shape (N,) and of mean 1; equal if None."""


@dataclass
class _Interval:
    frame: MovingFrame
    tests: TestFunctions
    span: float
    samples: list[_Block]

    def tested(self) -> Iterator[tuple[Tensor, Tensor, Tensor, Tested]]:
        """For some points of a block at a time the times, points, quadrature weights, and functions times own weights."""
        for t, block, weight, node, own in self.samples:
            count = max(1, AT_ONCE // (len(t) * self.tests.count * block.shape[-1]))
            owns = itertools.repeat(None) if own is None else own.split(count)
            for x, w in zip(block.split(count, 1), owns, strict=False):
                tests = self.tests(self.frame, node, x)
                yield t, x, weight * (x.shape[1] / block.shape[1]), tests if w is None else Tested(
                    *(part * w.reshape(-1, *[1] * (part.ndim - 2)) for part in tests))


class _End(NamedTuple):
    """The equations of an interval at one of its ends."""

    tests: Tested
    place: Tensor
    """Their rows."""
    sign: float
    """1 where the snapshot ends the interval, -1 where it starts it."""
    half: float
    """Half the interval: the share of it over which the path is corrected by this snapshot."""


class MomentEquations:
    """The equations of all intervals, in float64, for a density that stays as it is.

    Arguments:
        model: density, drift and diffusion.
        times: of the snapshots, shape (T,).
        snapshots: T tensors of shape (n_j, d).
        generator: draws test functions and points.
        weights: of the points, T tensors of shape (n_j,) and of mean 1; equal if left out.
        sizes: of the population at these times, if their change is to tell its mean growth.
    """

    def __init__(self, model: FokkerPlanckLoss, times: Tensor, snapshots: list[Tensor], generator: torch.Generator,
                 weights: list[Tensor] | None = None, sizes: Tensor | None = None) -> None:
        self.model, self.times, self.sizes = model, times, sizes
        # Of unequal weights, a mean errs as if there were fewer points: (sum w)^2 / sum w^2 of them.
        self.counts = [float(len(x)) if weights is None else float(weights[j].sum() ** 2 / weights[j].square().sum())
                       for j, x in enumerate(snapshots)]
        dim = model.drift.dim
        tests = [TestFunctions(dim, generator) for _ in snapshots[1:]]
        room = MAX_ELEMENTS // (max(tests[0].count, model.drift.get_readout().shape[1]) * dim)
        points = max(64, min(POINTS * max(dim, 2), MOST_AT_A_NODE, room // NODES))
        most = max(256, min(MOST_POINTS, room))
        order = [torch.randperm(len(x), generator=generator, device=x.device)[:most] for x in snapshots]
        kept = [x[rows].double() for x, rows in zip(snapshots, order, strict=True)]
        own = [None] * len(kept) if weights is None else [
            w[rows] / w[rows].mean() for w, rows in zip(weights, order, strict=True)]
        seed = int(torch.randint(2**31, (), generator=generator, device=generator.device))
        nodes, shares = (torch.as_tensor(z, device=times.device) for z in lobatto(NODES))
        self.intervals = []
        for j in range(len(times) - 1):
            span = float(times[j + 1] - times[j])
            t = (times[j] + span * nodes).to(times)
            x = model.density.spread(t, points, seed + j * NODES).double()
            samples = [_Block(t, x, shares * span, list(range(NODES)))]
            # The path is right between the snapshots if it is right at them: its miss there is spread over the interval.
            for end, node in ((j, 0), (j + 1, NODES - 1)):
                half = torch.full((1,), 0.5 * span).to(shares)
                samples += [_Block(t[[node]], kept[end][None], half, [node], own[end]),
                            _Block(t[[node]], x[[node]], -half, [node])]
            self.intervals.append(_Interval(MovingFrame(x, span), tests[j], span, samples))
        seed += len(self.intervals) * NODES
        drawn = min(4 * points, most, max(points, 2 * AT_ONCE // (tests[0].count * dim)))
        self.drawn = [model.density.spread(times[[j]], drawn, seed + j).double() for j in range(len(times))]
        self.change = self._change(kept, own)
        parts = [self._transport(interval) for interval in self.intervals]
        self.moved, self.transport = (torch.cat(part) for part in zip(*parts, strict=True))
        self.growing = torch.cat([self._growing(interval) for interval in self.intervals])
        if sizes is not None:
            self._add_sizes(sizes.double().log())

    @staticmethod
    def fits(model: FokkerPlanckLoss, n_snapshots: int) -> bool:
        """Whether the equations of all intervals can be held in memory; in several hundred dimensions they cannot."""
        unknowns = model.drift.get_readout().numel() + model.diffusion.get_readout().numel()
        return (n_snapshots - 1) * TestFunctions.how_many(model.drift.dim) * unknowns <= 4 * MAX_ELEMENTS

    @torch.no_grad()
    def linearise(self) -> tuple[Tensor, Tensor]:
        """Returns the right side's derivative by the unknowns, shape (rows, U), and what it leaves open, (rows,).

        Exact in the drift, Gauss-Newton in the diffusion.
        """
        spreading, spread = self.spreading()
        left = self.unmoved() - self.transport @ self.model.drift.get_readout().double().flatten() - spread
        return torch.cat([self.transport, spreading, self.growing], -1), left

    @torch.no_grad()
    def unmoved(self) -> Tensor:
        """Returns the changes that neither the functions' own motion nor what is known nor growth explains, (rows,)."""
        left = self.change - self.moved
        if self.model.growth is None:
            return left
        return left - self.growing @ self.model.growth.get_readout().double().flatten()

    @torch.no_grad()
    def spreading(self) -> tuple[Tensor, Tensor]:
        """Returns how the noise changes the means: its derivative by its unknowns, (rows, U), and all of it, (rows,)."""
        matrix, spread = zip(*(self._spreading(interval) for interval in self.intervals), strict=True)
        return self._padded(torch.cat(matrix)), self._padded(torch.cat(spread))

    def _ends(self, j: int) -> list[tuple[_Interval, Tensor, float, list[int]]]:
        """The intervals that meet at a snapshot: their rows, 1 where it ends them and -1 where it starts them, its node."""
        return [(self.intervals[k], torch.arange(k * self.intervals[k].tests.count, (k + 1) * self.intervals[k].tests.count,
                                                 device=self.times.device), sign, [node])
                for k, sign, node in ((j - 1, 1.0, NODES - 1), (j, -1.0, 0)) if 0 <= k < len(self.intervals)]

    def _change(self, kept: list[Tensor], own: Sequence[Tensor | None]) -> Tensor:
        """Changes of the measured means, shape (rows,)."""
        rows = sum(interval.tests.count for interval in self.intervals)
        change = torch.zeros(rows, dtype=torch.float64, device=self.times.device)
        for j, (x, w) in enumerate(zip(kept, own, strict=True)):
            for interval, place, sign, node in self._ends(j):
                values = interval.tests.values(interval.frame, node, x[None])
                change[place] += sign * (values if w is None else values * w[:, None]).mean((0, 1))
        return change

    @torch.no_grad()
    def noise(self) -> Tensor:
        """The covariance of the equations' sampling error under the present drift and diffusion, (rows, rows).

        A snapshot enters by its means and by the correction of the path.
        """
        noise = torch.zeros(len(self.change), len(self.change), dtype=torch.float64, device=self.times.device)
        for clock, x, count, ends in self.sampled():
            values, place = self._error(clock, x, ends), torch.cat([end.place for end in ends])
            noise[place[:, None], place] += values.T @ values / len(values) / count
        if self.sizes is not None:
            # A count is Poisson: the variance of its logarithm is one over it.
            step = torch.eye(len(self.sizes)).to(noise).diff(dim=0)
            noise[-len(step):, -len(step):] += step / self.sizes @ step.T
        return noise + torch.diag(LEAST_NOISE * noise.diagonal() + 1e-14)

    @torch.no_grad()
    def chance(self, inverse: Tensor) -> Tensor:
        """The mean of the score of least squares at the truth, which is not zero: E[dA^T C^-1 de], shape (U,).

        The same points err in the matrix A and in the equations' error e. Left in, this draws all that is solved for
        towards zero (errors in the variables).

        Arguments:
            inverse: C^-1, shape (rows, rows).
        """
        drift, diffusion, growth = self.model.drift, self.model.diffusion, self.model.growth
        total = self.change.new_zeros(())
        for clock, x, count, ends in self.sampled():
            place = torch.cat([end.place for end in ends])
            dual = self._error(clock, x, ends) @ inverse[place[:, None], place] / len(x[0]) / count
            duals = dual.split([len(end.place) for end in ends], -1)
            parts = []
            for field, name, factor in ((drift, "gradients", 1.0), (diffusion, "seconds", 0.5)):
                seen = torch.stack([factor * end.half * torch.einsum("nqd,nq->nd", getattr(end.tests, name)[0], u)
                                    for end, u in zip(ends, duals, strict=True)]).sum(0)
                parts.append(by_unknown(torch.einsum("nd,dnp->dp", seen, columns_at(field, clock[0], x)[:, 0]), field))
            if growth is not None:
                seen = torch.stack([end.half * (_centred(end.tests.values[0]) * u).sum(-1)
                                    for end, u in zip(ends, duals, strict=True)]).sum(0)
                parts.append(seen @ _centred(growth.columns(x[0].to(clock)).double()))
            total = total + torch.cat(parts)
        return total

    def _error(self, clock: Tensor, x: Tensor, ends: list[_End]) -> Tensor:
        """What a point adds to the error of the equations that its snapshot enters, shape (N, rows)."""
        points, growth = x.to(clock), self.model.growth
        f, a = self.model.drift(clock, points).double(), self.model.diffusion(clock, points).double().square()
        parts = []
        for sign, half, tests in ((end.sign, end.half, end.tests) for end in ends):
            moved = (tests.rates + torch.einsum("mnqd,mnd->mnq", tests.gradients, f)
                     + 0.5 * torch.einsum("mnqd,mnd->mnq", tests.seconds, a))[0]
            if growth is not None:
                moved = moved + growth.source(points)[0, :, None].double() * _centred(tests.values[0])
            parts.append(sign * tests.values[0] - half * moved)
        return _centred(torch.cat(parts, -1))

    def sampled(self) -> Iterator[tuple[Tensor, Tensor, float, list[_End]]]:
        """For every snapshot its time (1, 1), points of its law (1, N, d), how many its own are worth, its equations."""
        for j, x in enumerate(self.drawn):
            yield self.times[[j]][:, None], x, self.counts[j], [
                _End(interval.tests(interval.frame, node, x), place, sign, 0.5 * interval.span)
                for interval, place, sign, node in self._ends(j)]

    def _transport(self, interval: _Interval) -> tuple[Tensor, Tensor]:
        """How the functions' own motion and the known drift change their means, (Q,), and the learned one, (Q, U)."""
        moved = transport = torch.zeros(()).to(self.change)
        drift = self.model.drift
        for t, x, weight, tests in interval.tested():
            share = weight / x.shape[1]
            gradients = tests.gradients * share[:, None, None, None]
            known = drift.known(t[:, None], x.to(t)).double()
            moved = moved + torch.einsum("mnq,m->q", tests.rates, share) + torch.einsum("mnqd,mnd->q", gradients, known)
            transport = transport + torch.einsum("mnqd,dmnp->qdp", gradients, columns_at(drift, t, x))
        return moved, by_unknown(transport, drift)

    def _growing(self, interval: _Interval) -> Tensor:
        """How growth changes the functions' means, by its unknowns: its covariance with them, (Q, U)."""
        growth = self.model.growth
        if growth is None:
            return self.change.new_zeros(interval.tests.count, 0)
        growing = torch.zeros(()).to(self.change)
        for t, x, weight, node, own in interval.samples:
            values, columns = interval.tests.values(interval.frame, node, x), growth.columns(x.to(t)).double()
            share = values.new_full((x.shape[1],), 1 / x.shape[1]) if own is None else own / own.sum()
            values = values - torch.einsum("mnq,n->mq", values, share)[:, None]
            growing = growing + torch.einsum("mnq,mnp,m,n->qp", values, columns, weight, share)
        return growing

    def _add_sizes(self, log_sizes: Tensor) -> None:
        """Adds an equation for every interval: the population's logarithm changes by the integral of its mean rate."""
        growth = self.model.growth
        if growth is None:
            raise ValueError("sizes of the population say something about growth only")
        rows = []
        for interval in self.intervals:
            means = [weight @ growth.columns(x.to(t)).double().mul(1 if own is None else own[:, None]).mean(1)
                     for t, x, weight, _, own in interval.samples]
            rows.append(torch.stack(means).sum(0))
        self.change = torch.cat([self.change, log_sizes.diff()])
        self.moved, self.transport = self._padded(self.moved), self._padded(self.transport)
        self.growing = torch.cat([self.growing, torch.stack(rows)])

    def _padded(self, rows: Tensor) -> Tensor:
        """Adds rows of zeros for the equations of the sizes: drift and noise make nobody."""
        return torch.cat([rows, rows.new_zeros(len(self.change) - len(rows), *rows.shape[1:])])

    def _spreading(self, interval: _Interval) -> tuple[Tensor, Tensor]:
        """How the noise changes the functions' means: its derivative by its unknowns, (Q, U), and the change, (Q,)."""
        diffusion = self.model.diffusion
        matrix = spread = torch.zeros(()).to(self.change)
        for t, x, weight, tests in interval.tested():
            seconds = tests.seconds * (0.5 * weight[:, None, None, None] / x.shape[1])
            matrix = matrix + torch.einsum("mnqd,dmnp->qdp", seconds, columns_at(diffusion, t, x))
            a = diffusion(t[:, None], x.to(t)).double().square()
            spread = spread + torch.einsum("mnqd,mnd->q", seconds, a)
        return by_unknown(matrix, diffusion), spread


def _centred(values: Tensor) -> Tensor:
    return values - values.mean(0)


def columns_at(field: AbstractField, t: Tensor, x: Tensor) -> Tensor:
    """How the field, or its variance, reacts to its readout at points x of shape (M, N, d): (d, M, N, P) in float64."""
    points = x.to(t)
    one = torch.ones_like(points).flatten(0, 1)
    return field.columns(t[:, None], points, [[one]])[0].unflatten(1, x.shape[:2]).double()


def by_unknown(derivative: Tensor, field: AbstractField) -> Tensor:
    """Turns derivatives by the readout of every coordinate, shape (..., d, P), into those by the unknowns, (..., U)."""
    return derivative.sum(-2) if len(field.get_readout()) == 1 else derivative.flatten(-2)


def kinds(field: AbstractField) -> Tensor:
    """Returns the kind of each unknown of a field, shape (U,)."""
    return field.groups().repeat(len(field.get_readout()))

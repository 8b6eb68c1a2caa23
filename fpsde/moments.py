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

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from fpsde.field import AbstractField
from fpsde.fokker_planck import FokkerPlanckLoss
from fpsde.frame import NODES, PRODUCTS, MovingFrame, Tested, TestFunctions, lobatto
from fpsde.threads import side_by_side

__all__ = ["MomentEquations", "by_unknown", "columns_at", "kinds"]

# Of the path at a node: 512 a coordinate, for a mean over a cloud errs by more where it has more directions.
POINTS = 512
MOST_AT_A_NODE = 4096
MOST_POINTS = 16384
MAX_ELEMENTS = 2**26
# How the coordinates act on each other, products of two of them tell: all in twenty dimensions, as long as all intervals
# together have no more equations than this.
MOST_PRODUCTS, MOST_EQUATIONS = 210, 5000
# Entries of the columns of a field at some of the points, which are held at a time.
AT_ONCE = 2**22
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

    def tested(self, columns: int) -> Iterator[tuple[Tensor, Tensor, Tensor, Tested]]:
        """For as many points of a block at a time as there is room for so many columns of each coordinate.

        Returns times (M,), points (M, N, d), their weights in the means over the interval (M, N), and the functions there.
        """
        for t, block, weight, node, own in self.samples:
            shares = weight[:, None] * (torch.ones_like(block[0, :, 0]) if own is None else own) / block.shape[1]
            for rows in _slices(block, columns):
                yield t, block[:, rows], shares[:, rows], self.tests(self.frame, node, block[:, rows])


class _End(NamedTuple):
    """The equations of an interval at one of its ends, where there is a snapshot."""

    interval: _Interval
    node: int
    sign: float
    """1 where the snapshot ends the interval, -1 where it starts it."""
    place: Tensor
    """Their rows."""

    @property
    def half(self) -> float:
        """Half the interval: the share of it over which the path is corrected by this snapshot."""
        return 0.5 * self.interval.span

    def tests(self, x: Tensor) -> Tested:
        """The functions at points x of shape (N, d), as at one time."""
        return self.interval.tests(self.interval.frame, [self.node], x[None])


class Sampled(NamedTuple):
    """A snapshot as it might have been."""

    t: Tensor
    """Its time, shape (1,)."""
    x: Tensor
    """Points of its law, shape (N, d)."""
    worth: float
    """How many points, were they alike, its own are worth."""
    ends: list[_End]
    """The equations that it enters."""

    @property
    def place(self) -> Tensor:
        """Their rows."""
        return torch.cat([end.place for end in self.ends])


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

    # Else all columns of all points would be kept for a backward pass that there is none of.
    @torch.no_grad()
    def __init__(self, model: FokkerPlanckLoss, times: Tensor, snapshots: list[Tensor], generator: torch.Generator,
                 weights: list[Tensor] | None = None, sizes: Tensor | None = None) -> None:
        self.model, self.times, self.sizes = model, times, sizes
        # Of unequal weights, a mean errs as if there were fewer points: (sum w)^2 / sum w^2 of them.
        self.counts = [float(len(x)) if weights is None else float(weights[j].sum() ** 2 / weights[j].square().sum())
                       for j, x in enumerate(snapshots)]
        dim = model.drift.dim
        tests = [TestFunctions(dim, generator, _products(dim, len(times))) for _ in snapshots[1:]]
        room = MAX_ELEMENTS // (tests[0].count * dim)
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
        self.drawn = [model.density.spread(times[[j]], min(4 * points, most), seed + j).double() for j in range(len(times))]
        self.change = self._change(kept, own)
        parts = side_by_side(self._transport, self.intervals)
        self.moved, self.transport = (torch.cat(part) for part in zip(*parts, strict=True))
        self.growing = torch.cat([self._growing(interval) for interval in self.intervals])
        if sizes is not None:
            self._add_sizes(sizes.double().log())

    @staticmethod
    def fits(model: FokkerPlanckLoss, n_snapshots: int) -> bool:
        """Whether the equations of all intervals can be held in memory; in several hundred dimensions they cannot."""
        unknowns = model.drift.get_readout().numel() + model.diffusion.get_readout().numel()
        tests = TestFunctions.how_many(model.drift.dim, _products(model.drift.dim, n_snapshots))
        return (n_snapshots - 1) * tests * unknowns <= 4 * MAX_ELEMENTS

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
        matrix, spread = zip(*side_by_side(self._spreading, self.intervals), strict=True)
        return self._padded(torch.cat(matrix)), self._padded(torch.cat(spread))

    def _ends(self, j: int) -> list[_End]:
        """The equations that a snapshot enters."""
        count = self.intervals[0].tests.count
        return [_End(self.intervals[k], node, sign, torch.arange(k * count, (k + 1) * count, device=self.times.device))
                for k, sign, node in ((j - 1, 1.0, NODES - 1), (j, -1.0, 0)) if 0 <= k < len(self.intervals)]

    def _change(self, kept: list[Tensor], own: Sequence[Tensor | None]) -> Tensor:
        """Changes of the measured means, shape (rows,)."""
        rows = sum(interval.tests.count for interval in self.intervals)
        change = torch.zeros(rows, dtype=torch.float64, device=self.times.device)
        for j, (x, w) in enumerate(zip(kept, own, strict=True)):
            for end in self._ends(j):
                values = end.tests(x).values[0]
                change[end.place] += end.sign * (values if w is None else values * w[:, None]).mean(0)
        return change

    @torch.no_grad()
    def noise(self) -> Tensor:
        """The covariance of the equations' sampling error under the present drift and diffusion, (rows, rows).

        A snapshot enters by its means and by the correction of the path.
        """
        noise = torch.zeros(len(self.change), len(self.change), dtype=torch.float64, device=self.times.device)
        samples = list(self.sampled())
        for sample, part in zip(samples, side_by_side(self._covariance, samples), strict=True):
            noise[sample.place[:, None], sample.place] += part
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
        return torch.stack(side_by_side(lambda sample: self._chance(sample, inverse), list(self.sampled()))).sum(0)

    def _covariance(self, sample: Sampled) -> Tensor:
        """What a snapshot adds to the covariance of the equations that it enters."""
        error = self._error(sample)
        return error.T @ error / len(error) / sample.worth

    def _chance(self, sample: Sampled, inverse: Tensor) -> Tensor:
        """What a snapshot adds to the mean of the score, shape (U,)."""
        drift, diffusion, growth = self.model.drift, self.model.diffusion, self.model.growth
        (t, x, worth, ends), place = sample, sample.place
        dual = self._error(sample) @ inverse[place[:, None], place] / len(x) / worth
        tests, duals = [end.tests(x) for end in ends], [u[None] for u in dual.split([len(end.place) for end in ends], -1)]

        def seen(name: str) -> Tensor:
            """What the equations see at each point, shape (N, d)."""
            return torch.stack([end.half * getattr(some, name)(u)[0]
                                for end, some, u in zip(ends, tests, duals, strict=True)]).sum(0)

        parts = []
        for field, seen_there in ((drift, seen("gradient")), (diffusion, 0.5 * seen("curvature"))):
            rows = _slices(x[None], field.get_readout().shape[1])
            parts.append(by_unknown(torch.stack([
                torch.einsum("nd,dnp->dp", seen_there[some], columns_at(field, t, x[None, some])[:, 0])
                for some in rows]).sum(0), field))
        if growth is not None:
            grown = torch.stack([end.half * (_centred(some.values[0]) * u[0]).sum(-1)
                                 for end, some, u in zip(ends, tests, duals, strict=True)]).sum(0)
            parts.append(grown @ _centred(growth.columns(x.to(t)).double()))
        return torch.cat(parts)

    def _error(self, sample: Sampled) -> Tensor:
        """What a point adds to the error of the equations that its snapshot enters, shape (N, rows)."""
        (t, x, _, ends), growth = sample, self.model.growth
        clock, points = t[:, None], x[None].to(t)
        f, a = self.model.drift(clock, points).double(), self.model.diffusion(clock, points).double().square()
        parts = []
        for end in ends:
            tests = end.tests(x)
            values, changed = tests.values[0], (tests.along(f) + 0.5 * tests.spread(a))[0]
            if growth is not None:
                changed = changed + growth.source(points)[0, :, None].double() * _centred(values)
            parts.append(end.sign * values - end.half * changed)
        return _centred(torch.cat(parts, -1))

    def sampled(self) -> Iterator[Sampled]:
        """What each snapshot might have been."""
        for j, x in enumerate(self.drawn):
            yield Sampled(self.times[[j]], x[0], self.counts[j], self._ends(j))

    def _transport(self, interval: _Interval) -> tuple[Tensor, Tensor]:
        """How the functions' own motion and the known drift change their means, (Q,), and the learned one, (Q, U)."""
        moved = transport = torch.zeros(()).to(self.change)
        drift = self.model.drift
        for t, x, share, tests in interval.tested(drift.get_readout().shape[1]):
            moved = moved + torch.einsum("mnq,mn->q", tests.along(drift.known(t[:, None], x.to(t)).double()), share)
            transport = transport + tests.gradients_with(columns_at(drift, t, x), share)
        return moved, by_unknown(transport, drift)

    def _growing(self, interval: _Interval) -> Tensor:
        """How growth changes the functions' means, by its unknowns: its covariance with them, (Q, U)."""
        growth = self.model.growth
        if growth is None:
            return self.change.new_zeros(interval.tests.count, 0)
        growing = torch.zeros(()).to(self.change)
        for t, x, weight, node, own in interval.samples:
            values, columns = interval.tests(interval.frame, node, x).values, growth.columns(x.to(t)).double()
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
        for t, x, share, tests in interval.tested(diffusion.get_readout().shape[1]):
            matrix = matrix + 0.5 * tests.seconds_with(columns_at(diffusion, t, x), share)
            a = diffusion(t[:, None], x.to(t)).double().square()
            spread = spread + 0.5 * torch.einsum("mnq,mn->q", tests.spread(a), share)
        return by_unknown(matrix, diffusion), spread


def _products(dim: int, n_snapshots: int) -> int:
    """How many products of two coordinates there are among the functions of an interval, at most."""
    return max(PRODUCTS, min(MOST_PRODUCTS, MOST_EQUATIONS // (n_snapshots - 1) - dim))


def _slices(x: Tensor, columns: int) -> list[slice]:
    """Cuts points of shape (M, N, d) into as many at a time as there is room for values and columns of each coordinate."""
    count = max(1, AT_ONCE // (len(x) * x.shape[-1] * (1 + columns)))
    return [slice(first, first + count) for first in range(0, x.shape[1], count)]


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
    return field.groups().flatten()

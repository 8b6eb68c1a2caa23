r"""Drift and diffusion from the snapshots' own moments: the weak form of the Fokker-Planck equation.

Between two snapshots, the mean of any smooth function psi(t, x) changes by

.. math:: E_{j+1}[\psi] - E_j[\psi]
    = \int_{t_j}^{t_{j+1}} E_p\Big[\partial_t \psi + f \cdot \nabla \psi + \tfrac12 \sum_i a_i\, \partial_i^2 \psi\Big] dt

The left side is measured, with a known covariance. The right side is linear in f and a; the density path only has to
interpolate, and where it misses a snapshot it is corrected by the points themselves. Neither score nor residual enters, so
that noise in the density does not pull drift and diffusion towards zero, as it does in least squares on the residual
(errors in the variables). The functions move with the cloud, so that a narrow cloud on a long way is seen as sharply as a
wide one at rest. How much drift and noise may bend is decided by the evidence.

References:
    Weak SINDy for partial differential equations (Messenger & Bortz, 2021), https://arxiv.org/abs/2007.02848
    Large sample properties of generalized method of moments estimators (Hansen, 1982), https://doi.org/10.2307/1912775
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fpsde.diffusion import AbstractDiffusion
from fpsde.evidence import Component, Explained, explain
from fpsde.fokker_planck import FokkerPlanckLoss
from fpsde.frame import NODES, MovingFrame, TestFunctions, lobatto
from fpsde.hollow import FREE, HollowNet

__all__ = ["MomentEquations", "solve_moments"]

POINTS = 1024
MOST_POINTS = 16384
MAX_ELEMENTS = 2**26
LEAST_NOISE = 0.01
LARGEST_CHANGE = 0.5

# Variances where the search for the evidence starts: first it is believed that the drift bends and the noise is even.
DRIFT_START, DIFFUSION_START, UNKNOWN = 100.0, 1e-4, 1e4
# Noise is expected to vary by some tens of per cent: bends of it and of the drift look much alike in the marginals.
DRIFT_MOST, DIFFUSION_MOST = 1e6, 0.01
PATH_ERROR_START, PATH_ERROR_MOST = 0.1, 100.0


@dataclass
class _Interval:
    frame: MovingFrame
    tests: TestFunctions
    span: float
    samples: list[tuple[Tensor, Tensor, Tensor, list[int]]]
    """Times (M,), points (M, N, d), quadrature weights (M,) and nodes of each block of points."""


class MomentEquations:
    """The equations of all intervals, in float64, for a density that stays as it is.

    Arguments:
        model: density, drift and diffusion.
        times: of the snapshots, shape (T,).
        snapshots: T tensors of shape (n_j, d).
        generator: draws test functions and points.
    """

    def __init__(self, model: FokkerPlanckLoss, times: Tensor, snapshots: list[Tensor],
                 generator: torch.Generator) -> None:
        self.model, self.times = model, times
        self.counts = [len(x) for x in snapshots]
        dim = model.drift.dim
        tests = [TestFunctions(dim, generator) for _ in snapshots[1:]]
        room = MAX_ELEMENTS // (tests[0].count * dim)
        points, most = max(64, min(POINTS, room // NODES)), max(256, min(MOST_POINTS, room))
        kept = [x[torch.randperm(len(x), generator=generator, device=x.device)[:most]].double() for x in snapshots]
        seed = int(torch.randint(2**31, (), generator=generator, device=generator.device))
        nodes, weights = (torch.as_tensor(z, device=times.device) for z in lobatto(NODES))
        self.intervals = []
        for j in range(len(times) - 1):
            span = float(times[j + 1] - times[j])
            t = (times[j] + span * nodes).to(times)
            x = model.density.spread(t, points, seed + j * NODES).double()
            samples = [(t, x, weights * span, list(range(NODES)))]
            # The path is right between the snapshots if it is right at them: its miss there is spread over the interval.
            for end, node in ((j, 0), (j + 1, NODES - 1)):
                half = torch.full((1,), 0.5 * span).to(weights)
                samples += [(t[[node]], kept[end][None], half, [node]), (t[[node]], x[[node]], -half, [node])]
            self.intervals.append(_Interval(MovingFrame(x, span), tests[j], span, samples))
        seed += len(self.intervals) * NODES
        self.drawn = [model.density.spread(times[[j]], min(4 * points, most), seed + j).double() for j in range(len(times))]
        self.change = self._change(kept)
        parts = [self._transport(interval) for interval in self.intervals]
        self.moved, self.transport = (torch.cat(part) for part in zip(*parts, strict=True))

    @staticmethod
    def fits(model: FokkerPlanckLoss, n_snapshots: int) -> bool:
        """Whether the equations of all intervals can be held in memory; in several hundred dimensions they cannot."""
        unknowns = model.drift.get_readout().shape[1] + model.diffusion.get_readout().shape[1]
        rows = (n_snapshots - 1) * TestFunctions.how_many(model.drift.dim)
        return rows * model.drift.dim * unknowns <= 4 * MAX_ELEMENTS

    @torch.no_grad()
    def linearise(self) -> tuple[Tensor, Tensor]:
        """Returns the right side's derivative by the readouts, shape (rows, d, P), and what it leaves open, (rows,).

        Exact in the drift, Gauss-Newton in the diffusion.
        """
        parts = [self._spreading(interval) for interval in self.intervals]
        spreading, spread = (torch.cat(part) for part in zip(*parts, strict=True))
        drift = self.model.drift.get_readout().double()
        moved = self.moved + torch.einsum("qdp,dp->q", self.transport, drift)
        return torch.cat([self.transport, spreading], -1), self.change - moved - spread

    def _ends(self, j: int) -> list[tuple[_Interval, Tensor, float, list[int]]]:
        """The intervals that meet at a snapshot: their rows, 1 where it ends them and -1 where it starts them, its node."""
        return [(self.intervals[k], torch.arange(k * self.intervals[k].tests.count, (k + 1) * self.intervals[k].tests.count,
                                                 device=self.times.device), sign, [node])
                for k, sign, node in ((j - 1, 1.0, NODES - 1), (j, -1.0, 0)) if 0 <= k < len(self.intervals)]

    def _change(self, kept: list[Tensor]) -> Tensor:
        """Changes of the measured means, shape (rows,)."""
        rows = sum(interval.tests.count for interval in self.intervals)
        change = torch.zeros(rows, dtype=torch.float64, device=self.times.device)
        for j, x in enumerate(kept):
            for interval, place, sign, node in self._ends(j):
                change[place] += sign * interval.tests.values(interval.frame, node, x[None]).mean((0, 1))
        return change

    @torch.no_grad()
    def noise(self) -> Tensor:
        """The covariance of the equations' sampling error under the present drift and diffusion, (rows, rows).

        A snapshot enters by its means and by the correction of the path.
        """
        drift, diffusion = self.model.drift, self.model.diffusion
        rows = len(self.change)
        noise = torch.zeros(rows, rows, dtype=torch.float64, device=self.times.device)
        for j, x in enumerate(self.drawn):
            clock, points = self.times[[j]][:, None], x.to(self.times)
            f, a = drift(clock, points).double(), diffusion(clock, points).double().square()
            parts, places = [], []
            for interval, place, sign, node in self._ends(j):
                tests = interval.tests(interval.frame, node, x)
                rate = tests.rates + torch.einsum("mnqd,mnd->mnq", tests.gradients, f) \
                    + 0.5 * torch.einsum("mnqd,mnd->mnq", tests.seconds, a)
                parts.append((sign * tests.values - 0.5 * interval.span * rate)[0])
                places.append(place)
            values, place = torch.cat(parts, -1), torch.cat(places)
            values = values - values.mean(0)
            noise[place[:, None], place] += values.T @ values / len(values) / self.counts[j]
        return noise + torch.diag(LEAST_NOISE * noise.diagonal() + 1e-14)

    def _transport(self, interval: _Interval) -> tuple[Tensor, Tensor]:
        """How the functions' own motion and the drift change their means, shapes (Q,) and (Q, d, P)."""
        moved = transport = torch.zeros(()).to(self.change)
        for t, x, weight, node in interval.samples:
            tests = interval.tests(interval.frame, node, x)
            share = weight / x.shape[1]
            moved = moved + torch.einsum("mnq,m->q", tests.rates, share)
            columns = _columns(self.model.drift, t, x)
            transport = transport + torch.einsum("mnqd,dmnp->qdp", tests.gradients * share[:, None, None, None], columns)
        return moved, transport

    def _spreading(self, interval: _Interval) -> tuple[Tensor, Tensor]:
        """How the noise changes the functions' means: its derivative by the readout, (Q, d, P), and the change, (Q,)."""
        diffusion = self.model.diffusion
        matrix = spread = torch.zeros(()).to(self.change)
        for t, x, weight, node in interval.samples:
            seconds = interval.tests(interval.frame, node, x).seconds * (0.5 * weight[:, None, None, None] / x.shape[1])
            matrix = matrix + torch.einsum("mnqd,dmnp->qdp", seconds, _columns(diffusion, t, x))
            a = diffusion(t[:, None], x.to(t)).double().square()
            spread = spread + torch.einsum("mnqd,mnd->q", seconds, a)
        return matrix, spread


def _columns(field: HollowNet | AbstractDiffusion, t: Tensor, x: Tensor) -> Tensor:
    """How the field, or its variance, reacts to its readout at points x of shape (M, N, d): (d, M, N, P) in float64."""
    points = x.to(t)
    one = torch.ones_like(points).flatten(0, 1)
    return field.columns(t[:, None], points, [one]).unflatten(1, x.shape[:2]).double()


@torch.no_grad()
def solve_moments(equations: MomentEquations, rounds: int) -> Explained:
    """Solves the moment equations for the readouts of drift and diffusion, and sets them.

    Arguments:
        equations: of all intervals.
        rounds: Gauss-Newton rounds; one is enough if the diffusion is known.
    """
    drift, diffusion = equations.model.drift, equations.model.diffusion
    split = drift.get_readout().shape[1]
    labels = [drift.groups(), diffusion.groups()]
    # Beside the sampling error, what the path gets wrong between the snapshots.
    for _ in range(rounds):
        noise = equations.noise()
        path_error = Component(noise, PATH_ERROR_START, PATH_ERROR_MOST, noise=True)
        matrix, left = equations.linearise()
        values = torch.cat([drift.get_readout(), diffusion.get_readout()], 1).double()
        # Deviations from a zero drift and from the present level of noise, by group.
        centre = torch.zeros_like(values)
        if values.shape[1] > split:
            centre[:, -1] = values[:, -1]
        observed = left + torch.einsum("qdp,dp->q", matrix, values - centre)
        groups, components = [], [path_error]
        for first, label, start, most in ((0, labels[0], DRIFT_START, DRIFT_MOST),
                                          (split, labels[1], DIFFUSION_START, DIFFUSION_MOST)):
            for group in label.unique().tolist():
                columns = first + (label == group).nonzero()[:, 0]
                part = matrix[:, :, columns].flatten(1)
                groups.append(columns)
                # A level is not shrunk: it is as free as UNKNOWN lets it be.
                around = (UNKNOWN, UNKNOWN, UNKNOWN) if group == FREE else (start, most, 0.0)
                components.append(Component(part @ part.T, *around))
        explained = explain(observed, noise, components)
        new = centre.clone()
        for columns, variance in zip(groups, explained.variances[1:], strict=True):
            new[:, columns] += variance * torch.einsum("qdp,q->dp", matrix[:, :, columns], explained.dual)
        change = new - values
        # The diffusion is linearised: no more than a moderate step at once.
        largest = change[:, split:].abs().amax() if change.shape[1] > split else change.new_zeros(())
        change = change * (LARGEST_CHANGE / largest.clamp_min(LARGEST_CHANGE))
        if not bool(torch.isfinite(change).all()):
            break
        values = values + change
        drift.set_readout(values[:, :split])
        diffusion.set_readout(values[:, split:])
    return explained

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

from fpsde.evidence import Component, Explained, explain
from fpsde.fokker_planck import FokkerPlanckLoss
from fpsde.frame import NODES, MovingFrame, TestFunctions, lobatto
from fpsde.hollow import FREE

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
        self.model = model
        dim = model.drift.dim
        tests = [TestFunctions(dim, generator) for _ in snapshots[1:]]
        room = MAX_ELEMENTS // (tests[0].count * dim)
        points, most = max(64, min(POINTS, room // NODES)), max(256, min(MOST_POINTS, room))
        kept = [x[torch.randperm(len(x), generator=generator, device=x.device)[:most]] for x in snapshots]
        seed = int(torch.randint(2**31, (), generator=generator, device=generator.device))
        nodes, weights = (torch.as_tensor(z, device=times.device) for z in lobatto(NODES))
        self.intervals = []
        for j in range(len(times) - 1):
            span = float(times[j + 1] - times[j])
            t = (times[j] + span * nodes).to(times)
            x = model.density.spread(t, points, seed + j).double()
            samples = [(t, x, weights * span, list(range(NODES)))]
            # The path is right between the snapshots if it is right at them: its miss there is spread over the interval.
            for end, node in ((j, 0), (j + 1, NODES - 1)):
                half = torch.full((1,), 0.5 * span).to(weights)
                samples += [(t[[node]], kept[end][None].double(), half, [node]), (t[[node]], x[[node]], -half, [node])]
            self.intervals.append(_Interval(MovingFrame(x, span), tests[j], samples))
        self.change, self.noise = self._measured(times, kept, [len(x) for x in snapshots], seed)
        self.moved = torch.cat([self._moved(interval) for interval in self.intervals])

    @staticmethod
    def fits(model: FokkerPlanckLoss, n_snapshots: int) -> bool:
        """Whether the equations of all intervals can be held in memory; in several hundred dimensions they cannot."""
        unknowns = model.drift.get_readout().shape[1] + model.diffusion.get_readout().shape[1]
        rows = (n_snapshots - 1) * TestFunctions.how_many(model.drift.dim)
        return rows * model.drift.dim * unknowns <= 4 * MAX_ELEMENTS

    def linearise(self) -> tuple[Tensor, Tensor]:
        """Returns the right side's derivative by the readouts, shape (rows, d, P), and what it leaves open, (rows,).

        Exact in the drift, Gauss-Newton in the diffusion.
        """
        blocks, spreads = zip(*(self._effect(interval) for interval in self.intervals), strict=True)
        matrix = torch.cat(blocks)
        drift = self.model.drift.get_readout().double()
        transport = torch.einsum("qdp,dp->q", matrix[..., :drift.shape[1]], drift)
        return matrix, self.change - self.moved - transport - torch.cat(spreads)

    def _measured(self, times: Tensor, kept: list[Tensor], counts: list[int], seed: int) -> tuple[Tensor, Tensor]:
        """Changes of the measured means, shape (rows,), and the covariance of their sampling error, (rows, rows)."""
        rows = sum(interval.tests.count for interval in self.intervals)
        change = torch.zeros(rows, dtype=torch.float64, device=times.device)
        noise = torch.zeros(rows, rows, dtype=torch.float64, device=times.device)
        for j, x in enumerate(kept):
            drawn = self.model.density.spread(times[j:j + 1], 4 * POINTS, seed + len(kept) + j).double()
            parts, places = [], []
            for k, sign, node in ((j - 1, 1.0, NODES - 1), (j, -1.0, 0)):
                if 0 <= k < len(self.intervals):
                    frame, tests = self.intervals[k].frame, self.intervals[k].tests
                    place = torch.arange(k * tests.count, (k + 1) * tests.count, device=x.device)
                    change[place] += sign * tests.values(frame, [node], x[None].double()).mean((0, 1))
                    parts.append(sign * tests.values(frame, [node], drawn)[0])
                    places.append(place)
            values, place = torch.cat(parts, -1), torch.cat(places)
            values = values - values.mean(0)
            noise[place[:, None], place] += values.T @ values / len(values) / counts[j]
        return change, noise + torch.diag(LEAST_NOISE * noise.diagonal() + 1e-14)

    def _moved(self, interval: _Interval) -> Tensor:
        total = torch.zeros(interval.tests.count).to(self.change)
        for _, x, weight, node in interval.samples:
            total += torch.einsum("mnq,m->q", interval.tests(interval.frame, node, x).rates, weight) / x.shape[1]
        return total

    def _effect(self, interval: _Interval) -> tuple[Tensor, Tensor]:
        drift, diffusion = self.model.drift, self.model.diffusion
        matrix = spread = torch.zeros(()).to(self.change)
        for t, x, weight, node in interval.samples:
            tests = interval.tests(interval.frame, node, x)
            share = weight[:, None, None, None] / x.shape[1]
            gradients, seconds = tests.gradients * share, 0.5 * tests.seconds * share
            clock, points = t[:, None], x.to(t.dtype)
            one = torch.ones_like(points).flatten(0, 1)
            columns = [z.columns(clock, points, [one]).unflatten(1, x.shape[:2]).double() for z in (drift, diffusion)]
            matrix = matrix + torch.cat([torch.einsum("mnqd,dmnp->qdp", c, z) for c, z in
                                         zip((gradients, seconds), columns, strict=True)], -1)
            spread = spread + torch.einsum("mnqd,mnd->q", seconds, diffusion.variance(clock, points)[0].double())
        return matrix, spread


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
    path_error = Component(equations.noise, PATH_ERROR_START, PATH_ERROR_MOST, noise=True)
    for _ in range(rounds):
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
                around = (UNKNOWN, UNKNOWN) if group == FREE else (start, most)
                components.append(Component(part @ part.T, *around))
        explained = explain(observed, equations.noise, components)
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

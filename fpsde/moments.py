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

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fpsde.evidence import Component, Explained, explain
from fpsde.fokker_planck import FokkerPlanckLoss

__all__ = ["MomentEquations", "MovingFrame", "TestFunctions", "solve_moments"]

NODES = 6
POINTS = 1024
MOST_POINTS = 16384
MAX_PRODUCTS = 60
MAX_WAVES = 60
WAVES = 10
FULL_FRAME_UP_TO = 20
LEAST_NOISE = 0.01
LARGEST_CHANGE = 0.5

# Variances where the search for the evidence starts: first it is believed that the drift bends and the noise is even.
DRIFT_START, DIFFUSION_START, FREE = 100.0, 1e-4, 1e4
DRIFT_MOST, DIFFUSION_MOST = 1e6, 0.05
PATH_ERROR_START, PATH_ERROR_MOST = 0.1, 100.0


class MovingFrame:
    """A frame that moves and stretches with the cloud over one interval: y = W(t) (x - m(t)).

    m and W are polynomials in time through the cloud's mean and inverse root covariance at Lobatto's nodes.

    Arguments:
        x: points of the density at the nodes, shape (NODES, n, d).
        span: length of the interval.
    """

    def __init__(self, x: Tensor, span: float) -> None:
        nodes, _ = lobatto(NODES)
        slope = torch.as_tensor(_differentiation(nodes), device=x.device) / span
        self.centre = x.mean(1)
        offsets = x - self.centre[:, None]
        if x.shape[-1] > FULL_FRAME_UP_TO:
            self.whiten = offsets.square().mean(1).clamp_min(1e-12).rsqrt().diag_embed()
        else:
            covariance = offsets.mT @ offsets / x.shape[1]
            spread = covariance.diagonal(dim1=-2, dim2=-1)
            root = torch.linalg.cholesky_ex(covariance + torch.diag_embed(1e-6 * spread + 1e-12)).L
            eye = torch.eye(x.shape[-1]).to(x)
            self.whiten = torch.linalg.solve_triangular(root, eye.expand_as(root), upper=False)
        self.centre_rate = slope @ self.centre
        self.whiten_rate = torch.einsum("ab,bij->aij", slope, self.whiten)


class Tested(NamedTuple):
    """Values and derivatives of Q functions at M nodes with N points each."""

    values: Tensor
    """Shape (M, N, Q)."""
    rates: Tensor
    """Derivative in time at fixed x, shape (M, N, Q)."""
    gradients: Tensor
    """Shape (M, N, Q, d)."""
    seconds: Tensor
    """Diagonal second derivatives, shape (M, N, Q, d)."""


class TestFunctions:
    """Linear, quadratic and wave-like functions of the coordinates of a moving frame.

    Arguments:
        dim: number of coordinates d.
        generator: draws the waves and, in many dimensions, which products to use.
    """

    __test__ = False

    def __init__(self, dim: int, generator: torch.Generator) -> None:
        n_waves = min(WAVES * dim, MAX_WAVES)
        device, dtype = generator.device, torch.float64
        self.waves = torch.randn(n_waves, dim, generator=generator, dtype=dtype, device=device)
        self.phase = 2 * math.pi * torch.rand(n_waves, generator=generator, dtype=dtype, device=device)
        pairs = torch.triu_indices(dim, dim, device=device)
        if pairs.shape[1] > MAX_PRODUCTS:
            # Those of a coordinate with itself say most about its noise and are never left out.
            same, other = pairs[:, pairs[0] == pairs[1]], pairs[:, pairs[0] != pairs[1]]
            order = torch.randperm(other.shape[1], generator=generator, device=device)
            pairs = torch.cat([same, other[:, order[:max(MAX_PRODUCTS - dim, 0)]]], 1)
        self.pairs = pairs
        self.count = dim + pairs.shape[1] + n_waves

    def values(self, frame: MovingFrame, node: Sequence[int], x: Tensor) -> Tensor:
        """Returns the functions' values, shape (M, N, Q), at points x of shape (M, N, d) at M nodes."""
        y = (x - frame.centre[node][:, None]) @ frame.whiten[node].mT
        i, j = self.pairs
        return torch.cat([y, y[..., i] * y[..., j], (y @ self.waves.T + self.phase).cos()], -1)

    def __call__(self, frame: MovingFrame, node: Sequence[int], x: Tensor) -> Tested:
        """Evaluates the functions and their derivatives at points x of shape (M, N, d) at M nodes."""
        w, d = frame.whiten[node], x.shape[-1]
        offsets = x - frame.centre[node][:, None]
        y = offsets @ w.mT
        y_rate = offsets @ frame.whiten_rate[node].mT - (w @ frame.centre_rate[node][..., None]).mT
        i, j = self.pairs
        angle, waves = y @ self.waves.T + self.phase, self.waves @ w
        sine, cosine = angle.sin(), angle.cos()
        rows_i, rows_j = w[:, None, i], w[:, None, j]
        shape = y.shape[:-1]
        return Tested(
            torch.cat([y, y[..., i] * y[..., j], cosine], -1),
            torch.cat([y_rate, y_rate[..., i] * y[..., j] + y[..., i] * y_rate[..., j],
                       -sine * (y_rate @ self.waves.T)], -1),
            torch.cat([w[:, None].expand(*shape, d, d), y[..., i, None] * rows_j + y[..., j, None] * rows_i,
                       -sine[..., None] * waves[:, None]], -2),
            torch.cat([torch.zeros(*shape, d, d).to(y), (2 * rows_i * rows_j).expand(*shape, -1, d),
                       -cosine[..., None] * waves.square()[:, None]], -2))


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
        kept = [x[torch.randperm(len(x), generator=generator, device=x.device)[:MOST_POINTS]] for x in snapshots]
        seed = int(torch.randint(2**31, (), generator=generator, device=generator.device))
        nodes, weights = (torch.as_tensor(z, device=times.device) for z in lobatto(NODES))
        self.intervals = []
        for j in range(len(times) - 1):
            span = float(times[j + 1] - times[j])
            t = (times[j] + span * nodes).to(times)
            x = model.density.spread(t, POINTS, seed + j).double()
            samples = [(t, x, weights * span, list(range(NODES)))]
            # The path is right between the snapshots if it is right at them: its miss there is spread over the interval.
            for end, node in ((j, 0), (j + 1, NODES - 1)):
                half = torch.full((1,), 0.5 * span).to(weights)
                samples += [(t[[node]], kept[end][None].double(), half, [node]), (t[[node]], x[[node]], -half, [node])]
            self.intervals.append(_Interval(MovingFrame(x, span), TestFunctions(dim, generator), samples))
        self.change, self.noise = self._measured(times, kept, [len(x) for x in snapshots], seed)
        self.moved = torch.cat([self._moved(interval) for interval in self.intervals])

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
            for group in label.unique():
                columns = first + (label == group).nonzero()[:, 0]
                part = matrix[:, :, columns].flatten(1)
                free = int(group) < 0
                groups.append(columns)
                components.append(Component(part @ part.T, FREE if free else start, FREE if free else most))
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


def lobatto(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the nodes and weights of Lobatto's quadrature on [0, 1], whose first and last nodes are the ends."""
    legendre = np.polynomial.legendre.Legendre.basis(n - 1)
    nodes = np.concatenate([[-1.0], np.sort(legendre.deriv().roots().real), [1.0]])
    return (nodes + 1) / 2, 1 / (n * (n - 1) * legendre(nodes) ** 2)


def _differentiation(nodes: np.ndarray) -> np.ndarray:
    """The matrix that takes values at the nodes to derivatives of the polynomial through them."""
    gaps = nodes[:, None] - nodes
    np.fill_diagonal(gaps, 1.0)
    scale = gaps.prod(1)
    matrix = scale[:, None] / scale / gaps
    np.fill_diagonal(matrix, 0.0)
    return matrix - np.diag(matrix.sum(1))

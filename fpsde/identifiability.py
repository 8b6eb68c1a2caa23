r"""What snapshots cannot tell: how firm the noise level is, and which part of the drift they fix.

For any noise there is a drift that leaves the same marginals, :math:`f = v + \tfrac12 (D a + a s)`, and any field w with
:math:`\nabla \cdot (p w) = 0` can be added. What removes this freedom is an assumption. Under drift and noise that are the
same at all times it can be measured how far it does:

- the noise is scaled by 1/4 to 4 and the drift solved for again, with the path as it is; half the growth of the
  moments' misfit says how much worse the snapshots are explained, and 1.92 marks the ends of the noise's interval, which is
  never narrower than 1.96 standard errors each way of a noise whose shape is open too;
- the drift is projected on gradients under the density of every time: that part each marginal fixes by itself, given the
  noise; the rest circulates;
- a turn of the whole population about its centre is added, with the drift's bends as they are, and the equations say how
  precisely its rate is known;
- noise that may vary severalfold and a drift that may bend get standard errors, place by place.

A drift that is free in time follows any path under any noise: there the profile shows how little changes.

References:
    Which marginals identify drift and diffusion: Lavenant, Zhang, Kim & Schiebinger, Toward a mathematical theory of
    trajectory inference (2024), https://doi.org/10.1214/23-AAP1969
    Inferring parameters by profile likelihood: Raue et al. (2009), https://doi.org/10.1093/bioinformatics/btp358
"""

from __future__ import annotations

import copy
import math
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fpsde.diffusion import AbstractDiffusion, AbstractKnownDiffusion, KnownDiffusion
from fpsde.evidence import explain
from fpsde.field import FREE, LINEAR, is_linear
from fpsde.fokker_planck import FokkerPlanckLoss, LossWeights, excess_velocity
from fpsde.frame import NODES, MovingFrame, TestFunctions
from fpsde.moments import MomentEquations, by_unknown, columns_at, kinds
from fpsde.potential import GradientDrift, learned_potential
from fpsde.projection import ReadoutSolver, Ridge
from fpsde.readouts import PATH_ERROR, coefficients, found_groups, priors
from fpsde.uncertainty import standard_errors

__all__ = ["LOSS_AT_ENDS", "Identifiability", "identifiability"]

Array = NDArray[np.float64]

SCALES = np.geomspace(0.25, 4, 17)
# Half the 95 % quantile of chi-square with one degree of freedom.
LOSS_AT_ENDS = 1.92
TWO_SIDED = 1.96
POINTS = 512
MAX_TURNING_DIM = 10
CHANCE_POINTS = 200
FREE_VARIANCE = 1e5
BEYOND_CHANCE = 3.0
ROUNDS = 15
HARDLY = 0.25


class Identifiability(NamedTuple):
    """How far the snapshots and the assumption in force fix noise and drift."""

    autonomous: bool
    """Whether drift and noise are taken to be the same at all times; else only least kinetic energy splits them."""
    scales: Array
    """Multiples of the fitted noise level that were tried, shape (k,)."""
    worse: Array
    """Half the growth of the misfit at each, shape (k,); for a drift free in time, the mean square of the velocity by which
    the SDE misses its density path, relative to that of the path."""
    noise_interval: tuple[float, float]
    """Multiples of the fitted noise that explain the snapshots about as well, with the path as it is, or the interval of
    its standard error if that is wider; an end at 1/4 or 4 is open."""
    noise_given: bool
    """Whether the noise was given and not learned."""
    gradient_share: float
    """Share of the drift's mean square that is a gradient: each marginal fixes it, given the noise."""
    turning: float
    """Standard error of the rate, in radians per time unit, at which the population turns about its centre, in the plane
    where it is known worst; infinite if it is not known at all, NaN if it was not looked for (more than 10 coordinates)."""
    span: float
    """Time between the first and the last snapshot."""
    noise_error: float = math.nan
    """Standard error of the noise, root mean square over places and coordinates, relative to that of the noise, if it may
    vary severalfold; 0 if it is given, NaN for a drift free in time. In units of the fit: deviations, logarithms."""
    drift_error: float = math.nan
    """The same of the drift. Both count the snapshots' sampling, not a path or a model that is wrong."""
    gradient: bool = False
    """Whether what is learned of the drift is a gradient, an assumption: nothing of it circulates, and no turn is free."""

    @property
    def noise_known(self) -> bool:
        """Whether the noise is known to within a factor of two each way."""
        return self.noise_given or (self.noise_interval[0] > 0.5 and self.noise_interval[1] < 2)

    @property
    def turning_known(self) -> bool:
        """Whether the rate of turning is known to better than half a turn over all the data's time."""
        return self.turning * self.span < math.pi

    def __str__(self) -> str:
        low, high = self.noise_interval
        ends = (f"{low:.3g}" if low > SCALES[0] else f"{low:.3g} or less", f"{high:.3g}" if high < SCALES[-1] else
                f"{high:.3g} or more")
        if self.noise_given:
            noise = "The noise was given."
        elif not self.autonomous:
            noise = ("The snapshots do not tell the noise level: a drift free in time can make up for any; least kinetic "
                     "energy of the drift chose it.")
        elif self.noise_known:
            noise = (f"The level of the noise is known to between {ends[0]} and {ends[1]} times the fitted one, given the "
                     "density path and that drift and noise are the same at all times.")
        else:
            noise = (f"The snapshots hardly tell the noise level: {ends[0]} to {ends[1]} times the fitted one explains "
                     "them about as well.")
        share = (f"{100 * self.gradient_share:.0f} % of the drift is a gradient, which each snapshot fixes once the noise "
                 "is known")
        if self.gradient:
            drift = ("What is learned of the drift is a gradient by assumption: nothing of it circulates, and each "
                     "snapshot fixes it once the noise is known.")
        elif not self.autonomous:
            drift = (f"{share}; any circulation that leaves the density alone could be added, least kinetic energy of "
                     "what is learned leaves it out.")
        elif math.isnan(self.turning):
            drift = f"{share}; the rest is fixed only by drift and noise being the same at all times."
        elif self.turning_known:
            drift = (f"{share}; the rest is fixed only by drift and noise being the same at all times, which tells how "
                     f"fast the population turns to within {self.turning:.2g} radians per time unit.")
        else:
            drift = f"{share}; whether the population turns while it keeps its shape the snapshots do not tell."
        return f"{noise}\n{drift}" if math.isnan(self.noise_error) else f"{noise}\n{drift}\n{self._by_place()}"

    def _by_place(self) -> str:
        noise = "" if self.noise_given else f", the noise {_within(self.noise_error)}"
        told = f"Place by place the snapshots tell the drift {_within(self.drift_error)}{noise} (standard errors)."
        return f"{told} How the noise varies they hardly say." if HARDLY < self.noise_error < 1 else told


def _within(error: float) -> str:
    return f"to within {100 * error:.2g} %" if error < 1 else "not at all"


@torch.no_grad()
def identifiability(model: FokkerPlanckLoss, times: Tensor, snapshots: list[Tensor], span: float, seed: int = 0,
                    weights: list[Tensor] | None = None, sizes: Tensor | None = None) -> Identifiability:
    """Measures how far snapshots fix the noise and the drift of a fitted model.

    Arguments:
        model: density, drift and diffusion, dimensionless.
        times: of the snapshots, in [0, 1], shape (T,).
        snapshots: T tensors of shape (n_j, d).
        span: time between the first and the last snapshot, in data units.
        seed: draws test functions and points.
        weights: of the points, T tensors of shape (n_j,) and of mean 1; equal if left out.
        sizes: of the population at the times, shape (T,), if the growth was learned from them.
    """
    model = copy.deepcopy(model).double()
    generator = torch.Generator(device=times.device).manual_seed(seed)
    given = isinstance(model.diffusion, AbstractKnownDiffusion)
    gradient = learned_potential(model.drift) is not None
    share = 1.0 if isinstance(model.drift, GradientDrift) else _gradient_share(model, generator, seed)
    if model.drift.time:
        worse = np.array([_miss(model, float(scale), seed) for scale in SCALES[::4]])
        return Identifiability(False, SCALES[::4], worse,
                               (float(SCALES[0]), float(SCALES[-1])), given, share, math.inf, span)
    snapshots = [x.double() for x in snapshots]
    equations = MomentEquations(model, times.double(), snapshots, generator, weights, sizes)
    misfit, turning = _profile(equations)
    worse = np.array(misfit) - min(misfit)
    errors = _errors(equations, torch.cat(snapshots))
    return Identifiability(True, SCALES, worse, _widened(_interval(worse), errors[0]), given, share, turning / span, span,
                           *errors, gradient)


def _errors(equations: MomentEquations, x: Tensor) -> tuple[float, float]:
    """Standard errors of noise and drift, relative, over points of all snapshots."""
    x = x[:: max(1, len(x) // POINTS)]
    errors, zero = standard_errors(equations, x), torch.zeros(1).to(x)
    f, g = equations.model.drift(zero, x), equations.model.diffusion(zero, x)

    def relative(error: Tensor, value: Tensor) -> float:
        return float((error.square().mean() / value.square().mean().clamp_min(1e-30)).sqrt())

    return relative(errors.diffusion, g), relative(errors.drift, f)


def _profile(equations: MomentEquations) -> tuple[list[float], float]:
    """Half the misfit at every scale of the noise, and the standard error of the rate of turning."""
    model, drift = equations.model, equations.model.drift
    fitted, readout = model.diffusion, drift.get_readout()
    (spreading, spread), noise = equations.spreading(), equations.noise()
    groups = found_groups(priors(equations.transport, drift), readout.flatten())
    # A linear drift is not shrunk: otherwise every profile would lean to little drift and little noise.
    whole = [PATH_ERROR, *(
        group.prior._replace(start=FREE_VARIANCE, least=FREE_VARIANCE, most=FREE_VARIANCE)
        if group.kind <= LINEAR else group.prior for group in groups)]
    start = explain(equations.unmoved() - spread, noise, whole)
    allowed = 1 + start.variances[0]
    variances = torch.zeros(equations.transport.shape[1]).to(noise)
    for variance, group in zip(start.variances[1:], groups, strict=True):
        variances[group.places] = variance
    bent = (equations.transport * variances) @ equations.transport.T
    misfit = []
    for scale in SCALES:
        observed = equations.unmoved() - scale**2 * spread
        dual = torch.linalg.solve(allowed * noise + bent, observed)
        # More noise and more drift make the correction of the path noisier: the weights are those of this scale.
        drift.set_readout(coefficients(equations.transport, groups, start.variances[1:], dual).view_as(readout))
        model.diffusion = _Scaled(fitted, drift.dim, float(scale))
        misfit.append(0.5 * float(observed @ torch.linalg.solve(allowed * equations.noise() + bent, observed)))
    drift.set_readout(readout)
    model.diffusion = fitted
    if drift.dim == 1 or learned_potential(drift) is not None:
        return misfit, 0.0
    if not bool(is_linear(kinds(drift)).any()) or drift.dim > MAX_TURNING_DIM:
        return misfit, math.nan
    return misfit, _turning_error(equations, spreading, allowed * noise)


def _turning_error(equations: MomentEquations, spreading: Tensor, covariance: Tensor) -> float:
    """The largest standard error over planes of the rate of a turn, all other linear motions and the noise being free.

    Bends of the drift are as fitted: free ones could stand in for any turn.

    The derivatives of the equations are means over samples themselves: what they seem to know is partly chance (a round
    cloud of finitely many points is never quite round). That part is taken off, and a turn that is not seen well beyond
    chance counts as unknown.
    """
    drift, diffusion = equations.model.drift, equations.model.diffusion
    dim, root = drift.dim, torch.linalg.inv(torch.linalg.cholesky(covariance))
    linear, level = is_linear(kinds(drift)) | (kinds(drift) == FREE), kinds(diffusion) == FREE

    def free(transport: Tensor, spreading: Tensor) -> Tensor:
        """The columns of matrix, offset and level of noise, shape (..., U)."""
        return torch.cat([transport[..., linear], spreading[..., level]], -1)

    seen = root @ free(equations.transport, spreading)
    information, chance = seen.T @ seen, torch.zeros(seen.shape[1], seen.shape[1]).to(seen)
    for t, points, worth, ends in equations.sampled():
        x = points[:CHANCE_POINTS]
        of_drift, of_noise = columns_at(drift, t, x[None]), columns_at(diffusion, t, x[None])
        parts = []
        for end in ends:
            tests = end.tests(x)
            moved = torch.einsum("qnd,dnp->nqdp", tests.gradient(tests.each)[:, 0], of_drift[:, 0])
            spread = 0.5 * torch.einsum("qnd,dnp->nqdp", tests.curvature(tests.each)[:, 0], of_noise[:, 0])
            values = end.half * free(by_unknown(moved, drift), by_unknown(spread, diffusion))
            parts.append(torch.einsum("rq,nqp->nrp", root[:, end.place], values - values.mean(0)))
        both = torch.stack(parts).sum(0)
        chance += torch.einsum("nra,nrb->ab", both, both) / len(both) / worth

    def known(matrix: Tensor, direction: Tensor) -> float:
        """What a matrix of information says about the rate along a direction: |b|^4 / b^T I^-1 b."""
        scale = matrix.diagonal().clamp_min(1e-300).rsqrt()
        scaled = matrix * scale[:, None] * scale + 1e-9 * torch.eye(len(scale)).to(scale)
        return 4 / float((scale * direction) @ torch.linalg.solve(scaled, scale * direction))

    least = math.inf
    for i in range(dim):
        for j in range(i + 1, dim):
            turn = torch.zeros(dim, dim + 1).to(seen)
            turn[i, j], turn[j, i] = 1.0, -1.0
            direction = torch.cat([turn.flatten(), torch.zeros(seen.shape[1] - turn.numel()).to(seen)])
            by_chance, in_all = known(chance, direction), known(information, direction)
            least = min(least, in_all - by_chance if in_all > BEYOND_CHANCE * by_chance else 0.0)
    return 1 / math.sqrt(least) if least else math.inf


def _interval(worse: Array) -> tuple[float, float]:
    """Where the loss crosses the ends' value on both sides of the best, interpolated in the logarithm of the scale."""
    best, logs = int(worse.argmin()), np.log(SCALES)

    def crossing(order: range) -> float:
        inner = best
        for k in order:
            if worse[k] > LOSS_AT_ENDS:
                # The loss is nearly a parabola, its root nearly straight.
                low, end, high = np.sqrt([worse[inner], LOSS_AT_ENDS, worse[k]])
                part = (end - low) / (high - low)
                return float(np.exp(logs[inner] + part * (logs[k] - logs[inner])))
            inner = k
        return float(SCALES[inner])

    return crossing(range(best - 1, -1, -1)), crossing(range(best + 1, len(SCALES)))


def _widened(interval: tuple[float, float], error: float) -> tuple[float, float]:
    """The interval, or that of a relative standard error about 1 if this is wider: the profile holds the noise's shape."""
    reach = math.exp(min(TWO_SIDED * error, math.log(SCALES[-1])))
    return min(interval[0], 1 / reach), max(interval[1], reach)


def _gradient_share(model: FokkerPlanckLoss, generator: torch.Generator, seed: int) -> float:
    """Share of E |f|^2 in gradients of the test functions, mean over times."""
    t = torch.linspace(0.02, 0.98, NODES, dtype=torch.float64, device=generator.device)
    x = model.density.spread(t, POINTS, seed)
    f = model.drift(t[:, None], x)
    tests = TestFunctions(x.shape[-1], generator)
    tested = tests(MovingFrame(x, 1.0), list(range(NODES)), x)
    columns, right = tested.gradient(tested.each).permute(1, 2, 3, 0).flatten(1, 2), f.flatten(1)
    normal = columns.mT @ columns
    normal = normal + torch.diag_embed(1e-8 * normal.diagonal(dim1=-2, dim2=-1) + 1e-12)
    weights = torch.cholesky_solve(columns.mT @ right[..., None], torch.linalg.cholesky(normal))
    left = right - (columns @ weights).squeeze(-1)
    return float((1 - left.square().sum() / right.square().sum().clamp_min(1e-30)).clamp(0, 1))


class _Scaled(KnownDiffusion):
    """A diffusion at another level, held."""

    def __init__(self, diffusion: AbstractDiffusion, dim: int, scale: float) -> None:
        super().__init__(torch.ones(dim, dtype=torch.float64, device=diffusion.get_readout().device))
        self.diffusion, self.scale = diffusion, scale

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        return self.scale * self.diffusion(t, x)

    def variance(self, t: Tensor, x: Tensor, rows: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        a, slope, bend = self.diffusion.variance(t, x, rows)
        return self.scale**2 * a, self.scale**2 * slope, self.scale**2 * bend


def _miss(model: FokkerPlanckLoss, scale: float, seed: int) -> float:
    """How far the SDE with scaled noise, its drift solved for again, misses the velocity of its density path."""
    drift = copy.deepcopy(model.drift)
    scaled = FokkerPlanckLoss(model.density, drift, _Scaled(model.diffusion, drift.dim, scale))
    solver = ReadoutSolver(scaled, Ridge(), memory=0.9)
    generator = torch.Generator(device=drift.get_readout().device).manual_seed(seed)

    def draw() -> tuple[Tensor, Tensor]:
        t = torch.rand(32, generator=generator, dtype=torch.float64, device=generator.device)
        return t, model.density.sample(t, 64, generator)

    for _ in range(ROUNDS * len(solver.systems)):
        solver.step(*draw(), LossWeights(0.0, 1.0))
    t, x = draw()
    terms = model.density.terms(t, x)
    missed = excess_velocity(terms, drift(t[:, None], x), scaled.diffusion.variance(t[:, None], x))
    return float(missed.square().mean() / terms.velocity.square().mean())

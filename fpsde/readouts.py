r"""The moment equations solved for the readouts of drift, diffusion and growth.

They are linear regression with known covariance of the error, in which the matrix itself errs: its chance part, correlated
with the error of the equations, would draw the solution towards zero. It is known, and taken out of the score. How much
each kind of readout may bend is decided by the evidence (:mod:`fpsde.evidence`).

References:
    Measurement Error Models (Fuller, 1987), section 2.2, https://doi.org/10.1002/9780470316665
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from fpsde.evidence import Component, Explained, Part, Trial, condensed, explain_sparingly
from fpsde.field import ADDITIVE, COUPLED, FREE, LINEAR, OWN, OWN_LINEAR, PRODUCT, AbstractField
from fpsde.fokker_planck import FokkerPlanckLoss
from fpsde.growth import Growth
from fpsde.moments import MomentEquations, kinds
from fpsde.screening import promising
from fpsde.train import Offer, State, restoring

__all__ = ["PATH_ERROR", "Group", "coefficients", "found_groups", "present_readouts", "prior_groups", "priors",
           "solve_moments", "trials"]

LARGEST_CHANGE = 0.5
# Of the correction for chance in the matrix, in squared sampling errors a coordinate. One that is slight is made once.
SLIGHT_CORRECTION, LARGEST_CORRECTION = 2.5, 10.0
# Coordinates that have a group each for the features of their own: each group costs a matrix of all equations.
MOST_APART = 10
# Kinds of which few are expected: the bends of one coordinate in the drift of another, products of two in that of a third.
SPARSE = (ADDITIVE, PRODUCT)
# Of more groups than this only those are tried that promise something.
MOST_GROUPS = 1000

UNKNOWN = 1e4
# What the path gets wrong between the snapshots, as a multiple of the sampling error.
PATH_ERROR = Component(None, 0.1, 100.0)
ROUGH_ROUNDS, FINE_ROUNDS = 15, 60


class Bends(NamedTuple):
    """What is believed of the readout of a field before the data speak."""

    start: float
    """Variance where the search for the evidence starts."""
    most: float
    """Largest variance."""
    most_own_linear: float
    """The same of the part of a coordinate that is linear in itself."""
    proof: float
    """By how much what is not simple must raise the log evidence to be believed."""
    simple: int
    """The last kind that is."""


# First it is believed that the drift bends and the noise is even.
DRIFT = Bends(100.0, 1e6, 1e6, 3.0, LINEAR)
# Noise is expected to vary by some tens of per cent, and more in proportion to its own coordinate: other bends of it and of
# the drift look much alike in the marginals. For that reason too more proof is asked for: even noise was seen to be bent
# for a gain of up to 9 and bent noise for one of 30 to 120.
NOISE = Bends(1e-4, 0.01, 0.1, 10.0, FREE)
# Growth is expected to be slight, a doubling or so in all: what motion explains is motion.
GROWTH = Bends(0.01, 100.0, 100.0, 0.0, COUPLED)


class Group(NamedTuple):
    """Unknowns that are believed to be of one size."""

    kind: int
    places: Tensor
    prior: Component
    bends: Bends


def priors(matrix: Tensor, field: AbstractField | Growth, bends: Bends = DRIFT, first: int = 0) -> list[Group]:
    """Groups the unknowns of one field, the simplest first.

    Arguments:
        matrix: derivative of the equations by its unknowns, shape (rows, U).
        field: whose unknowns they are.
        bends: what is believed of them.
        first: place of the first unknown.
    """
    kinds = field.groups()
    d = len(kinds)
    coordinates = torch.arange(d, device=kinds.device)[:, None].expand_as(kinds)
    parts = torch.zeros_like(kinds)
    if 1 < d <= MOST_APART:
        # One coordinate may bend in itself where another is straight.
        parts = torch.where(kinds == OWN, coordinates, parts)
    if isinstance(field, AbstractField):
        # Of many coordinates few act on each, and of all products of two few are in the drift of one.
        parts = torch.where(kinds == ADDITIVE, d * coordinates + field.sources(), parts)
        parts = torch.where(kinds == PRODUCT, torch.arange(kinds.numel(), device=kinds.device).view_as(kinds), parts)
    kinds, parts, groups = kinds.flatten(), parts.flatten(), []
    for kind in kinds.unique().tolist():
        of_kind = (kinds == kind).nonzero()[:, 0]
        for part in parts[of_kind].unique():
            places = of_kind[parts[of_kind] == part]
            most = bends.most_own_linear if kind == OWN_LINEAR else bends.most
            # A level is not shrunk: it is as free as UNKNOWN lets it be.
            around = (UNKNOWN, UNKNOWN, UNKNOWN) if kind == FREE else (bends.start, most, 0.0)
            groups.append(Group(kind, first + places, Component(matrix[:, places], *around), bends))
    return groups


def prior_groups(equations: MomentEquations, matrix: Tensor) -> list[Group]:
    """Groups the unknowns of drift, diffusion and growth, in the order of the columns of their matrix, shape (rows, U)."""
    groups, first = [], 0
    for field, bends in zip(equations.model.nets(), (DRIFT, NOISE, GROWTH), strict=False):
        n = field.get_readout().numel()
        groups += priors(matrix[:, first:first + n], field, bends, first)
        first += n
    return groups


def found_groups(groups: list[Group], values: Tensor) -> list[Group]:
    """Returns, of more groups than are searched among, those of the nets and those that a fit has found.

    Arguments:
        groups: of its unknowns.
        values: what was found, shape (U,).
    """
    if len(groups) <= MOST_GROUPS:
        return groups
    return [group for group in groups if group.kind not in SPARSE or bool(values[group.places].any())]


def trials(groups: Sequence[Group], dim: int) -> list[Trial]:
    """Returns what it is tried to do without: of the noise, then of the drift, what couples first and what is simple last.

    Arguments:
        groups: as :func:`prior_groups` gives them; as components they come after the error of the path.
        dim: number of coordinates.
    """
    found = []
    for bends in (NOISE, DRIFT):
        order: list[Part] = []
        for kind in range(COUPLED, bends.simple, -1):
            places = [k for k, group in reversed(list(enumerate(groups, 1))) if group.bends is bends and group.kind == kind]
            if kind in SPARSE and len(places) > 1:
                # Of all that may be in the drift of a coordinate, one is expected to be.
                order.append(Part(places, math.log(len(places) / dim)))
            else:
                order += [Part([k]) for k in places]
        found.append(Trial(order, bends.proof))
    return found


def _screened(equations: MomentEquations, matrix: Tensor, observed: Tensor, noise: Tensor,
              left_out: frozenset[int] | None) -> frozenset[int]:
    """Returns the components that promise nothing, of those that were left out.

    At first, if that is None, of all that are not simple; and no features are let in that could be anything, for what they
    would explain a few terms may.
    """
    root, _ = torch.linalg.cholesky_ex(noise)
    white = torch.linalg.solve_triangular(root, torch.cat([matrix, observed[:, None]], 1), upper=False)
    groups, dim = prior_groups(equations, white[:, :-1]), equations.model.drift.dim
    asked = {k: trial.proof + part.price for trial in trials(groups, dim) for part in trial.order for k in part.places}
    terms = {k: least for k, least in asked.items() if groups[k - 1].kind in SPARSE or len(groups[k - 1].places) <= dim}
    every = range(1 + len(groups))
    there = [k for k in every if k not in (asked if left_out is None else left_out)]
    for some in [terms] if left_out is None else [terms, asked]:
        there = promising(white[:, -1], [PATH_ERROR, *(group.prior for group in groups)], there, some, dim)
    return frozenset(every) - frozenset(there)


def present_readouts(model: FokkerPlanckLoss) -> tuple[Tensor, Tensor]:
    """Returns all readouts, shape (U,), and what the priors are centred on: no drift, and the present level of noise."""
    values = torch.cat([field.get_readout().flatten() for field in model.nets()]).double()
    levels = model.drift.get_readout().numel() + (kinds(model.diffusion) == FREE).nonzero()[:, 0]
    centre = torch.zeros_like(values)
    centre[levels] = values[levels]
    return values, centre


def coefficients(matrix: Tensor, groups: Sequence[Group], variances: Tensor, dual: Tensor) -> Tensor:
    """Returns the unknowns that the evidence's dual stands for, shape (U,); those in no group are zero."""
    values = torch.zeros(matrix.shape[1:]).to(matrix)
    for group, variance in zip(groups, variances, strict=True):
        values[group.places] = variance * (dual @ matrix[:, group.places])
    return values


def _attenuation(equations: MomentEquations, matrix: Tensor, noise: Tensor, groups: Sequence[Group],
                 variances: Tensor) -> tuple[Tensor, bool]:
    """What chance in the matrix adds to the solution, H^-1 c with H = A^T C^-1 A + V^-1, shape (U,); if it is slight."""
    noise = (1 + variances[0]) * noise
    prior = torch.zeros(matrix.shape[1]).to(matrix)
    for group, variance in zip(groups, variances[1:], strict=True):
        prior[group.places] = variance
    live = prior.nonzero()[:, 0]
    matrix, sizes = matrix[:, live], prior[live]
    added = sizes * equations.chance(torch.linalg.inv(noise))[live]
    # By the inverse of S = C + A V A^T, as few rows as there are equations.
    shift = added - sizes * (matrix.T @ torch.linalg.solve(noise + matrix * sizes @ matrix.T, matrix @ added))
    moved = matrix @ shift
    shift = torch.zeros_like(prior).index_copy(0, live, shift)
    size = moved @ torch.linalg.solve(noise, moved) / max(equations.model.drift.dim, 2)
    return shift * (LARGEST_CORRECTION / size.clamp_min(LARGEST_CORRECTION)).sqrt(), bool(size <= SLIGHT_CORRECTION)


@torch.no_grad()
def solve_moments(equations: MomentEquations, rounds: int, offer: Offer | None = None,
                  saved: State | None = None) -> Explained:
    """Solves the moment equations for the readouts of drift and diffusion, and sets them.

    Arguments:
        equations: of all intervals.
        rounds: Gauss-Newton rounds; even for a known diffusion a few, for the weights depend on the drift.
        offer: called between two rounds, with the state of the solution.
        saved: a state that was offered, to go on from.
    """
    fields = equations.model.nets()
    split = fields[0].get_readout().numel()
    end = split + fields[1].get_readout().numel()
    # Once: every trial is an evidence of its own. By then the linearisation is near, and there are rounds left to follow.
    first, decisive, left_out, corrects = rounds - 1, rounds // 2, frozenset[int](), False
    if saved is not None:
        with restoring():
            # Whatever it says, no more rounds than there were to be, and one at least for what it returns.
            rounds = min(max(int(saved["rounds"]), 1), rounds)
            left_out, corrects = frozenset(map(int, saved["left_out"])) - {0}, bool(saved["corrects"])
            for field, readout in zip(fields, saved["readouts"], strict=True):
                field.set_readout(readout.reshape(field.get_readout().shape))
    for left_over in range(rounds - 1, -1, -1):
        noise = equations.noise()
        matrix, left = equations.linearise()
        values, centre = present_readouts(equations.model)
        observed = left + matrix @ (values - centre)
        # Of many times the equations are more than the unknowns, and the evidence costs the cube of how many it is given.
        seen, told, error, rest = condensed(matrix, observed, noise)
        groups = prior_groups(equations, seen)
        if len(groups) > MOST_GROUPS and left_over in (first, decisive):
            left_out = _screened(equations, matrix, observed, noise, None if left_over == first else left_out)
        # While the linearisation still moves, rough variances do.
        explained = explain_sparingly(told, error, [PATH_ERROR, *(group.prior for group in groups)],
                                      trials(groups, equations.model.drift.dim) if left_over == decisive else [],
                                      ROUGH_ROUNDS if left_over else FINE_ROUNDS, rest, left_out)
        if left_over == decisive:
            left_out = frozenset((explained.variances == 0).nonzero()[:, 0].tolist()) - {0}
        change = centre + coefficients(seen, groups, explained.variances[1:], explained.dual) - values
        if corrects or left_over in (decisive, 0):
            attenuation, slight = _attenuation(equations, matrix, noise, groups, explained.variances)
            # Of few points chance is much of the matrix. Left to the last round, the noise of a coordinate may have gone to
            # zero by then, from where no step of first order leads back.
            corrects = corrects or not slight
            if corrects or not left_over:
                change = change - attenuation
        # The diffusion is linearised: no more than a moderate step at once.
        largest = change[split:end].abs().amax() if end > split else change.new_zeros(())
        change = change * (LARGEST_CHANGE / largest.clamp_min(LARGEST_CHANGE))
        if not bool(torch.isfinite(change).all()):
            break
        values = values + change
        for field, part in zip(fields, values.tensor_split([split, end]), strict=False):
            field.set_readout(part.view_as(field.get_readout()))
        if offer is not None and left_over:
            offer(partial(_solution, fields, left_over, left_out, corrects))
    return explained


def _solution(fields: Sequence[AbstractField | Growth], rounds: int, left_out: frozenset[int], corrects: bool) -> State:
    """What the rounds so far have found, and how many are left."""
    return {"rounds": rounds, "left_out": sorted(left_out), "corrects": corrects,
            "readouts": [field.get_readout() for field in fields]}

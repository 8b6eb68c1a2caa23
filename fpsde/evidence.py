r"""How much each group of coefficients may bend, decided by the data: ridge regression under its marginal likelihood.

For :math:`y = \sum_g A_g w_g + e` with priors :math:`w_g \sim N(0, v_g)` and noise of covariance C, the observations are
Gaussian with covariance :math:`S = C + \sum_g v_g A_g A_g^T`. The variances v maximise that likelihood; a group that the
data do not ask for goes to zero by itself.

References:
    MM algorithms for variance components models (Zhou, Hu, Zhou, Sinsheimer & Lange, 2019),
    https://doi.org/10.1080/10618600.2018.1529601
    Bayesian interpolation (MacKay, 1992), https://doi.org/10.1162/neco.1992.4.3.415
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["NOTHING", "Component", "Explained", "Rest", "Trial", "condensed", "explain", "explain_sparingly"]

# A variance that no longer matters may halve for ever.
SETTLED, NOUGHT = 1e-3, 1e-9


class Component(NamedTuple):
    """A part of the covariance of the observations whose variance is looked for."""

    kernel: Tensor
    """A A^T of a group of coefficients, or a covariance of the noise, shape (n, n)."""
    start: float
    """Where the search for its variance starts."""
    most: float
    """Largest variance allowed."""
    least: float = 0.0
    """Smallest variance allowed; the largest too, if nothing is to be looked for."""
    noise: bool = False
    """Whether it is noise, which explains nothing."""


class Rest(NamedTuple):
    """Observations that no coefficient reaches, whose noise is C alone."""

    square: float
    """Of them, in units of C."""
    number: int
    log_root: float
    """Half the log determinant of C, which was taken out of all observations."""


NOTHING = Rest(0.0, 0, 0.0)


class Explained(NamedTuple):
    """Variances of most evidence and what follows from them."""

    variances: Tensor
    """Shape (G,)."""
    dual: Tensor
    """u = S^-1 y, shape (n,): the coefficients of group g are v_g A_g^T u."""
    misfit: float
    """Square of what is left, in units of all noise, over the degrees of freedom that are left."""
    log_evidence: float


class Trial(NamedTuple):
    """Components that there may be or not."""

    order: Sequence[int]
    """Their places, in the order in which it is tried to do without them."""
    proof: float
    """By how much all that are left out would have to raise the log evidence to be kept."""


def condensed(matrix: Tensor, observed: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor, Rest]:
    """Turns many observations y, shape (n,), into as many as there are coefficients, which say the same of these.

    With :math:`C^{-1/2} A = Q R` they are :math:`Q^T C^{-1/2} y`, their matrix is R and their noise one.

    Arguments:
        matrix: A, shape (n, U).
        observed: y, shape (n,).
        noise: C, shape (n, n), positive definite.

    Returns:
        The matrix, the observations and the noise of these; what they are if they are no more than the coefficients. And
        what is left of the others.
    """
    n, unknowns = matrix.shape
    if n <= unknowns + 1:
        return matrix, observed, noise, NOTHING
    factor, _ = torch.linalg.cholesky_ex(noise)
    both = torch.linalg.solve_triangular(factor, torch.cat([matrix, observed[:, None]], 1), upper=False)
    r = torch.linalg.qr(both, mode="r").R
    rest = Rest(float(r[-1, -1] ** 2), n - unknowns, float(factor.diagonal().log().sum()))
    return r[:-1, :-1], r[:-1, -1], torch.eye(unknowns).to(r), rest


def explain(observed: Tensor, noise: Tensor, components: list[Component], rounds: int = 60,
            rest: Rest = NOTHING) -> Explained:
    """Finds the variances of most evidence.

    Every round raises the marginal likelihood: it takes MacKay's step where that does, the faster one for variances on
    their way to zero, and its root otherwise, which always does. From different starts it may end in different maxima, so
    that the start says what is believed first.

    Arguments:
        observed: y, shape (n,).
        noise: C, shape (n, n), positive definite.
        components: the groups and any further noise.
        rounds: updates at most.
        rest: further observations, for which any further noise must be a multiple of C.
    """
    is_noise = torch.tensor([c.noise for c in components]).to(observed)
    kernels = torch.stack([c.kernel for c in components])
    least, most = (torch.tensor(bound).to(observed) for bound in zip(*((c.least, c.most) for c in components), strict=True))

    def under(variances: Tensor) -> _State:
        factor, _ = torch.linalg.cholesky_ex(noise + torch.einsum("g,gij->ij", variances, kernels))
        dual = torch.cholesky_solve(observed[:, None], factor)[:, 0]
        level = 1 + float(variances @ is_noise)
        evidence = -0.5 * float(observed @ dual) - float(factor.diagonal().log().sum()) - rest.log_root
        return _State(variances, factor, dual, level,
                      evidence - 0.5 * (rest.square / level + rest.number * math.log(level)))

    now = under(torch.tensor([c.start for c in components]).to(observed))
    for _ in range(rounds):
        inverse = torch.cholesky_inverse(now.factor)
        seen = torch.einsum("i,gij,j->g", now.dual, kernels, now.dual) + rest.square / now.level**2 * is_noise
        ratio = seen / (torch.einsum("ij,gij->g", inverse, kernels) + rest.number / now.level * is_noise)
        for power in (1.0, 0.5):
            then = under((now.variances * ratio.clamp_min(0) ** power).clamp(least, most))
            if then.log_evidence >= now.log_evidence:
                break
        settled = torch.allclose(then.variances, now.variances, rtol=SETTLED, atol=NOUGHT)
        now = then
        if settled:
            break
    whole = noise + torch.einsum("g,gij->ij", now.variances * is_noise, kernels)
    # What is left is e = whole u, and in units of that noise its square is u^T whole u.
    left_over = float((torch.cholesky_inverse(now.factor) * whole).sum()) + rest.number
    square = float(now.dual @ whole @ now.dual) + rest.square / now.level
    return Explained(now.variances, now.dual, square / max(left_over, 1.0), now.log_evidence)


def explain_sparingly(observed: Tensor, noise: Tensor, components: list[Component], trials: Sequence[Trial],
                      rounds: int = 60, rest: Rest = NOTHING, left_out: Collection[int] = ()) -> Explained:
    """Finds the variances of most evidence without the components that the data do not clearly ask for.

    By chance alone a variance comes out positive every other time. So components are left out one after the other, as long
    as the evidence without them is near enough to the largest one found; the variances of those are zero.

    Arguments:
        observed: y, shape (n,).
        noise: C, shape (n, n), positive definite.
        components: the groups and any further noise.
        trials: which may be left out, one trial after the other.
        rounds: updates at most, for each choice of components.
        rest: as :func:`explain` takes it.
        left_out: components that are left out already.
    """
    kept = [k for k in range(len(components)) if k not in left_out]

    def without(place: int | None) -> tuple[list[int], Explained]:
        places = [k for k in kept if k != place]
        found = explain(observed, noise, [components[k] for k in places], rounds, rest)
        variances = torch.zeros(len(components)).to(observed)
        variances[places] = found.variances
        return places, found._replace(variances=variances)

    _, now = without(None)
    for trial in trials:
        most = now.log_evidence
        for k in trial.order:
            if now.variances[k] < NOUGHT:
                kept = [place for place in kept if place != k]
                continue
            places, then = without(k)
            most = max(most, then.log_evidence)
            if then.log_evidence >= most - trial.proof:
                kept, now = places, then
    return now._replace(variances=now.variances * torch.tensor([k in kept for k in range(len(components))]).to(observed))


class _State(NamedTuple):
    variances: Tensor
    factor: Tensor
    """Of the covariance of the observations under them."""
    dual: Tensor
    level: float
    """All noise in units of C."""
    log_evidence: float

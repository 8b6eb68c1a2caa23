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


def explain(observed: Tensor, noise: Tensor, components: Sequence[Component], rounds: int = 60,
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
    return _Regression(observed, noise, components, rest).explain(range(len(components)), rounds)


def explain_sparingly(observed: Tensor, noise: Tensor, components: Sequence[Component], trials: Sequence[Trial],
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
    regression = _Regression(observed, noise, components, rest)
    kept = [k for k in range(len(components)) if k not in left_out]
    now = regression.explain(kept, rounds)
    for trial in trials:
        most = now.log_evidence
        for k in trial.order:
            places = [place for place in kept if place != k]
            if now.variances[k] < NOUGHT:
                kept = places
                continue
            then = regression.explain(places, rounds)
            most = max(most, then.log_evidence)
            if then.log_evidence >= most - trial.proof:
                kept, now = places, then
    return now._replace(variances=now.variances * torch.tensor([k in kept for k in range(len(components))]).to(observed))


class _Regression:
    """Observations, and the components that may explain them."""

    def __init__(self, observed: Tensor, noise: Tensor, components: Sequence[Component], rest: Rest) -> None:
        self.observed, self.noise, self.rest = observed, noise, rest
        self.is_noise = torch.tensor([c.noise for c in components]).to(observed)
        # Laid out once, however many choices of them are tried: a matrix of all observations for each.
        self.kernels = torch.stack([c.kernel for c in components])
        bounds = zip(*((c.start, c.least, c.most) for c in components), strict=True)
        self.start, self.least, self.most = (torch.tensor(bound).to(observed) for bound in bounds)

    def explain(self, kept: Collection[int], rounds: int) -> Explained:
        """Finds the variances of most evidence of some components; those of the others are zero."""
        there = torch.tensor([k in kept for k in range(len(self.start))]).to(self.observed)
        now, rest = self._under(self.start * there), self.rest
        for _ in range(rounds):
            inverse = torch.cholesky_inverse(now.factor)
            seen = (self.kernels @ now.dual) @ now.dual + rest.square / now.level**2 * self.is_noise
            ratio = seen / (self.kernels.flatten(1) @ inverse.flatten() + rest.number / now.level * self.is_noise)
            for power in (1.0, 0.5):
                then = self._under((now.variances * ratio.clamp_min(0) ** power).clamp(self.least, self.most) * there)
                if then.log_evidence >= now.log_evidence:
                    break
            settled = torch.allclose(then.variances, now.variances, rtol=SETTLED, atol=NOUGHT)
            now = then
            if settled:
                break
        whole = self.noise + self._sum(now.variances * self.is_noise)
        # What is left is e = whole u, and in units of that noise its square is u^T whole u.
        left_over = float((torch.cholesky_inverse(now.factor) * whole).sum()) + rest.number
        square = float(now.dual @ whole @ now.dual) + rest.square / now.level
        return Explained(now.variances, now.dual, square / max(left_over, 1.0), now.log_evidence)

    def _under(self, variances: Tensor) -> _State:
        factor, _ = torch.linalg.cholesky_ex(self.noise + self._sum(variances))
        dual = torch.cholesky_solve(self.observed[:, None], factor)[:, 0]
        level = 1 + float(variances @ self.is_noise)
        evidence = -0.5 * float(self.observed @ dual) - float(factor.diagonal().log().sum()) - self.rest.log_root
        return _State(variances, factor, dual, level,
                      evidence - 0.5 * (self.rest.square / level + self.rest.number * math.log(level)))

    def _sum(self, variances: Tensor) -> Tensor:
        return (variances @ self.kernels.flatten(1)).view_as(self.noise)


class _State(NamedTuple):
    variances: Tensor
    factor: Tensor
    """Of the covariance of the observations under them."""
    dual: Tensor
    level: float
    """All noise in units of C."""
    log_evidence: float

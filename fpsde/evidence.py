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

__all__ = ["NOTHING", "Component", "Explained", "Part", "Rest", "Trial", "condensed", "explain", "explain_sparingly"]

# A variance that no longer matters may halve for ever.
SETTLED, NOUGHT = 1e-3, 1e-9
# The most columns of a group whose covariance is not laid out.
NARROW = 20
# Observations are put together once they come to so many times fewer.
FEWER = 0.75


class Component(NamedTuple):
    """A part of the covariance of the observations whose variance is looked for."""

    factor: Tensor | None
    """A of a group of coefficients, shape (n, U_g); None of further noise, in units of C, which explains nothing."""
    start: float
    """Where the search for its variance starts."""
    most: float
    """Largest variance allowed."""
    least: float = 0.0
    """Smallest variance allowed; the largest too, if nothing is to be looked for."""


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


class Part(NamedTuple):
    """Components that it is tried to do without: of several, first as many at once as can go, then one after the other."""

    places: Sequence[int]
    price: float = 0.0
    """By how much each must raise the log evidence besides what is asked of all: the log odds against there being one."""


class Trial(NamedTuple):
    """Components that there may be or not."""

    order: Sequence[Part]
    """In the order in which it is tried to do without them."""
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
        rest: further observations.
    """
    return _Regression(observed, noise, components, rest).explain(range(len(components)), rounds)


def explain_sparingly(observed: Tensor, noise: Tensor, components: Sequence[Component], trials: Sequence[Trial],
                      rounds: int = 60, rest: Rest = NOTHING, left_out: Collection[int] = ()) -> Explained:
    """Finds the variances of most evidence without the components that the data do not clearly ask for.

    By chance alone a variance comes out positive every other time. So components are left out, part by part, as long
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
    whole = regression = _Regression(observed, noise, components, rest)
    kept = [k for k in range(len(components)) if k not in left_out]
    regression = regression.narrowed(kept)
    now = regression.explain(kept, rounds)
    for trial in trials:
        price = {k: part.price for part in trial.order for k in part.places}
        most = now.log_evidence - sum(price.get(k, 0.0) for k in kept)
        for part in trial.order:
            smaller = regression.narrowed(kept)
            if smaller is not regression:
                regression, now = smaller, smaller.under(now.variances)
            there = [k for k in part.places if k in kept]
            slight = regression.slight(now.variances, there, trial.proof + part.price) if len(there) > 1 else []
            halves = [slight[:len(slight) >> times] for times in range(len(slight).bit_length())]
            for gone in [*halves, *([k] for k in there)]:
                gone = [k for k in gone if k in kept]
                if not gone:
                    continue
                places = [place for place in kept if place not in gone]
                costs = sum(price.get(k, 0.0) for k in places)
                # With all else as it is the evidence without them is no more than it might be.
                then = regression.without(now, gone)
                if then.log_evidence - costs < most - trial.proof:
                    then = regression.explain(places, rounds, most - trial.proof + costs)
                most = max(most, then.log_evidence - costs)
                if then.log_evidence - costs >= most - trial.proof:
                    kept, now = places, then
        now = regression.explain(kept, rounds)
    variances = now.variances * torch.tensor([k in kept for k in range(len(components))]).to(observed)
    return now._replace(variances=variances) if regression is whole else whole.under(variances)


class _Regression:
    """Observations, and the components that may explain them."""

    def __init__(self, observed: Tensor, noise: Tensor, components: Sequence[Component], rest: Rest) -> None:
        self.observed, self.noise, self.components, self.rest = observed, noise, components, rest
        self.is_noise = torch.tensor([c.factor is None for c in components], device=observed.device)
        factors = {k: c.factor for k, c in enumerate(components) if c.factor is not None}
        # A covariance is laid out once, however many choices of components are tried, but takes memory and time of its own:
        # of narrow groups, of which there may be hundreds, the columns that are live are multiplied anew.
        self.wide = {k: factor for k, factor in factors.items() if factor.shape[1] > NARROW}
        self.kernels: dict[int, Tensor] = {}
        narrow = {k: factor for k, factor in factors.items() if k not in self.wide}
        self.columns = torch.cat([noise.new_zeros(len(noise), 0), *narrow.values()], 1)
        self.owner = torch.tensor([k for k, factor in narrow.items() for _ in range(factor.shape[1])], dtype=torch.long,
                                  device=observed.device)
        bounds = zip(*((c.start, c.least, c.most) for c in components), strict=True)
        self.start, self.least, self.most = (torch.tensor(bound).to(observed) for bound in bounds)

    def explain(self, kept: Collection[int], rounds: int, asked: float = -math.inf) -> Explained:
        """Finds the variances of most evidence of some components; those of the others are zero.

        Where rounds that each raise it as the last one did would not bring it to what is asked, the search ends.
        """
        there = torch.tensor([k in kept for k in range(len(self.start))]).to(self.observed)
        now, rest = self._under(self.start * there), self.rest
        for left in range(rounds - 1, -1, -1):
            seen, expected = self._squares(now)
            ratio = ((seen + rest.square / now.level**2 * self.is_noise)
                     / (expected + rest.number / now.level * self.is_noise).clamp_min(torch.finfo(seen.dtype).tiny))
            for power in (1.0, 0.5):
                variances = (now.variances * ratio.clamp_min(0) ** power).clamp(self.least, self.most) * there
                # Once it no longer matters, a group is gone: its columns cost nothing from then on.
                then = self._under(variances * ((variances > NOUGHT) | self.is_noise))
                if then.log_evidence >= now.log_evidence:
                    break
            settled = torch.allclose(then.variances, now.variances, rtol=SETTLED, atol=NOUGHT)
            hopeless = then.log_evidence + left * (then.log_evidence - now.log_evidence) < asked
            now = then
            if settled or hopeless:
                break
        return self._explained(now)

    def narrowed(self, kept: Collection[int]) -> _Regression:
        """The same of some components, with as many observations as these have coefficients, if that is far fewer."""
        factors = {k: self.components[k].factor for k in kept}
        there = {k: factor for k, factor in factors.items() if factor is not None}
        widths = [factor.shape[1] for factor in there.values()]
        if not 0 < sum(widths) < FEWER * len(self.observed) - 1:
            return self
        matrix, observed, noise, rest = condensed(torch.cat(list(there.values()), 1), self.observed, self.noise)
        parts = dict(zip(there, matrix.split(widths, 1), strict=True))
        components = [c if c.factor is None else c._replace(factor=parts.get(k, matrix[:, :0]))
                      for k, c in enumerate(self.components)]
        before = self.rest
        return _Regression(observed, noise, components, Rest(
            rest.square + before.square, rest.number + before.number, rest.log_root + before.log_root))

    def under(self, variances: Tensor) -> Explained:
        """What follows from these variances."""
        return self._explained(self._under(variances))

    def without(self, now: Explained, gone: Sequence[int]) -> Explained:
        """What follows if some components are left out and the variances of all others stay."""
        there = torch.ones_like(now.variances)
        there[list(gone)] = 0
        return self.under(now.variances * there) if bool((now.variances[gone] > 0).any()) else now

    def slight(self, variances: Tensor, places: Sequence[int], most: float) -> list[int]:
        """Those of some narrow groups without which the log evidence falls by less, if all else stays; the least first."""
        now, losses = self._under(variances), {}
        for k in [k for k in places if k not in self.wide]:
            columns = self.columns[:, self.owner == k] * variances[k].sqrt()
            whitened = torch.linalg.solve_triangular(now.factor, columns, upper=False)
            # Without them |S| is |1 - W^T W| times what it is, and y^T S^-1 y larger by a square of their own.
            root, _ = torch.linalg.cholesky_ex(torch.eye(columns.shape[1]).to(columns) - whitened.T @ whitened)
            own = torch.linalg.solve_triangular(root, (now.dual @ columns)[:, None], upper=False)
            losses[k] = 0.5 * float(own.square().sum()) + float(root.diagonal().log().sum())
        return sorted((k for k in losses if losses[k] < most), key=losses.__getitem__)

    def _under(self, variances: Tensor) -> _State:
        level = 1 + float(variances[self.is_noise].sum())
        columns, owner = self._live(variances)
        scaled = columns * variances[owner].sqrt()
        whole = torch.addmm(self.noise, scaled, scaled.T, beta=level)
        for k, wide in self.wide.items():
            if variances[k] > 0:
                if k not in self.kernels:
                    self.kernels[k] = wide @ wide.T
                whole.add_(self.kernels[k], alpha=float(variances[k]))
        factor, _ = torch.linalg.cholesky_ex(whole)
        dual = torch.cholesky_solve(self.observed[:, None], factor)[:, 0]
        evidence = -0.5 * float(self.observed @ dual) - float(factor.diagonal().log().sum()) - self.rest.log_root
        evidence -= 0.5 * (self.rest.square / level + self.rest.number * math.log(level))
        return _State(variances, factor, dual, level, evidence)

    def _explained(self, now: _State) -> Explained:
        # What is left is e = level C u, and its square in units of that noise level u^T C u.
        square, left_over = self._of_noise(now, self._of_groups(now)[1])
        square, left_over = now.level * square + self.rest.square / now.level, now.level * left_over + self.rest.number
        return Explained(now.variances, now.dual, square / max(left_over, 1.0), now.log_evidence)

    def _live(self, variances: Tensor) -> tuple[Tensor, Tensor]:
        """The columns of the narrow groups that are there, and whose each is."""
        live = (variances[self.owner] > 0).nonzero()[:, 0]
        return self.columns[:, live], self.owner[live]

    def _squares(self, now: _State) -> tuple[Tensor, Tensor]:
        """The squares u^T K u and what is expected of them, tr(S^-1 K), K the covariance of each component: (G,), (G,)."""
        seen, expected = self._of_groups(now)
        square, left_over = self._of_noise(now, expected)
        return torch.where(self.is_noise, square, seen), torch.where(self.is_noise, left_over, expected)

    def _of_groups(self, now: _State) -> tuple[Tensor, Tensor]:
        """The same, nought for noise and for groups that are gone."""
        seen, expected = torch.zeros_like(now.variances), torch.zeros_like(now.variances)
        columns, owner = self._live(now.variances)
        whitened = torch.linalg.solve_triangular(now.factor, columns, upper=False)
        seen.index_add_(0, owner, (now.dual @ columns).square())
        expected.index_add_(0, owner, whitened.square().sum(0))
        for k, factor in self.wide.items():
            if now.variances[k] > 0:
                seen[k] = (now.dual @ factor).square().sum()
                expected[k] = torch.linalg.solve_triangular(now.factor, factor, upper=False).square().sum()
        return seen, expected

    def _of_noise(self, now: _State, expected: Tensor) -> tuple[float, float]:
        """The same of C, for S is level C and what the groups have of it."""
        return (float(now.dual @ self.noise @ now.dual),
                (len(self.observed) - float(now.variances @ expected)) / now.level)


class _State(NamedTuple):
    variances: Tensor
    factor: Tensor
    """Of the covariance of the observations under them."""
    dual: Tensor
    level: float
    """All noise in units of C."""
    log_evidence: float

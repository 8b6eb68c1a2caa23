r"""Which of thousands of groups of coefficients are worth a search: the few that would raise the evidence most, and again.

In twenty dimensions 4200 products and 400 groups of bends may be in the drift, and forty are. The search of
:mod:`fpsde.evidence` leaves out one after the other of all that there might be, at the cube of how many they are; here it
is begun at the other end. Under the variances found so far, what a further group could bring by itself is known in closed
form: with :math:`b = A_g^T u` and the eigenvalues :math:`\lambda` of :math:`A_g^T S^{-1} A_g`,

.. math:: \max_v\ \tfrac12 \sum_k \Big[\frac{v\, b_k^2}{1 + v \lambda_k} - \log(1 + v \lambda_k)\Big]

The best are let in, a few at a time, for each of them explains some of what spoke for the others.

References:
    Fast marginal likelihood maximisation for sparse Bayesian models (Tipping & Faul, 2003), AISTATS
    Sparse solution of underdetermined systems of linear equations by stagewise orthogonal matching pursuit (Donoho, Tsaig,
    Drori & Starck, 2012), https://doi.org/10.1109/TIT.2011.2173241
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor

from fpsde.evidence import Component, condensed, explain

__all__ = ["gains", "promising"]

# Variances that are tried, relative to the largest.
TRIED = 10 ** torch.linspace(-9, 0, 28, dtype=torch.float64)
PASSES, ROUNDS = 12, 15
# Entries of columns that are looked at at a time.
AT_ONCE = 2**23


def promising(observed: Tensor, components: Sequence[Component], kept: Collection[int], asked: Mapping[int, float],
              batch: int) -> list[int]:
    """Finds components beside those that are kept which the data may ask for.

    Arguments:
        observed: y of covariance one, shape (n,).
        components: the groups and any further noise.
        kept: places of those that are there.
        asked: by how much each of the others must raise the log evidence, by its place.
        batch: how many are let in at a time, at most.

    Returns:
        The places of all that are there then, in order.
    """
    there = sorted(kept)
    for _ in range(PASSES):
        some = [components[k] for k in there]
        variances = _variances(observed, some)
        level = 1 + float(sum(v for c, v in zip(some, variances, strict=True) if c.factor is None))
        scaled = [c.factor * v.sqrt() for c, v in zip(some, variances, strict=True) if c.factor is not None and v > 0]
        others = {k: (factor, components[k].most) for k in asked
                  if k not in there and (factor := components[k].factor) is not None}
        found = gains(observed, level, torch.cat([observed.new_zeros(len(observed), 0), *scaled], 1), others)
        clear = {k: gain - asked[k] for k, gain in found.items() if gain > asked[k]}
        if not clear:
            break
        there = sorted([*there, *sorted(clear, key=clear.__getitem__)[-batch:]])
    return there


def _variances(observed: Tensor, components: Sequence[Component]) -> Tensor:
    """Those of most evidence, roughly."""
    factors = [c.factor for c in components if c.factor is not None]
    whole = torch.cat([observed.new_zeros(len(observed), 0), *factors], 1)
    matrix, told, noise, rest = condensed(whole, observed, torch.eye(len(observed)).to(observed))
    columns = iter(matrix.split([factor.shape[1] for factor in factors], 1))
    fewer = [c if c.factor is None else c._replace(factor=next(columns)) for c in components]
    return explain(told, noise, fewer, ROUNDS, rest).variances


def gains(observed: Tensor, level: float, columns: Tensor, groups: Mapping[int, tuple[Tensor, float]]) -> dict[int, float]:
    r"""Returns what each of some groups would add to the log evidence at its best variance, if all else stays.

    Arguments:
        observed: y, shape (n,), of covariance :math:`S = \ell\, 1 + A A^T` so far.
        level: :math:`\ell`.
        columns: A, those of the groups that are there times the roots of their variances, shape (n, m).
        groups: columns and largest variance of each of the others, by its place.
    """
    factor, _ = torch.linalg.cholesky_ex(level * torch.eye(columns.shape[1]).to(columns) + columns.T @ columns)
    explained = torch.cholesky_solve((columns.T @ observed)[:, None], factor)
    dual = (observed - (columns @ explained)[:, 0]) / level
    # Alike in shape, many are looked at at once.
    alike = defaultdict[int, list[int]](list)
    for k, (own, _) in groups.items():
        alike[own.shape[1]].append(k)
    found: dict[int, float] = {}
    for width, places in alike.items():
        count = max(1, AT_ONCE // (width * len(observed)))
        for first in range(0, len(places), count):
            some = places[first:first + count]
            block = torch.cat([groups[k][0] for k in some], 1)
            seen = torch.linalg.solve_triangular(factor, columns.T @ block, upper=False)
            inner = (_squares(block, len(some)) - _squares(seen, len(some))) / level
            size, turned = torch.linalg.eigh(inner)
            square = (turned.mT @ (dual @ block).view(len(some), width, 1)).square()
            tried = TRIED.to(observed) * torch.tensor([[[groups[k][1]]] for k in some]).to(observed)
            size = size.clamp_min(0)[..., None] * tried
            raised = 0.5 * (tried * square / (1 + size) - size.log1p()).sum(1)
            found.update(zip(some, raised.amax(-1).tolist(), strict=True))
    return found


def _squares(block: Tensor, groups: int) -> Tensor:
    """Products of the columns of each group with each other, (groups, U, U), of columns (n, groups U)."""
    each = block.T.reshape(groups, block.shape[1] // groups, len(block))
    return each @ each.mT

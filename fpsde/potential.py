r"""Drifts that are minus the gradient of a potential: :math:`f = -\nabla V(x)` in data units.

.. math:: V = \sum_p w_p\, c_p \log\cosh(k_p \cdot z + b_p) + \tfrac12\, z^T A z + l \cdot z

in a unit of its own, with random features that stay as they are. In dimensionless coordinates :math:`z = (x - m) / \sigma`
the gradient with respect to x is seen through the metric :math:`\mu_i = \bar\sigma^2 / \sigma_i^2`, where
:math:`\bar\sigma` is the geometric mean of the scales:

.. math:: \hat f_i = -\mu_i\, \partial V / \partial z_i

The gradient of log cosh is tanh: the drift is made of the same functions as that of a HollowNet, but its coordinates share
one readout (w, A, l).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fpsde.drift import AbstractDrift, learned
from fpsde.field import COUPLED, FREE, LINEAR, OWN, OWN_LINEAR, Operator, is_linear, picked
from fpsde.taylor import tanh, to_derivatives

__all__ = ["GradientDrift", "learned_potential"]

BEND = 0.5
OWN_SHARE = 0.5


class GradientDrift(AbstractDrift):
    r"""An autonomous drift that is minus the gradient of a learned potential; it starts at zero.

    The c_p and the units of A and l are such that every feature gives a drift of the order of one, however unlike the
    scales of the coordinates.

    Arguments:
        dim: number of coordinates d.
        features: number of random features; half of them see one coordinate alone, the others several.
        metric: the :math:`\mu_i`, shape (d,), positive; ones if left out.
    """

    metric: Tensor
    directions: Tensor
    shifts: Tensor

    def __init__(self, dim: int, features: int = 64, metric: Tensor | None = None) -> None:
        super().__init__()
        self.dim, self.time, self.n_features = dim, False, features
        self.settings = {"dim": dim, "features": features}
        self.n_own = features if dim == 1 else round(OWN_SHARE * features)
        # Graded reach, as in the HollowNet: every unit has a coordinate that it sees in full, and sees little or much of
        # the others.
        main = torch.arange(features) % dim
        reach = torch.rand(features, 1) / math.sqrt(max(dim - 1, 1))
        reach[:self.n_own] = 0
        directions = BEND * torch.randn(features, dim)
        directions *= torch.where(main[:, None] == torch.arange(dim), 1.0, reach)
        self.register_buffer("metric", torch.ones(dim) if metric is None else metric.clone())
        self.register_buffer("directions", directions)
        self.register_buffer("shifts", BEND * torch.randn(features))
        self.readout = nn.Parameter(torch.zeros(features + dim * (dim + 1) // 2 + dim))

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        return self.derivatives(t, x, order=0)[0]

    def derivatives(self, t: Tensor, x: Tensor, order: int = 2, *, rows: Tensor | None = None) -> tuple[Tensor, ...]:
        if x.shape[-1] != self.dim:
            raise ValueError(f"x must have {self.dim} coordinates in its last axis, got shape {tuple(x.shape)}")
        weights, matrix, offset = self._parts()
        linear = [offset + x @ matrix, matrix.diagonal(), torch.zeros_like(offset)]
        results = []
        for n, curve in enumerate(self._curves(x, order)):
            bent = (weights * curve) @ self.directions ** (n + 1)
            results.append(picked(-self.metric * (bent + linear[min(n, 2)]), rows, -1))
        return tuple(results)

    def known(self, t: Tensor, x: Tensor) -> Tensor:
        return torch.zeros_like(x)

    def potential(self, x: Tensor) -> Tensor:
        """Returns V, shape (...), for points x of shape (..., d); zero at the origin."""
        weights, matrix, offset = self._parts()
        z = x @ self.directions.T + self.shifts
        bent = (_log_cosh(z) - _log_cosh(self.shifts)) @ weights
        return bent + (0.5 * x * (x @ matrix) + x * offset).sum(-1)

    def columns(self, t: Tensor, x: Tensor, operators: Sequence[Operator], rows: Tensor | None = None) -> list[Tensor]:
        return [self._columns(x, operator, rows) for operator in operators]

    def _columns(self, x: Tensor, operator: Operator, rows: Tensor | None) -> Tensor:
        points, own = x.reshape(-1, self.dim), self.directions.T[:, None]
        if rows is not None:
            operator = [torch.zeros_like(points).index_copy(1, rows, o) for o in operator]
        c = [o.T for o in operator]
        hidden = torch.zeros_like(c[0])[:, :, None]
        for n, (coefficient, curve) in enumerate(zip(c, self._curves(points, len(c) - 1), strict=True)):
            hidden = hidden + coefficient[:, :, None] * curve * own ** (n + 1)
        i, j, unit = self._pairs()
        quadratic = hidden.new_zeros(self.dim, len(points), len(i))
        place = torch.arange(len(i), device=x.device)
        for a, b in ((i, j), (j, i)):
            seen = c[0][a] * points.T[b]
            if len(c) > 1:
                seen = seen + c[1][a] * (a == b)[:, None]
            quadratic[a, :, place] = unit[:, None] * seen
        linear = torch.diag_embed(c[0].T / self.metric).transpose(0, 1)
        columns = -self.metric[:, None, None] * torch.cat([self._heights() * hidden, quadratic, linear], -1)
        return picked(columns, rows)

    def get_readout(self) -> Tensor:
        return self.readout.detach()[None].clone()

    @torch.no_grad()
    def set_readout(self, values: Tensor) -> None:
        self.readout.copy_(values[0])

    def readout_parameters(self) -> list[nn.Parameter]:
        return [self.readout]

    def penalty(self, hidden: float, linear: float) -> Tensor:
        penalty, kinds = torch.full_like(self.readout, hidden), self.groups()[0]
        penalty[is_linear(kinds)], penalty[kinds == FREE] = linear, 0.0
        return penalty

    def groups(self) -> Tensor:
        i, j, _ = self._pairs()
        kinds = torch.full_like(self.readout, COUPLED, dtype=torch.long)
        kinds[:self.n_own], kinds[-self.dim:] = OWN, FREE
        kinds[self.n_features:-self.dim] = torch.where(i == j, OWN_LINEAR, LINEAR)
        return kinds[None]

    def _parts(self) -> tuple[Tensor, Tensor, Tensor]:
        """The weights of the features, the symmetric matrix A and l, all in the unit of V."""
        i, j, unit = self._pairs()
        w, entries, offset = self.readout.split([self.n_features, len(i), self.dim])
        upper = w.new_zeros(self.dim, self.dim).index_put((i, j), unit * entries)
        return self._heights() * w, upper + upper.triu(1).T, offset / self.metric

    def _heights(self) -> Tensor:
        """The c_p, which give every feature a drift of at most about one."""
        return (self.metric * self.directions).square().sum(-1).rsqrt()

    def _pairs(self) -> tuple[Tensor, Tensor, Tensor]:
        """Rows and columns of the upper half of A and the unit of each entry."""
        i, j = torch.triu_indices(self.dim, self.dim, device=self.metric.device)
        return i, j, (0.5 * (self.metric[i].square() + self.metric[j].square())).rsqrt()

    def _curves(self, x: Tensor, order: int) -> tuple[Tensor, ...]:
        """The tanh of every feature and its derivatives, order + 1 tensors of shape (..., features)."""
        z = x @ self.directions.T + self.shifts
        return to_derivatives(tanh([z, torch.ones_like(z), *[torch.zeros_like(z)] * (order - 1)][:order + 1]))


def learned_potential(drift: AbstractDrift) -> GradientDrift | None:
    """Returns the part of a drift that is learned as a gradient, if it is."""
    part = learned(drift)
    return part if isinstance(part, GradientDrift) else None


def _log_cosh(z: Tensor) -> Tensor:
    return torch.logaddexp(z, -z) - math.log(2)

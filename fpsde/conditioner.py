r"""Conditioners :math:`h_i = c_i(t, x_{-i})`: summaries of all coordinates but one.

Each maps x of shape (n, d) to h of shape (d, n, features), where row i does not depend on :math:`x_i`.
"""

from __future__ import annotations

import math
from abc import abstractmethod

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from fpsde.field import picked
from fpsde.taylor import ACTIVATIONS

__all__ = ["AbstractConditioner", "LeaveOneOutConditioner", "MaskedConditioner", "random_weight"]


class AbstractConditioner(nn.Module):
    """Maps (time features, x) to one summary of the other coordinates for every coordinate."""

    features: int

    @abstractmethod
    def forward(self, time: Tensor | None, x: Tensor, rows: Tensor | None = None) -> Tensor:
        """Evaluates the summaries.

        Arguments:
            time: time features, shape (n, n_time), or None when time is switched off.
            x: points, shape (n, d).
            rows: the coordinates whose summaries are wanted, shape (G,); all if left out.

        Returns:
            h, shape (d, n, features), or (G, n, features), with row i independent of x[:, i].
        """


class LeaveOneOutConditioner(AbstractConditioner):
    r"""The sum over all coordinates less the own term, O(d) in time and memory:

    .. math:: h_i = \rho_i\Big(t, \sum_j \phi_j(x_j) - \phi_i(x_i)\Big)

    Arguments:
        dim: number of coordinates d.
        n_time: number of time features, 0 to switch time off.
        width: width of the maps phi and rho, and number of features returned.
        activation: name of a smooth activation.
    """

    def __init__(self, dim: int, n_time: int, width: int, activation: str) -> None:
        super().__init__()
        self.features = width
        self.activation = ACTIVATIONS[activation][0]
        self.phi_scale = random_weight(dim, 1, width, fan_in=1)
        self.phi_shift = random_weight(dim, 1, width, fan_in=1)
        self.phi_mix = random_weight(dim, width, width, fan_in=width * max(dim - 1, 1))
        self.rho_mix = random_weight(dim, width, width, fan_in=1 + n_time)
        self.rho_shift = nn.Parameter(torch.zeros(dim, 1, width))
        self.rho_time = random_weight(dim, n_time, width, fan_in=1 + n_time) if n_time else None

    def forward(self, time: Tensor | None, x: Tensor, rows: Tensor | None = None) -> Tensor:
        terms = self.activation(x.T[:, :, None] * self.phi_scale + self.phi_shift) @ self.phi_mix
        others = terms.sum(0) - picked(terms, rows)
        mix = picked(self.rho_mix, rows)
        if self.rho_time is not None and time is not None:
            others = torch.cat([others, time.expand(len(others), -1, -1)], -1)
            mix = torch.cat([mix, picked(self.rho_time, rows)], 1)
        return self.activation(torch.baddbmm(picked(self.rho_shift, rows), others, mix))


class MaskedConditioner(AbstractConditioner):
    r"""Two masked autoregressive halves, one of the coordinates before i and one of those after it:

    .. math:: h_i = \big(m_i(t, x_{<i}),\ m'_i(t, x_{>i})\big), \qquad
              m_i = \sigma\Big(\sum_{j<i} z_j W_j R_i\Big), \quad z_j = \sigma\Big(\sum_{k \le j} x_k U_k V_j\Big)

    The triangles of masked weights are products U V and W R, so that running sums do what masked matrices would: O(d) in
    time and memory.

    References:
        MADE: Masked Autoencoder for Distribution Estimation (Germain et al., 2015), https://arxiv.org/abs/1502.03509

    Arguments:
        dim: number of coordinates d.
        n_time: number of time features, 0 to switch time off.
        width: number of features returned, half of them for each side.
        activation: name of a smooth activation.
    """

    def __init__(self, dim: int, n_time: int, width: int, activation: str) -> None:
        super().__init__()
        half = max(width // 2, 1)
        self.features = 2 * half
        self.activation = ACTIVATIONS[activation][0]
        # A sum of more terms is wider: its weights start smaller.
        terms = torch.arange(1, dim + 1).repeat(2)[:, None, None].sqrt()
        self.first = random_weight(2 * dim, 1, half, fan_in=1)
        self.first_mix = nn.Parameter(random_weight(2 * dim, half, half, fan_in=half).detach() / terms)
        self.first_time = random_weight(2 * dim, n_time, half, fan_in=n_time) if n_time else None
        self.first_shift = random_weight(2 * dim, 1, half, fan_in=1)
        self.second = random_weight(2 * dim, half, half, fan_in=half)
        self.second_mix = nn.Parameter(random_weight(2 * dim, half, half, fan_in=half).detach() / terms)
        self.second_shift = nn.Parameter(torch.zeros(2 * dim, 1, half))

    def forward(self, time: Tensor | None, x: Tensor, rows: Tensor | None = None) -> Tensor:
        both = torch.cat([x, x.flip(-1)], -1).T[:, :, None]
        seen = _running_sum(both * self.first)
        mix: Tensor = self.first_mix
        if self.first_time is not None and time is not None:
            seen = torch.cat([seen, time.expand(len(seen), -1, -1)], -1)
            mix = torch.cat([mix, self.first_time], 1)
        z = self.activation(torch.baddbmm(self.first_shift, seen, mix))
        before = pad(_running_sum(z @ self.second).unflatten(0, (2, -1))[:, :-1], (0, 0, 0, 0, 1, 0)).flatten(0, 1)
        lower, upper = self.activation(torch.baddbmm(self.second_shift, before, self.second_mix)).chunk(2)
        return picked(torch.cat([lower, upper.flip(0)], -1), rows)


def _running_sum(terms: Tensor) -> Tensor:
    """Sums over the coordinates up to each one, in both orders, shape (2 d, n, features)."""
    return terms.unflatten(0, (2, -1)).cumsum(1).flatten(0, 1)


def random_weight(*shape: int, fan_in: float) -> nn.Parameter:
    """Returns a parameter of the given shape with entries of variance 1 / fan_in."""
    return nn.Parameter(torch.randn(shape) / math.sqrt(fan_in))

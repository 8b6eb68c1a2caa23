r"""A library of simple functions beside a hollow network: what many equations are made of.

.. math:: f_i(t, x) = n_i(t, x) + \sum_m C_{im}\, \psi_m(x)

with n a HollowNet and :math:`\psi` the products :math:`x_j x_k`, the cubes :math:`x_j^3` and bends
:math:`\tanh(k x_j + b)` of single coordinates. Predators that meet prey, a double well and a gene that another one holds
down are then sums of a few terms, where a network spends its features on all the functions that it might be. Which of
them there are is decided by the evidence (:mod:`fpsde.readouts`), for each product in each coordinate's drift, and for the
bends and the cube of each coordinate in that of each other: of many that there might be, few are.

Beyond a distance c from the centre, products and cubes go on along their tangents: with :math:`u` the coordinate cut to
[-c, c] and :math:`o = x - u` they are :math:`x_j x_k - o_j o_k` and :math:`u_j^3 + 3 u_j^2 o_j`. The drift then grows
linearly at most, no path of the SDE explodes, and the few points far out do not decide about the rest.

References:
    Discovering governing equations from data (SINDy; Brunton, Proctor & Kutz, 2016), https://doi.org/10.1073/pnas.1517384113
    Generalized additive models (Hastie & Tibshirani, 1986), https://doi.org/10.1214/ss/1177013604
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fpsde.drift import AbstractDrift
from fpsde.field import ADDITIVE, CUBE, PRODUCT, Operator, picked
from fpsde.hollow import HollowNet
from fpsde.taylor import Series, multiply, tanh, to_derivatives

__all__ = ["LibraryDrift"]

# In standard deviations of the data.
REACH = 2.5
BEND = 1.5


class LibraryDrift(AbstractDrift):
    """A HollowNet and a library, whose coefficients start at zero and are the first of the readout.

    Arguments:
        bends: number of bends of each coordinate.
        net: the arguments of the HollowNet.

    Raises:
        ValueError: if the first is no number from 0 on.
    """

    slopes: Tensor
    shifts: Tensor

    def __init__(self, bends: int, **net: Any) -> None:
        super().__init__()
        if type(bends) is not int or bends < 0:
            raise ValueError(f"bends must be a number from 0 on, got {bends!r:.40}")
        self.net = HollowNet(**net)
        dim = self.net.dim
        self.dim, self.time = dim, self.net.time
        self.settings = {"bends": bends, **self.net.settings}
        self.register_buffer("slopes", BEND * torch.randn(bends))
        self.register_buffer("shifts", BEND * torch.randn(bends))
        self.coefficients = nn.Parameter(torch.zeros(dim, dim * (dim + 1) // 2 + dim * (1 + bends)))

    @property
    def pairs(self) -> Tensor:
        """The coordinates of each product, shape (2, products)."""
        return torch.triu_indices(self.dim, self.dim, device=self.slopes.device)

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        return self.derivatives(t, x, order=0)[0]

    def derivatives(self, t: Tensor, x: Tensor, order: int = 2, *, rows: Tensor | None = None) -> tuple[Tensor, ...]:
        learned = self.net.taylor(t, x, order, rows)
        terms = to_derivatives(self.functions(x.reshape(-1, self.dim), order, rows))
        coefficients = picked(self.coefficients, rows)
        simple = [(psi @ coefficients[:, :, None]).squeeze(-1).T if len(psi) > 1 else psi[0] @ coefficients.T
                  for psi in terms]
        return tuple(f + g.reshape(f.shape) for f, g in zip(learned, simple, strict=True))

    def known(self, t: Tensor, x: Tensor) -> Tensor:
        return self.net.known(t, x)

    def functions(self, x: Tensor, order: int, rows: Tensor | None = None) -> Series:
        """Returns the functions at points (n, d) as a series in x_i, for every i with the other coordinates held fixed.

        The first term, their values, is of shape (1, n, M), as it is the same for all coordinates; the others are of
        shape (d, n, M), or of the coordinates `rows`, (G, n, M).
        """
        step = picked(torch.eye(self.dim, dtype=x.dtype, device=x.device), rows)[:, None]
        cut = x.clamp(-REACH, REACH)
        inside = (cut == x).to(x)

        def along(value: Tensor, slope: Tensor | float) -> Series:
            return [value[None], step * slope, *[torch.zeros_like(step)] * (order - 1)][:order + 1]

        coordinate, near, far = along(x, 1.0), along(cut, inside), along(x - cut, 1 - inside)
        (i, j), square = self.pairs, multiply(near, near)
        products = [a - b for a, b in zip(_product(coordinate, i, j), _product(far, i, j), strict=True)]
        cubes = [a + 3 * b for a, b in zip(multiply(square, near), multiply(square, far), strict=True)]
        value, *rest = (c[..., None] * self.slopes for c in coordinate)
        bends = tanh([value + self.shifts, *rest])
        return [torch.cat(_alike(p, c, b.flatten(-2)), -1) for p, c, b in zip(products, cubes, bends, strict=True)]

    def columns(self, t: Tensor, x: Tensor, operators: Sequence[Operator], rows: Tensor | None = None) -> list[Tensor]:
        terms = to_derivatives(self.functions(x.reshape(-1, self.dim), max(map(len, operators)) - 1, rows))
        learned = self.net.columns(t, x, operators, rows)
        return [torch.cat([_applied(operator, terms), net], -1)
                for operator, net in zip(operators, learned, strict=True)]

    def get_readout(self) -> Tensor:
        return torch.cat([self.coefficients.detach(), self.net.get_readout()], -1)

    @torch.no_grad()
    def set_readout(self, values: Tensor) -> None:
        simple, learned = values.tensor_split([self.coefficients.shape[1]], -1)
        self.coefficients.copy_(simple)
        self.net.set_readout(learned)

    def readout_parameters(self) -> list[nn.Parameter]:
        return [self.coefficients, *self.net.readout_parameters()]

    def penalty(self, hidden: float, linear: float) -> Tensor:
        return torch.cat([torch.full_like(self.coefficients[0], hidden), self.net.penalty(hidden, linear)])

    def groups(self) -> Tensor:
        kinds = torch.full_like(self.coefficients, ADDITIVE, dtype=torch.long)
        first = self.pairs.shape[1]
        kinds[:, :first] = PRODUCT
        kinds[:, first:first + self.dim].fill_diagonal_(CUBE)
        return torch.cat([kinds, self.net.groups()], -1)

    def sources(self) -> Tensor:
        several, each = self.pairs.shape[1], torch.arange(self.dim, device=self.slopes.device)
        of_library = torch.cat([torch.full((several,), -1).to(each), each, each.repeat_interleave(len(self.slopes))])
        return torch.cat([of_library.expand(self.dim, -1), self.net.sources()], -1)


def _product(series: Series, i: Tensor, j: Tensor) -> Series:
    return multiply([c[..., i] for c in series], [c[..., j] for c in series])


def _applied(operator: Operator, terms: Sequence[Tensor]) -> Tensor:
    first, *rest = (c.T[:, :, None] * psi for c, psi in zip(operator, terms, strict=False))
    return sum(rest, first)


def _alike(*parts: Tensor) -> list[Tensor]:
    """The same, with as many rows and points each."""
    shape = torch.broadcast_shapes(*(part.shape[:2] for part in parts))
    return [part.expand(*shape, -1) for part in parts]

r"""Diagonal diffusions g, by way of the variances :math:`a_i = g_i^2` and their dimension-wise derivatives.

Their columns are those of a: it is a in which the Fokker-Planck equation is linear.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fpsde.field import FREE, AbstractField, Operator, picked
from fpsde.given import GivenField
from fpsde.hollow import HollowNet
from fpsde.taylor import Series, compose_softplus, from_derivatives, multiply, sigmoid, to_derivatives

__all__ = ["AbstractDiffusion", "AbstractKnownDiffusion", "ConstantDiffusion", "FunctionDiffusion", "KnownDiffusion",
           "StateDiffusion"]

SHARPNESS = 3.0
FLOOR = 0.05


class AbstractDiffusion(AbstractField):
    """A diagonal diffusion g(t, x), positive, in units of x per square root of time."""

    @abstractmethod
    def variance(self, t: Tensor, x: Tensor, rows: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Returns (a, D a, D^2 a) of a = g^2, each of shape (..., d), or of the coordinates `rows`, (..., G)."""


class AbstractKnownDiffusion(AbstractDiffusion):
    """A diffusion that the user gives: there is nothing to learn."""

    level: Tensor
    """A level for every coordinate, shape (d,): the known g, or that of one data unit."""

    def columns(self, t: Tensor, x: Tensor, operators: Sequence[Operator], rows: Tensor | None = None) -> list[Tensor]:
        return [operator[0].T[:, :, None][..., :0] for operator in operators]

    def get_readout(self) -> Tensor:
        return self.level[:, None][:, :0]

    def set_readout(self, values: Tensor) -> None:
        """Does nothing: there is no readout."""

    def readout_parameters(self) -> list[nn.Parameter]:
        return []

    def penalty(self, hidden: float, linear: float) -> Tensor:
        return self.level[:0]

    def groups(self) -> Tensor:
        return torch.zeros(len(self.level), 0, dtype=torch.long, device=self.level.device)


class KnownDiffusion(AbstractKnownDiffusion):
    """A known level of noise for each coordinate.

    Arguments:
        level: g for every coordinate, shape (d,), not negative.
    """

    def __init__(self, level: Tensor) -> None:
        super().__init__()
        self.register_buffer("level", level.clone())

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        return self.level.expand_as(x)

    def variance(self, t: Tensor, x: Tensor, rows: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        zero = torch.zeros_like(picked(x, rows, -1))
        return picked(self.level, rows).square().expand_as(zero), zero, zero


class FunctionDiffusion(AbstractKnownDiffusion):
    """A known function of place and time.

    Arguments:
        field: gives g.
    """

    def __init__(self, field: GivenField) -> None:
        super().__init__()
        self.field = field
        self.register_buffer("level", torch.ones_like(field.units.scale, dtype=torch.float32), persistent=False)

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        return self.field(t, x)

    def variance(self, t: Tensor, x: Tensor, rows: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        g = from_derivatives(self.field.derivatives(t, x, order=2))
        a, slope, bend = (picked(part, rows, -1) for part in to_derivatives(multiply(g, g)))
        return a, slope, bend


class ConstantDiffusion(AbstractDiffusion):
    """One noise level for each coordinate.

    Arguments:
        level: initial g, shape (d,), positive.
    """

    def __init__(self, level: Tensor) -> None:
        super().__init__()
        self.log_level = nn.Parameter(level.log())

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        return self.log_level.exp().expand_as(x)

    def variance(self, t: Tensor, x: Tensor, rows: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        zero = torch.zeros_like(picked(x, rows, -1))
        return (2 * picked(self.log_level, rows)).exp().expand_as(zero), zero, zero

    def columns(self, t: Tensor, x: Tensor, operators: Sequence[Operator], rows: Tensor | None = None) -> list[Tensor]:
        slope = picked(2 * (2 * self.log_level).exp(), rows)
        return [(operator[0] * slope).T[:, :, None] for operator in operators]

    def get_readout(self) -> Tensor:
        return self.log_level.detach()[:, None].clone()

    @torch.no_grad()
    def set_readout(self, values: Tensor) -> None:
        self.log_level.copy_(values[:, 0])

    def readout_parameters(self) -> list[nn.Parameter]:
        return [self.log_level]

    def penalty(self, hidden: float, linear: float) -> Tensor:
        return linear * torch.ones_like(self.log_level[:1])

    def groups(self) -> Tensor:
        return torch.full((len(self.log_level), 1), FREE, device=self.log_level.device)


class StateDiffusion(AbstractDiffusion):
    r"""A free-form diffusion, :math:`g_i = \ell_i\,(0.05 + \mathrm{softplus}_s(z_i(t, x)))` with z a HollowNet.

    The softplus has sharpness 3: it is close to linear above 1/2, so that noise proportional to x is in easy reach,
    bounded away from zero, and grows at most linearly, which keeps simulations from exploding.

    Arguments:
        net: gives z; its offset is set to 1 and the rest of its readout to 0, that is to a constant g.
        level: the level l, shape (d,), positive; not learned.
    """

    level: Tensor

    def __init__(self, net: HollowNet, level: Tensor) -> None:
        super().__init__()
        self.net = net
        self.register_buffer("level", level.clone())
        with torch.no_grad():
            net.set_readout(torch.zeros_like(net.get_readout()))
            net.offset.fill_(1.0)

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        return self.level * _positive([self.net(t, x)])[0]

    def variance(self, t: Tensor, x: Tensor, rows: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        z = from_derivatives(self.net.derivatives(t, x, order=2, rows=rows))
        root = [picked(self.level, rows) * c for c in _positive(z)]
        a, slope, bend = to_derivatives(multiply(root, root))
        return a, slope, bend

    def columns(self, t: Tensor, x: Tensor, operators: Sequence[Operator], rows: Tensor | None = None) -> list[Tensor]:
        order = max(map(len, operators)) - 1
        hidden = self.net.series(t, x, order, rows)
        z = from_derivatives(self.net.taylor(t, x, order, rows, hidden))
        b = [c.flatten(0, -2) for c in to_derivatives(_slope(z, picked(self.level, rows)))]
        return self.net.columns(t, x, [_times(b, operator) for operator in operators], rows, hidden)

    def get_readout(self) -> Tensor:
        return self.net.get_readout()

    def set_readout(self, values: Tensor) -> None:
        self.net.set_readout(values)

    def readout_parameters(self) -> list[nn.Parameter]:
        return self.net.readout_parameters()

    def penalty(self, hidden: float, linear: float) -> Tensor:
        # Where the data say nothing, the level holds on to where it started instead of collapsing to zero.
        penalty = self.net.penalty(hidden, linear)
        penalty[-1] = linear
        return penalty

    def groups(self) -> Tensor:
        return self.net.groups()


def _times(b: Sequence[Tensor], c: Operator) -> Operator:
    """The operator c applied to b psi, as one that is applied to psi (Leibniz), for b with its derivatives."""
    if len(c) == 1:
        return [c[0] * b[0]]
    if len(c) == 2:
        return [c[0] * b[0] + c[1] * b[1], c[1] * b[0]]
    return [c[0] * b[0] + c[1] * b[1] + c[2] * b[2], c[1] * b[0] + 2 * c[2] * b[1], c[2] * b[0]]


def _slope(z: Series, level: Tensor) -> Series:
    """The series of da / dz = 2 l^2 (0.05 + softplus_s(z)) sigmoid(s z)."""
    root = _positive(z)
    rise = sigmoid([SHARPNESS * c for c in z])
    return [2 * level.square() * c for c in multiply(root, rise)]


def _positive(z: Series) -> Series:
    """The series of 0.05 + softplus of sharpness 3."""
    value, *rest = compose_softplus(z, SHARPNESS)
    return [value + FLOOR, *rest]

r"""Drifts: vector fields that are linear in what is learned of them last, their readout w.

.. math:: f(t, x) = f_0(t, x) + \sum_p w_p\, \phi_p(t, x)

with :math:`f_0` known: zero, or the terms of the drift that the user gives. The readout has a row of its own for every
coordinate (:class:`~fpsde.hollow.HollowNet`) or one row that all share (:class:`~fpsde.potential.GradientDrift`). Each
form says what an operator :math:`c_0 + c_1 D + c_2 D^2` makes of the features :math:`\phi_p`, which is what
:mod:`fpsde.moments` and :mod:`fpsde.projection` solve with.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from fpsde.given import GivenField

__all__ = ["COUPLED", "FREE", "LINEAR", "OWN", "AbstractDrift", "PriorDrift"]

OWN, COUPLED, LINEAR, FREE = 0, 1, 2, -1


class AbstractDrift(nn.Module):
    """A vector field f(t, x) from R^d to R^d, in units of x per time, linear in its readout of shape (R, P).

    R is d where every coordinate has a readout of its own, and 1 where all share one.

    Attributes:
        dim: number of coordinates d.
        time: whether what is learned depends on time.
        settings: what it takes to build the field again, as JSON holds it.
    """

    dim: int
    time: bool
    settings: dict[str, Any]

    @abstractmethod
    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        """Returns f, shape (..., d), for times that broadcast with x.shape[:-1] and points x of shape (..., d)."""

    @abstractmethod
    def derivatives(self, t: Tensor, x: Tensor, order: int = 2) -> tuple[Tensor, ...]:
        """Returns f and its dimension-wise derivatives (f, D f, ..., D^order f), each of shape (..., d)."""

    @abstractmethod
    def known(self, t: Tensor, x: Tensor) -> Tensor:
        """Returns the part of f that is not learned, shape (..., d)."""

    @abstractmethod
    def columns(self, t: Tensor, x: Tensor, operator: Sequence[Tensor]) -> Tensor:
        """Applies an operator with coefficients of shape (n, d) to df / d readout, n points in all: shape (d, n, P)."""

    @abstractmethod
    def get_readout(self) -> Tensor:
        """Returns the readout, shape (R, P)."""

    @abstractmethod
    def set_readout(self, values: Tensor) -> None:
        """Sets the readout from a tensor of shape (R, P)."""

    @abstractmethod
    def readout_parameters(self) -> list[nn.Parameter]:
        """Returns the parameters that the field is linear in."""

    @abstractmethod
    def penalty(self, hidden: float, linear: float) -> Tensor:
        """Returns the ridge on a row of the readout, shape (P,): on features, on the linear part, none on the offset."""

    @abstractmethod
    def groups(self) -> Tensor:
        """Returns the kind of each entry of a row of the readout, shape (P,).

        0 for features of one coordinate alone, 1 for those that couple coordinates, 2 for the linear part, -1 for the
        offset.
        """


class PriorDrift(AbstractDrift):
    """Known terms of a drift and what is learned beside them: f = known + learned.

    Arguments:
        learned: the field to learn.
        prior: the known terms.
    """

    def __init__(self, learned: AbstractDrift, prior: GivenField) -> None:
        super().__init__()
        self.learned, self.prior = learned, prior
        self.dim, self.time, self.settings = learned.dim, learned.time, learned.settings

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        return self.prior(t, x) + self.learned(t, x)

    def derivatives(self, t: Tensor, x: Tensor, order: int = 2) -> tuple[Tensor, ...]:
        parts = zip(self.prior.derivatives(t, x, order), self.learned.derivatives(t, x, order), strict=True)
        return tuple(known + learned for known, learned in parts)

    def known(self, t: Tensor, x: Tensor) -> Tensor:
        return self.prior(t, x) + self.learned.known(t, x)

    def columns(self, t: Tensor, x: Tensor, operator: Sequence[Tensor]) -> Tensor:
        return self.learned.columns(t, x, operator)

    def get_readout(self) -> Tensor:
        return self.learned.get_readout()

    def set_readout(self, values: Tensor) -> None:
        self.learned.set_readout(values)

    def readout_parameters(self) -> list[nn.Parameter]:
        return self.learned.readout_parameters()

    def penalty(self, hidden: float, linear: float) -> Tensor:
        return self.learned.penalty(hidden, linear)

    def groups(self) -> Tensor:
        return self.learned.groups()

r"""Drifts: vector fields that are linear in what is learned of them last, their readout w.

.. math:: f(t, x) = f_0(t, x) + \sum_p w_p\, \phi_p(t, x)

with :math:`f_0` known: zero, or the terms of the drift that the user gives. The readout has a row of its own for every
coordinate (:class:`~fpsde.hollow.HollowNet`) or one row that all share (:class:`~fpsde.potential.GradientDrift`).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from fpsde.field import AbstractField, Operator, picked
from fpsde.given import GivenField

__all__ = ["AbstractDrift", "PriorDrift", "learned"]


class AbstractDrift(AbstractField):
    """A vector field f(t, x) from R^d to R^d, in units of x per time, linear in its readout.

    Attributes:
        dim: number of coordinates d.
        time: whether what is learned depends on time.
        settings: what it takes to build the field again, as JSON holds it.
    """

    dim: int
    time: bool
    settings: dict[str, Any]

    @abstractmethod
    def derivatives(self, t: Tensor, x: Tensor, order: int = 2, *, rows: Tensor | None = None) -> tuple[Tensor, ...]:
        """Returns f and its dimension-wise derivatives (f, D f, ..., D^order f), each of shape (..., d).

        Where they are wanted of some coordinates only, `rows`, shape (G,), says of which; they are then of shape (..., G).
        """

    @abstractmethod
    def known(self, t: Tensor, x: Tensor) -> Tensor:
        """Returns the part of f that is not learned, shape (..., d)."""


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

    def derivatives(self, t: Tensor, x: Tensor, order: int = 2, *, rows: Tensor | None = None) -> tuple[Tensor, ...]:
        parts = zip(self.prior.derivatives(t, x, order), self.learned.derivatives(t, x, order, rows=rows), strict=True)
        return tuple(picked(known, rows, -1) + learned for known, learned in parts)

    def known(self, t: Tensor, x: Tensor) -> Tensor:
        return self.prior(t, x) + self.learned.known(t, x)

    def columns(self, t: Tensor, x: Tensor, operators: Sequence[Operator], rows: Tensor | None = None) -> list[Tensor]:
        return self.learned.columns(t, x, operators, rows)

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

    def sources(self) -> Tensor:
        return self.learned.sources()


def learned(drift: AbstractDrift) -> AbstractDrift:
    """Returns the part of a drift that is learned."""
    return drift.learned if isinstance(drift, PriorDrift) else drift

r"""Vector fields with a readout: the parameters that they, or their squares, are solved for.

Each form says what an operator :math:`c_0 + c_1 D + c_2 D^2` makes of its derivative by the readout, which is what
:mod:`fpsde.moments` and :mod:`fpsde.projection` solve with.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

__all__ = ["ADDITIVE", "COUPLED", "CUBE", "FREE", "LIBRARY", "LINEAR", "OWN", "OWN_LINEAR", "PRODUCT", "AbstractField",
           "Operator", "is_linear", "picked"]

Operator = Sequence[Tensor]
"""The coefficients (c_0, c_1, c_2), or fewer, of a differential operator."""
FREE, OWN_LINEAR, LINEAR, CUBE, PRODUCT, OWN, ADDITIVE, COUPLED = range(8)
LIBRARY = (CUBE, PRODUCT, ADDITIVE)


class AbstractField(nn.Module):
    """A vector field on R^d with a readout of shape (R, P).

    R is d where every coordinate has a readout of its own, and 1 where all share one; P = 0 if there is nothing to learn.
    """

    @abstractmethod
    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        """Returns values, shape (..., d), for times that broadcast with x.shape[:-1] and points x of shape (..., d)."""

    @abstractmethod
    def columns(self, t: Tensor, x: Tensor, operators: Sequence[Operator], rows: Tensor | None = None) -> list[Tensor]:
        """Applies operators to the derivative by the readout, shape (d, n, P) for each.

        An operator's coefficients are of shape (n, d). The derivative is that of a drift f, or of the square a = g^2 of a
        diffusion. Where it is wanted of some coordinates only, `rows`, shape (G,), says of which; coefficients are then of
        shape (n, G), columns (G, n, P).
        """

    @abstractmethod
    def get_readout(self) -> Tensor:
        """Returns the readout, shape (R, P)."""

    @abstractmethod
    def set_readout(self, values: Tensor) -> None:
        """Sets the readout from a tensor of shape (R, P)."""

    @abstractmethod
    def readout_parameters(self) -> list[nn.Parameter]:
        """Returns the parameters that the readout consists of."""

    @abstractmethod
    def penalty(self, hidden: float, linear: float) -> Tensor:
        """Returns the ridge on a row of the readout, shape (P,): on features, on the linear part, none on an offset."""

    @abstractmethod
    def groups(self) -> Tensor:
        """Returns the kind of each entry of the readout, shape (R, P), the simpler the lower.

        0 for an offset or level, 1 for what is linear in its own coordinate, 2 for that in others, 3 for its own cube, 4
        for products of two, 5 for features of its own coordinate, 6 for other functions of single ones, 7 for features
        that couple coordinates.
        """

    def sources(self) -> Tensor:
        """Returns the coordinate that each entry of the readout reacts to, shape (R, P); -1 if several or if not known."""
        return torch.full_like(self.groups(), -1)


def is_linear(kinds: Tensor) -> Tensor:
    """Tells which entries of a readout are of a linear part."""
    return (kinds == LINEAR) | (kinds == OWN_LINEAR)


def picked(values: Tensor, rows: Tensor | None, axis: int = 0) -> Tensor:
    """Returns the entries of these coordinates, along an axis; all if None."""
    return values if rows is None else values.index_select(axis, rows) if axis else values[rows]

r"""HollowNets: vector fields whose dimension-wise derivatives cost no more than a forward pass or two.

.. math:: f_i(t, x) = \tau_i(t, x_i, h_i), \qquad h_i = c_i(t, x_{-i})

With the conditioner's output h held fixed, the Jacobian is diagonal, so that all :math:`D^k f_i = \partial^k f_i /
\partial x_i^k` are derivatives of d independent functions of one variable. They come in Taylor mode (truncated series
through the transformer, one forward pass) or in reverse mode (k backward passes, as published).

References:
    Neural Networks with Cheap Differential Operators (Chen & Duvenaud, 2019), https://arxiv.org/abs/1912.03579
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from fpsde.conditioner import AbstractConditioner, LeaveOneOutConditioner, MaskedConditioner, random_weight
from fpsde.drift import AbstractDrift
from fpsde.field import COUPLED, FREE, LINEAR, OWN, OWN_LINEAR, Operator, picked
from fpsde.taylor import ACTIVATIONS, Series, to_derivatives

__all__ = ["CONDITIONERS", "HollowNet"]

CONDITIONERS: dict[str, type[AbstractConditioner]] = {
    "masked": MaskedConditioner, "leave-one-out": LeaveOneOutConditioner}

N_FREQUENCIES = 3


class HollowNet(AbstractDrift):
    r"""A vector field from R^d to R^d, linear part plus hollow network:

    .. math:: f_i(t, x) = b_i + \sum_j A_{ij} x_j + w_i \cdot \phi_i(t, x_i, h_i)

    with :math:`\phi_i` a network with its own weights for every coordinate. The map is linear in its readout
    (w, A, b), which :mod:`fpsde.projection` solves for. It starts at random, or at zero
    with ``random_readout=False``.

    Arguments:
        dim: number of coordinates d.
        conditioner: "masked" or "leave-one-out".
        hidden: widths of the transformer's hidden layers.
        width: number of features of the conditioner.
        activation: "tanh", "softplus", "silu" or "sigmoid".
        time: whether the field depends on time.
        linear: whether to include the linear part A x.
        random_readout: whether the readout w starts at random instead of at zero.
        bend: typical slope of the first hidden layer; small, the features are close to polynomials of low degree.
        own_share: share of the hidden units that see x_i and the time but not the other coordinates.

    Example:
        >>> net = HollowNet(dim=5, conditioner="masked")
        >>> t, x = torch.tensor(0.5), torch.randn(100, 5)
        >>> f, Df, D2f = net.derivatives(t, x, order=2)
    """

    def __init__(self, dim: int, conditioner: str = "leave-one-out", hidden: Sequence[int] = (64,),
                 width: int = 16, activation: str = "tanh", time: bool = True, linear: bool = True,
                 random_readout: bool = True, bend: float = 1.5, own_share: float = 0.0) -> None:
        super().__init__()
        if dim < 1:
            raise ValueError(f"dim must be at least 1, got {dim}")
        if conditioner not in CONDITIONERS:
            raise ValueError(f"conditioner must be one of {sorted(CONDITIONERS)}, got {conditioner!r}")
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation must be one of {sorted(ACTIVATIONS)}, got {activation!r}")
        if not hidden:
            raise ValueError("hidden must name at least one layer width")
        self.dim, self.time, self.linear, self.activation = dim, time, linear, activation
        self.settings = {"dim": dim, "conditioner": conditioner, "hidden": list(hidden), "width": width,
                         "activation": activation, "time": time, "linear": linear, "own_share": own_share}
        n_time = 1 + 2 * N_FREQUENCIES if time else 0
        self.conditioner = CONDITIONERS[conditioner](dim, n_time, width, activation)
        width_in = self.conditioner.features
        # Graded reach: some units see little but x_i, others mostly x_{-i}, so that functions of one coordinate and
        # couplings both lie near the span of the features from the start.
        reach = bend * torch.rand(hidden[0]).square()
        self.n_own = round(own_share * hidden[0])
        reach[:self.n_own] = 0
        self.own = nn.Parameter(bend * torch.randn(dim, 1, hidden[0]))
        self.others = nn.Parameter(reach * random_weight(dim, width_in, hidden[0], fan_in=width_in))
        reach[:self.n_own] = bend / 3
        self.clock = nn.Parameter(reach * random_weight(dim, n_time, hidden[0], fan_in=n_time)) if time else None
        self.layers = nn.ParameterList(
            random_weight(dim, a, b, fan_in=a) for a, b in zip(hidden[:-1], hidden[1:], strict=True))
        self.shifts = nn.ParameterList(nn.Parameter(bend * torch.randn(dim, 1, b)) for b in hidden)
        self.n_features = hidden[-1]
        self.readout = nn.Parameter(
            torch.randn(dim, hidden[-1]) / math.sqrt(hidden[-1]) if random_readout else torch.zeros(dim, hidden[-1]))
        self.matrix = nn.Parameter(torch.zeros(dim, dim)) if linear else None
        self.offset = nn.Parameter(torch.zeros(dim))

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        """Evaluates the field.

        Arguments:
            t: times, any shape that broadcasts with x.shape[:-1].
            x: points, shape (..., d).

        Returns:
            f, shape (..., d).
        """
        return self.derivatives(t, x, order=0)[0]

    def derivatives(self, t: Tensor, x: Tensor, order: int = 2,
                    mode: Literal["taylor", "reverse"] = "taylor", *, rows: Tensor | None = None) -> tuple[Tensor, ...]:
        """Evaluates the field and its dimension-wise derivatives.

        Arguments:
            t: times, any shape that broadcasts with x.shape[:-1].
            x: points, shape (..., d).
            order: highest derivative k >= 0.
            mode: "taylor" (one forward pass) or "reverse" (k backward passes).
            rows: the coordinates that are wanted, shape (G,), in Taylor mode; all if left out.

        Returns:
            The k + 1 tensors (f, D f, ..., D^k f), each of the shape of x, or (..., G).
        """
        if order < 0:
            raise ValueError(f"order must be at least 0, got {order}")
        if mode == "taylor":
            return self.taylor(t, x, order, rows)
        if mode == "reverse" and rows is None:
            return self._reverse(t, x, order)
        raise ValueError(f"mode must be 'taylor' or 'reverse', the latter for all coordinates, got {mode!r}")

    def divergence(self, t: Tensor, x: Tensor) -> Tensor:
        """Returns the divergence of the field, shape (...), for x of shape (..., d)."""
        return self.derivatives(t, x, order=1)[1].sum(-1)

    def known(self, t: Tensor, x: Tensor) -> Tensor:
        return torch.zeros_like(x)

    def series(self, t: Tensor, x: Tensor, order: int, rows: Tensor | None = None) -> Series:
        """Returns what :meth:`taylor` and :meth:`columns` have in common, and take if it is known."""
        flat, time = self._flatten(t, x)
        return self._transform(picked(flat.T, rows), self.conditioner(time, flat, rows), time, order, rows)

    def taylor(self, t: Tensor, x: Tensor, order: int, rows: Tensor | None = None,
               series: Series | None = None) -> tuple[Tensor, ...]:
        """Returns (f, D f, ..., D^order f), each of shape (..., d), or of the coordinates `rows`, (..., G)."""
        series = series or self.series(t, x, order, rows)
        return to_derivatives([self._linear(x, n, rows) + self._read(c, x, n, rows) for n, c in enumerate(series)])

    def features(self, t: Tensor, x: Tensor, order: int, rows: Tensor | None = None,
                 series: Series | None = None) -> Series:
        """Returns the last hidden layer as a series in x_i with h_i fixed: order + 1 tensors (d, n, n_features)."""
        series = series or self.series(t, x, order, rows)
        return series if self.layers else [c * picked(self.own, rows) ** n if n else c for n, c in enumerate(series)]

    def columns(self, t: Tensor, x: Tensor, operators: Sequence[Operator], rows: Tensor | None = None,
                series: Series | None = None) -> list[Tensor]:
        r"""Applies linear differential operators to what the readout multiplies.

        For the operator :math:`c_0 + c_1 D + c_2 D^2` with coefficients of shape (n, d), row i holds the operator
        applied to (phi_i, x_1, ..., x_d, 1), so that its product with row i of :meth:`get_readout` is the operator
        applied to f_i.

        Arguments:
            t: times, any shape that broadcasts with x.shape[:-1].
            x: points, shape (..., d), n in all.
            operators: each of up to three coefficients of shape (n, d), or (n, G) for some coordinates only.
            rows: these coordinates, shape (G,).
            series: of the last hidden layer, if it is known, in the order of the longest operator.

        Returns:
            Of each operator the columns, shape (d, n, P) or (G, n, P), with P = n_features + d + 1, or n_features + 1
            without linear part.
        """
        hidden = to_derivatives(self.features(t, x, max(map(len, operators)) - 1, rows, series))
        return [self._columns(x, operator, hidden, rows) for operator in operators]

    def _columns(self, x: Tensor, operator: Operator, hidden: Sequence[Tensor], rows: Tensor | None) -> Tensor:
        c = [o.T[:, :, None] for o in operator]
        parts = [sum((a * b for a, b in zip(c[1:], hidden[1:], strict=False)), c[0] * hidden[0])]
        if self.matrix is not None:
            linear = c[0] * x.reshape(-1, self.dim)
            if len(c) > 1:
                linear = linear + c[1] * picked(torch.eye(self.dim, dtype=x.dtype, device=x.device), rows)[:, None]
            parts.append(linear)
        return torch.cat([*parts, c[0]], -1)

    def readout_parameters(self) -> list[nn.Parameter]:
        """Returns the parameters that the field is linear in."""
        return [p for p in (self.readout, self.matrix, self.offset) if p is not None]

    def get_readout(self) -> Tensor:
        """Returns the readout of every coordinate, (w_i, A_i, b_i), shape (d, P)."""
        parts = [self.readout, self.offset[:, None]] if self.matrix is None else [
            self.readout, self.matrix, self.offset[:, None]]
        return torch.cat([p.detach() for p in parts], -1)

    @torch.no_grad()
    def set_readout(self, values: Tensor) -> None:
        """Sets the readout from a tensor of shape (d, P)."""
        self.readout.copy_(values[:, :self.n_features])
        if self.matrix is not None:
            self.matrix.copy_(values[:, self.n_features:-1])
        self.offset.copy_(values[:, -1])

    def penalty(self, hidden: float, linear: float) -> Tensor:
        """Returns the ridge on the readouts of a coordinate, shape (P,): on w, on A, and none on b."""
        ones = torch.ones_like(self.readout[0])
        return torch.cat([hidden * ones, linear * ones.new_ones(self.dim if self.linear else 0), ones.new_zeros(1)])

    def groups(self) -> Tensor:
        """Returns the kind of each entry of the readout, shape (d, P).

        Behind more than one hidden layer all features count as coupling.
        """
        features = torch.full((self.dim, self.n_features), COUPLED)
        if len(self.shifts) == 1:
            features[:, :self.n_features if self.dim == 1 else self.n_own] = OWN
        linear = torch.full((self.dim, self.dim if self.linear else 0), LINEAR).fill_diagonal_(OWN_LINEAR)
        return torch.cat([features, linear, torch.full((self.dim, 1), FREE)], 1).to(self.offset.device)

    def _flatten(self, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor | None]:
        if x.shape[-1] != self.dim:
            raise ValueError(f"x must have {self.dim} coordinates in its last axis, got shape {tuple(x.shape)}")
        t = torch.as_tensor(t, dtype=x.dtype, device=x.device).expand(x.shape[:-1])
        return x.reshape(-1, self.dim), self._time_features(t.reshape(-1)) if self.time else None

    def _time_features(self, t: Tensor) -> Tensor:
        angle = math.pi * t[:, None] * torch.arange(1, N_FREQUENCIES + 1, dtype=t.dtype, device=t.device)
        return torch.cat([2 * t[:, None] - 1, angle.sin(), angle.cos()], -1)

    def _transform(self, x: Tensor, h: Tensor, time: Tensor | None, order: int, rows: Tensor | None = None) -> Series:
        """The last hidden layer as a series; the first hidden layer's is one in its own argument, not in x_i."""
        function, series_function = ACTIVATIONS[self.activation]
        seen: list[Tensor] = [h, x[:, :, None]]
        weights: list[Tensor] = [picked(self.others, rows), picked(self.own, rows)]
        if self.clock is not None and time is not None:
            seen.append(time.expand(len(x), -1, -1))
            weights.append(picked(self.clock, rows))
        # One product of matrices instead of three and their sums: the inputs are far narrower than the layer.
        first, *shifts = (picked(shift, rows) for shift in self.shifts)
        layers = [picked(weight, rows) for weight in self.layers]
        z = torch.baddbmm(first, torch.cat(seen, -1), torch.cat(weights, 1))
        if order == 0:
            z = function(z)
            for weight, shift in zip(layers, shifts, strict=True):
                z = function(torch.baddbmm(shift, z, weight))
            return [z]
        series = series_function([z, 1.0], order)
        for k, (weight, shift) in enumerate(zip(layers, shifts, strict=True)):
            value, *rest = series
            rest = [c @ (weight if k else self._of_argument(weight, n, rows)) for n, c in enumerate(rest, 1)]
            series = series_function([torch.baddbmm(shift, value, weight), *rest])
        return series

    def _of_argument(self, weight: Tensor, n: int, rows: Tensor | None) -> Tensor:
        """Weights after the first hidden layer for the coefficient n of its series: its argument has the slope `own`."""
        return weight * picked(self.own, rows).mT ** n if n else weight

    def _read(self, features: Tensor, x: Tensor, n: int, rows: Tensor | None = None) -> Tensor:
        readout = picked(self.readout, rows)[:, :, None]
        # A row times a matrix takes a third of the time that a matrix times a column takes.
        values = (readout if self.layers else self._of_argument(readout, n, rows)).mT @ features.mT
        return values.squeeze(-2).T.reshape(*x.shape[:-1], -1)

    def _linear(self, x: Tensor, order: int, rows: Tensor | None = None) -> Tensor:
        offset = picked(self.offset, rows)
        if order == 0:
            return offset + x @ picked(self.matrix, rows).T if self.matrix is not None else offset
        return picked(self.matrix.diagonal(), rows) if order == 1 and self.matrix is not None else torch.zeros_like(offset)

    def _reverse(self, t: Tensor, x: Tensor, order: int) -> tuple[Tensor, ...]:
        keep = torch.is_grad_enabled()
        with torch.enable_grad():
            # The alias carries the derivative; the conditioner sees x itself, so its graph stays and h is fixed.
            alias = x.clone() if x.requires_grad else x.detach().requires_grad_()
            flat, time = self._flatten(t, x)
            f = self._read(self._transform(alias.reshape(-1, self.dim).T, self.conditioner(time, flat), time, 0)[0], x, 0)
            if self.matrix is not None:
                diagonal = self.matrix.diagonal()
                f = f + x @ (self.matrix - diagonal.diag()).T + diagonal * alias
            results = [f + self.offset]
            for _ in range(order):
                gradient, = torch.autograd.grad(results[-1].sum(), alias, create_graph=True)
                results.append(gradient)
        return tuple(results) if keep else tuple(r.detach() for r in results)

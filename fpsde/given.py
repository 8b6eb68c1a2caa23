r"""Functions that the user gives in data units, as they are seen from inside.

Inside, coordinates and time are dimensionless, :math:`z = (x - m) / \sigma` and :math:`\tau = (t - t_0) / T`. A known drift
f and a known diffusion g become

.. math:: \hat f(\tau, z) = \frac{T}{\sigma} f(t, x), \qquad \hat g(\tau, z) = \frac{\sqrt T}{\sigma} g(t, x)

Their dimension-wise derivatives come from reverse mode, d backward passes for each order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Function", "GivenField", "check_function", "given_fields"]

Function = Callable[[Tensor, Tensor], Tensor]
"""f(X, t) in data units: float64 points X of shape (n, d) and times t of shape (n,) to values of shape (n, d)."""

# The power of the unit of time that the values divide by.
POWERS = {"drift_prior": 1.0, "diffusion": 0.5}
DIFFERENTIATED = 64


class GivenField(nn.Module):
    """A function in data units as a field in dimensionless ones.

    Arguments:
        function: of points and times, made of torch operations.
        centre: the point m, shape (d,), in data units.
        scale: the scale of every coordinate, shape (d,), in data units.
        clock: the first time of the data and the time up to the last, shape (2,).
        name: the argument that it was given as, "drift_prior" or "diffusion".
    """

    centre: Tensor
    scale: Tensor
    clock: Tensor
    rate: Tensor

    def __init__(self, function: Function, centre: Tensor, scale: Tensor, clock: Tensor, name: str) -> None:
        super().__init__()
        self._holder, self.name = _Holder(function), name
        # A file has these numbers already, as those of the SDE. In float64, so that small steps in x or t are seen.
        rate = clock[1].double() ** POWERS[name] / scale.double()
        for buffer, value in (("centre", centre), ("scale", scale), ("clock", clock), ("rate", rate)):
            self.register_buffer(buffer, value.double(), persistent=False)

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        """Evaluates the function.

        Arguments:
            t: dimensionless times, any shape that broadcasts with x.shape[:-1].
            x: dimensionless points, shape (..., d).

        Returns:
            The values, shape (..., d), dimensionless.

        Raises:
            ValueError: if they are not finite at finite points; it names the argument and the place.
        """
        tau = torch.as_tensor(t, device=x.device).expand(x.shape[:-1]).reshape(-1).double()
        points = self.centre + self.scale * x.reshape(-1, x.shape[-1]).double()
        times = self.clock[0] + self.clock[1] * tau
        values = self._holder.function(points, times)
        bad = (torch.isfinite(points) & ~torch.isfinite(values)).any(-1)
        if bool(bad.any()):
            place, time = points[bad][0].tolist(), float(times[bad][0])
            raise ValueError(f"{self.name}(X, t) must be finite beside the data too, wherever the density or a path leads; "
                             f"it is not at X = {place}, t = {time:g}")
        return (self.rate * values).to(x.dtype).reshape(x.shape)

    def derivatives(self, t: Tensor, x: Tensor, order: int) -> tuple[Tensor, ...]:
        """Returns the values and their dimension-wise derivatives up to an order, each of shape (..., d)."""
        keep = torch.is_grad_enabled() and x.requires_grad
        with torch.enable_grad():
            points = x if x.requires_grad else x.detach().requires_grad_()
            results = [self(t, points)]
            for _ in range(order):
                results.append(_diagonal(results[-1], points))
        return tuple(results) if keep else tuple(r.detach() for r in results)


class _Holder:
    """Holds a function that all copies of a model share; the weights of a network stay out of the model's own."""

    def __init__(self, function: Function) -> None:
        self.function = function

    def __deepcopy__(self, memo: object) -> _Holder:
        return self


def given_fields(arguments: Mapping[str, Any], centre: Tensor, scale: Tensor, clock: Tensor) -> dict[str, GivenField]:
    """Returns the fields of those arguments "drift_prior" and "diffusion" that are functions, by name."""
    return {name: GivenField(function, centre, scale, clock, name) for name, function in arguments.items()
            if callable(function)}


def check_function(name: str, function: Function, x: Tensor, t: Tensor, positive: bool = False) -> None:
    """Finds out before a fit whether a function can be used.

    Arguments:
        name: the argument that it was given as.
        function: what was given.
        x: points, shape (n, d), in data units.
        t: their times, shape (n,).
        positive: whether the values must be positive.

    Raises:
        ValueError: if it cannot be called, returns something else than a tensor of the shape of x, or values that are not
            finite or not positive, or does not let gradients through.
    """
    if not callable(function):
        raise ValueError(f"{name} must be a function of (X, t), got {function!r}")
    points = x.double().requires_grad_()
    try:
        with torch.enable_grad():
            values = function(points, t.double())
    except Exception as error:
        raise ValueError(f"{name}(X, t) must take float64 tensors X (n, d) and t (n,), but for X {tuple(x.shape)} it "
                         f"raised {type(error).__name__}: {error}") from error
    if not isinstance(values, Tensor) or values.shape != x.shape or not values.is_floating_point():
        got = f"{values.dtype} {tuple(values.shape)}" if isinstance(values, Tensor) else type(values).__name__
        raise ValueError(f"{name}(X, t) must return a tensor of floats of the shape of X, {tuple(x.shape)}, got {got}")
    usable = torch.isfinite(values) & (values > 0) if positive else torch.isfinite(values)
    if not bool(usable.all()):
        row = int((~usable).any(-1).nonzero()[0])
        raise ValueError(f"{name}(X, t) must be finite{' and positive' if positive else ''}, got {values[row].tolist()} "
                         f"at X = {x[row].tolist()}, t = {float(t[row]):g}")
    if not values.requires_grad and not torch.equal(function(points.detach().roll(1, 0), t.double()), values):
        raise ValueError(f"{name}(X, t) depends on X but has no gradient: make it of torch operations on X, without "
                         "detach, no_grad or numpy")
    with torch.enable_grad():
        slope = _diagonal(function(points[:DIFFERENTIATED], t[:DIFFERENTIATED].double()), points)
    if not bool(torch.isfinite(slope).all()):
        raise ValueError(f"{name}(X, t) must have a finite derivative at the points of the data")


def _diagonal(values: Tensor, points: Tensor) -> Tensor:
    """The derivative of every component by its own coordinate, shape (..., d); the rows of the points are independent."""
    if not values.requires_grad:
        return torch.zeros_like(points)
    rows = (torch.autograd.grad(values[..., i].sum(), points, create_graph=True, materialize_grads=True)[0][..., i]
            for i in range(points.shape[-1]))
    return torch.stack(list(rows), -1)

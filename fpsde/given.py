r"""Functions that the user gives in data units, as they are seen from inside.

Inside, coordinates and time are dimensionless (:mod:`fpsde.coordinates`). A known drift f and a known diffusion g become

.. math:: \hat f(\tau, z) = \frac{T}{\sigma} f(t, x), \qquad \hat g(\tau, z) = \frac{\sqrt T}{\sigma} g(t, x)

and of a positive coordinate, which is seen by its logarithm, the same of f / x and g / x: Ito's term is left to be learned.
Their dimension-wise derivatives come from reverse mode, d backward passes for each order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fpsde.coordinates import Coordinates
from fpsde.mapped import blocks
from fpsde.snapshots import Snapshots

__all__ = ["Function", "GivenField", "check_at", "check_function", "given_fields"]

Function = Callable[[Tensor, Tensor], Tensor]
"""f(X, t) in data units: float64 points X of shape (n, d) and times t of shape (n,) to values of shape (n, d)."""

# The power of the unit of time that the values divide by.
POWERS = {"drift_prior": 1.0, "diffusion": 0.5}
DIFFERENTIATED = 64


class GivenField(nn.Module):
    """A function in data units as a field in dimensionless ones.

    Arguments:
        function: of points and times, made of torch operations.
        coordinates: the way to data units.
        name: the argument that it was given as, "drift_prior" or "diffusion".
    """

    def __init__(self, function: Function, coordinates: Coordinates, name: str) -> None:
        super().__init__()
        # A file has the units already, as those of the SDE.
        self._held, self.name = _Held(function, coordinates), name

    @property
    def units(self) -> Coordinates:
        """The way to data units."""
        return self._held.coordinates

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
        # What is held does not move with the model.
        units = self.units.to(x.device)
        points, times = units.outside(x.reshape(-1, x.shape[-1])), units.clock[0] + units.clock[1] * tau
        values = self._held.function(points, times)
        bad = (torch.isfinite(points) & ~torch.isfinite(values)).any(-1)
        if bool(bad.any()):
            place, time = points[bad][0].tolist(), float(times[bad][0])
            raise ValueError(f"{self.name}(X, t) must be finite beside the data too, wherever the density or a path leads; "
                             f"it is not at X = {place}, t = {time:g}")
        return units.field(points, values, POWERS[self.name]).to(x.dtype).reshape(x.shape)

    def derivatives(self, t: Tensor, x: Tensor, order: int) -> tuple[Tensor, ...]:
        """Returns the values and their dimension-wise derivatives up to an order, each of shape (..., d)."""
        keep = torch.is_grad_enabled() and x.requires_grad
        with torch.enable_grad():
            points = x if x.requires_grad else x.detach().requires_grad_()
            results = [self(t, points)]
            for _ in range(order):
                results.append(_diagonal(results[-1], points))
        return tuple(results) if keep else tuple(r.detach() for r in results)


class _Held:
    """What all copies of a model share; the weights of a network that a function is stay out of the model's own."""

    def __init__(self, function: Function, coordinates: Coordinates) -> None:
        self.function, self.coordinates = function, coordinates

    def __deepcopy__(self, memo: object) -> _Held:
        return self


def given_fields(arguments: Mapping[str, Any], coordinates: Coordinates) -> dict[str, GivenField]:
    """Returns the fields of those arguments "drift_prior" and "diffusion" that are functions, by name."""
    return {name: GivenField(function, coordinates, name) for name, function in arguments.items()
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


def check_at(name: str, function: Any, data: Snapshots, device: torch.device) -> None:
    """Finds out whether a function can be used at all points of snapshots, block by block; see :func:`check_function`."""
    for place, x in blocks(data.x):
        points, t = (torch.as_tensor(values, dtype=torch.float64, device=device) for values in (x, data.t[place]))
        check_function(name, function, points, t, positive=name == "diffusion")


def _diagonal(values: Tensor, points: Tensor) -> Tensor:
    """The derivative of every component by its own coordinate, shape (..., d); the rows of the points are independent."""
    if not values.requires_grad:
        return torch.zeros_like(points)
    rows = (torch.autograd.grad(values[..., i].sum(), points, create_graph=True, materialize_grads=True)[0][..., i]
            for i in range(points.shape[-1]))
    return torch.stack(list(rows), -1)

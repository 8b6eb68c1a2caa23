r"""Truncated Taylor series through affine maps and activations.

A series is a list of tensors ``[c_0, c_1, ..., c_k]`` that stands for

.. math:: y(x + \epsilon) = c_0 + c_1 \epsilon + \dots + c_k \epsilon^k + O(\epsilon^{k+1})

so that the n-th derivative is :math:`n!\, c_n`. All operations are elementwise in the tensors: one forward pass
carries value and derivatives together, without nested automatic differentiation, and stays differentiable.

Activations take a series that may be shorter than the order asked for, the rest being zero; ``[z, 1.0]`` is the straight
line :math:`z + \epsilon`, along which their coefficients are cheapest.

References:
    Evaluating Derivatives, chapter 13 (Griewank & Walther, 2008), https://doi.org/10.1137/1.9780898717761
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

__all__ = ["ACTIVATIONS", "Series", "compose_softplus", "exp", "from_derivatives", "multiply", "sigmoid", "silu",
           "softplus", "tanh", "to_derivatives"]

Series = list[Tensor]
Argument = Sequence[Tensor | float]


def to_derivatives(series: Series) -> tuple[Tensor, ...]:
    """Returns the derivatives ``(y, y', y'', ...)`` of a series."""
    return tuple(c if n < 2 else math.factorial(n) * c for n, c in enumerate(series))


def from_derivatives(derivatives: tuple[Tensor, ...]) -> Series:
    """Returns the series with the given derivatives ``(y, y', y'', ...)``."""
    return [y if n < 2 else y / math.factorial(n) for n, y in enumerate(derivatives)]


def multiply(a: Series, b: Series) -> Series:
    """Returns the series of the product (Cauchy's rule)."""
    return [_convolve(a, b, n) for n in range(len(a))]


def exp(z: Argument, order: int | None = None) -> Series:
    """Returns the series of :math:`e^z`, from y' = y z'."""
    y = [_value(z).exp()]
    for n in range(1, _order(z, order) + 1):
        y.append(_integrate(z, y, n))
    return y


def tanh(z: Argument, order: int | None = None) -> Series:
    """Returns the series of the hyperbolic tangent, from y' = (1 - y^2) z'."""
    y, slope = [_value(z).tanh()], []
    for n in range(1, _order(z, order) + 1):
        slope.append(1 - y[0] * y[0] if n == 1 else -2 * _half_square(y, n - 1))
        y.append(_integrate(z, slope, n))
    return y


def sigmoid(z: Argument, order: int | None = None) -> Series:
    """Returns the series of 1 / (1 + e^-z), from y' = (y - y^2) z'."""
    y, slope = [_value(z).sigmoid()], []
    for n in range(1, _order(z, order) + 1):
        slope.append(y[0] - y[0] * y[0] if n == 1 else y[n - 1] - 2 * _half_square(y, n - 1))
        y.append(_integrate(z, slope, n))
    return y


def softplus(z: Argument, order: int | None = None) -> Series:
    """Returns the series of log(1 + e^z), from y' = sigmoid(z) z'."""
    last = _order(z, order)
    slope = sigmoid(z[:last], last - 1) if last else []
    return [_log1p_exp(_value(z))] + [_integrate(z, slope, n) for n in range(1, last + 1)]


def silu(z: Argument, order: int | None = None) -> Series:
    """Returns the series of z sigmoid(z)."""
    y = sigmoid(z, order)
    return [sum((z[j] * y[n - j] for j in range(1, min(n + 1, len(z)))), z[0] * y[n]) for n in range(len(y))]


def compose_softplus(z: Series, sharpness: float) -> Series:
    """Returns the series of log(1 + e^(s z)) / s, the softplus of sharpness s."""
    return [c / sharpness for c in softplus([sharpness * c for c in z])]


ACTIVATIONS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[..., Series]]] = {
    "tanh": (torch.tanh, tanh),
    "softplus": (lambda z: _log1p_exp(z), softplus),
    "silu": (lambda z: z * z.sigmoid(), silu),
    "sigmoid": (torch.sigmoid, sigmoid),
}
"""Smooth activations by name: the function of a tensor and the function of a series."""


def _value(z: Argument) -> Tensor:
    return torch.as_tensor(z[0])


def _order(z: Argument, order: int | None) -> int:
    return len(z) - 1 if order is None else order


def _convolve(a: Series, b: Series, n: int) -> Tensor:
    total = a[0] * b[n]
    for j in range(1, n + 1):
        total = total + a[j] * b[n - j]
    return total


def _half_square(y: Series, n: int) -> Tensor:
    """Half of coefficient n >= 1 of y^2: each product once."""
    total = y[0] * y[n]
    for j in range(1, (n + 1) // 2):
        total = total + y[j] * y[n - j]
    return total if n % 2 else total + 0.5 * y[n // 2].square()


def _integrate(z: Argument, slope: Series, n: int) -> Tensor:
    """Coefficient n of y where y' = slope(z) z'."""
    total = slope[n - 1] if isinstance(z[1], float) else z[1] * slope[n - 1]
    for j in range(2, min(n + 1, len(z))):
        total = total + j * z[j] * slope[n - j]
    return total if n == 1 else total / n


def _log1p_exp(z: Tensor) -> Tensor:
    # Unlike torch's softplus it has no threshold, and unlike that of logaddexp its higher derivatives are numbers
    # where e^z is zero: they agree with the recurrence everywhere.
    return -logsigmoid(-z)

r"""Truncated Taylor series through affine maps and activations.

A series is a list of tensors ``[c_0, c_1, ..., c_k]`` that stands for

.. math:: y(x + \epsilon) = c_0 + c_1 \epsilon + \dots + c_k \epsilon^k + O(\epsilon^{k+1})

so that the n-th derivative is :math:`n!\, c_n`. All operations are elementwise in the tensors: one forward pass
carries value and derivatives together, without nested automatic differentiation, and stays differentiable.

References:
    Evaluating Derivatives, chapter 13 (Griewank & Walther, 2008), https://doi.org/10.1137/1.9780898717761
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["ACTIVATIONS", "Series", "compose_softplus", "exp", "from_derivatives", "multiply", "sigmoid", "silu",
           "softplus", "tanh", "to_derivatives"]

Series = list[Tensor]


def to_derivatives(series: Series) -> tuple[Tensor, ...]:
    """Returns the derivatives ``(y, y', y'', ...)`` of a series."""
    return tuple(c if n < 2 else math.factorial(n) * c for n, c in enumerate(series))


def from_derivatives(derivatives: tuple[Tensor, ...]) -> Series:
    """Returns the series with the given derivatives ``(y, y', y'', ...)``."""
    return [y if n < 2 else y / math.factorial(n) for n, y in enumerate(derivatives)]


def multiply(a: Series, b: Series) -> Series:
    """Returns the series of the product (Cauchy's rule)."""
    return [_convolve(a, b, n) for n in range(len(a))]


def exp(z: Series) -> Series:
    """Returns the series of :math:`e^z`, from y' = y z'."""
    y = [z[0].exp()]
    for n in range(1, len(z)):
        y.append(_integrate(z, y, n))
    return y


def tanh(z: Series) -> Series:
    """Returns the series of the hyperbolic tangent, from y' = (1 - y^2) z'."""
    y = [z[0].tanh()]
    slope = [1 - y[0] * y[0]]
    for n in range(1, len(z)):
        y.append(_integrate(z, slope, n))
        slope.append(-_convolve(y, y, n))
    return y


def sigmoid(z: Series) -> Series:
    """Returns the series of 1 / (1 + e^-z), from y' = (y - y^2) z'."""
    y = [z[0].sigmoid()]
    slope = [y[0] * (1 - y[0])]
    for n in range(1, len(z)):
        y.append(_integrate(z, slope, n))
        slope.append(y[n] - _convolve(y, y, n))
    return y


def softplus(z: Series) -> Series:
    """Returns the series of log(1 + e^z), from y' = sigmoid(z) z'."""
    slope = sigmoid(z[:-1]) if len(z) > 1 else []
    # logaddexp, unlike torch's softplus, has no threshold: its derivatives agree with the recurrence everywhere.
    return [_log1p_exp(z[0])] + [_integrate(z, slope, n) for n in range(1, len(z))]


def silu(z: Series) -> Series:
    """Returns the series of z sigmoid(z)."""
    return multiply(z, sigmoid(z))


def compose_softplus(z: Series, sharpness: float) -> Series:
    """Returns the series of log(1 + e^(s z)) / s, the softplus of sharpness s."""
    return [c / sharpness for c in softplus([sharpness * c for c in z])]


ACTIVATIONS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Series], Series]]] = {
    "tanh": (torch.tanh, tanh),
    "softplus": (lambda z: _log1p_exp(z), softplus),
    "silu": (lambda z: z * z.sigmoid(), silu),
    "sigmoid": (torch.sigmoid, sigmoid),
}
"""Smooth activations by name: the function of a tensor and the function of a series."""


def _convolve(a: Series, b: Series, n: int) -> Tensor:
    total = a[0] * b[n]
    for j in range(1, n + 1):
        total = total + a[j] * b[n - j]
    return total


def _integrate(z: Series, slope: Series, n: int) -> Tensor:
    """Coefficient n of y where y' = slope(z) z'."""
    total = n * z[n] * slope[0]
    for j in range(1, n):
        total = total + j * z[j] * slope[n - j]
    return total / n


def _log1p_exp(z: Tensor) -> Tensor:
    return torch.logaddexp(z, torch.zeros_like(z))

r"""Cubic B-splines on the unit interval, the functions of time that the density path is made of.

.. math:: y(t) = \sum_b B_b(t)\, y_b, \qquad B_b \ge 0, \qquad \sum_b B_b(t) = 1

Because the basis is non-negative and sums to one, a path whose coefficients :math:`y_b` lie in a convex set
(covariance matrices, say) stays in that set at every time.

References:
    A Practical Guide to Splines (de Boor, 1978)
"""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy.interpolate import BSpline
from torch import Tensor, nn

__all__ = ["CubicSplineBasis"]

DEGREE = 3


class CubicSplineBasis(nn.Module):
    """A clamped cubic B-spline basis with given break points.

    Outside the first and last break point the functions stay constant and their derivative is zero.

    Arguments:
        breaks: increasing break points, shape (n_breaks,), at least two.
    """

    breaks: Tensor
    coefficients: Tensor

    def __init__(self, breaks: np.ndarray) -> None:
        super().__init__()
        breaks = np.asarray(breaks, dtype=np.float64)
        if breaks.ndim != 1 or len(breaks) < 2 or not (np.diff(breaks) > 0).all():
            raise ValueError(f"break points must be at least two increasing numbers, got {breaks!r}")
        knots = np.concatenate([[breaks[0]] * DEGREE, breaks, [breaks[-1]] * DEGREE])
        self.size = len(knots) - DEGREE - 1
        # One polynomial a piece and a basis function, so that evaluation is a look-up and Horner's rule.
        spline = BSpline(knots, np.eye(self.size), DEGREE)
        coefficients = np.stack([spline(breaks[:-1], nu=n) / math.factorial(n) for n in range(DEGREE + 1)], 1)
        self.register_buffer("breaks", torch.as_tensor(breaks))
        self.register_buffer("coefficients", torch.as_tensor(coefficients))
        self.nodes = np.array([knots[b + 1:b + 1 + DEGREE].mean() for b in range(self.size)])
        """Greville's points, shape (size,): a linear function has its values there as coefficients."""

    def forward(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Evaluates the basis.

        Arguments:
            t: times, shape (M,).

        Returns:
            The values and the time derivatives, each of shape (M, size).
        """
        first, last = self.breaks[0], self.breaks[-1]
        inside = ((t >= first) & (t <= last)).to(t)
        t = t.clamp(first, last)
        piece = torch.bucketize(t, self.breaks[1:-1], right=True)
        u = (t - self.breaks[piece])[:, None]
        c = self.coefficients[piece]
        # Round-off below zero, times a wide cloud's covariance, would outweigh a narrow one's.
        value = (c[:, 0] + u * (c[:, 1] + u * (c[:, 2] + u * c[:, 3]))).clamp_min(0)
        slope = c[:, 1] + u * (2 * c[:, 2] + u * 3 * c[:, 3])
        return value, slope * inside[:, None]

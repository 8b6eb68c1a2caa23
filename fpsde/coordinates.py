r"""Between data units and the dimensionless coordinates that everything inside is written in.

.. math:: z = (u - m) / \sigma, \qquad u_i = x_i \ \text{or}\ \log x_i, \qquad \tau = (t - t_0) / T

A positive coordinate is taken by its logarithm. With drift and noise of u in data units, Ito's rule gives those of
:math:`x = e^u`: :math:`f_x = x\,(f_u + \tfrac12 g_u^2)` and :math:`g_x = x\,g_u`.

References:
    The Fokker-Planck Equation (Risken, 1996), section 3.3.2, https://doi.org/10.1007/978-3-642-61544-3
"""

from __future__ import annotations

from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fpsde.mapped import Mapped, blocks
from fpsde.snapshots import Snapshots, mean_and_variance

__all__ = ["Coordinates"]


class Coordinates(nn.Module):
    """Units of space and time, in float64.

    Arguments:
        centre: the point m, shape (d,); of the logarithm where a coordinate is positive.
        scale: the scale sigma of every coordinate, shape (d,), positive.
        clock: the first time of the data and the time between the first and the last, shape (2,).
        positive: which coordinates are taken by their logarithm, shape (d,); none if left out.
    """

    centre: Tensor
    scale: Tensor
    clock: Tensor
    positive: Tensor

    def __init__(self, centre: Tensor, scale: Tensor, clock: Tensor, positive: Tensor | None = None) -> None:
        super().__init__()
        positive = torch.zeros(centre.shape, dtype=torch.bool) if positive is None else positive
        if centre.shape != scale.shape or centre.shape != positive.shape or clock.shape != (2,):
            raise ValueError("centre, scale and positive need one value for each coordinate, the clock two")
        self.register_buffer("centre", centre.double())
        self.register_buffer("scale", scale.double())
        self.register_buffer("clock", clock.double())
        self.register_buffer("positive", positive.bool())
        # Asked once, not at every step on a device.
        self.any_positive = bool(positive.any())

    @classmethod
    def of(cls, data: Snapshots, positive: tuple[bool, ...]) -> Coordinates:
        """Centres and scales all points together, and counts time from the first snapshot to the last.

        Arguments:
            data: the snapshots.
            positive: which coordinates are taken by their logarithm, d of them; their values must be above zero.
        """
        taken = np.array(positive)

        def logarithms(x: NDArray[np.float64]) -> NDArray[np.float64]:
            x = x.copy()
            x[:, taken] = np.log(x[:, taken])
            return x

        mean, variance = mean_and_variance(data.x, data.weights, logarithms)
        first, last = data.times[[0, -1]]
        return cls(*(torch.as_tensor(v) for v in (mean, np.sqrt(variance), [first, last - first], positive)))

    @property
    def dim(self) -> int:
        """Number of coordinates d."""
        return len(self.centre)

    @property
    def start(self) -> float:
        """The first time of the data."""
        return float(self.clock[0])

    @property
    def span(self) -> float:
        """The time between the first and the last snapshot."""
        return float(self.clock[1])

    def inside(self, x: Tensor) -> Tensor:
        """Returns z for points x, shape (..., d), in float64; not finite where a positive coordinate is not."""
        return (torch.where(self.positive, x.double().log(), x.double()) - self.centre) / self.scale

    def outside(self, z: Tensor) -> Tensor:
        """Returns x for dimensionless points z, shape (..., d), in float64."""
        u = z.double() * self.scale + self.centre
        return torch.where(self.positive, u.exp(), u)

    def time(self, t: Tensor) -> Tensor:
        """Returns tau for times t, any shape, in float64."""
        return (t.double() - self.clock[0]) / self.clock[1]

    def log_volume(self, x: Tensor) -> Tensor:
        """Returns log |det dz/dx| at points x, shape (..., d): what a log-density gains on the way out, shape (...)."""
        return -(self.scale.log() + torch.where(self.positive, x.double().log(), 0.0)).sum(-1)

    def mean_log_volume(self, data: Snapshots) -> float:
        """Returns what the mean log-likelihood of snapshots gains on the way out."""
        if not self.any_positive:
            return float(self.log_volume(self.centre))
        means, sums = [], []
        for place, x in blocks(data.x):
            weights = None if data.weights is None else data.weights[place]
            means.append(np.average(self.log_volume(torch.as_tensor(x)).numpy(), weights=weights))
            sums.append(len(x) if weights is None else weights.sum())
        return float(means[0] if len(means) == 1 else np.average(means, weights=sums))

    def groups(self, data: Snapshots) -> list[NDArray[np.float64]]:
        """Returns the dimensionless points of every snapshot, shape (n_j, d); those on disk stay there."""
        def inside(x: NDArray[np.float64]) -> NDArray[np.float64]:
            return self.inside(torch.as_tensor(x)).numpy()

        return [cast(NDArray[np.float64], x.through(inside)) if isinstance(x, Mapped) else inside(x) for x in data.groups()]

    def field(self, x: Tensor, values: Tensor, power: float) -> Tensor:
        """Brings a known field in, in float64; of a positive coordinate without Ito's term.

        Arguments:
            x: points in data units, shape (..., d).
            values: of the field there, in data units.
            power: of the time unit by which they divide, 1 for a drift and 1/2 for a diffusion.
        """
        return self.clock[1] ** power * torch.where(self.positive, values / x, values) / self.scale

    def drift(self, x: Tensor, f: Tensor, g: Tensor | None = None) -> Tensor:
        """Brings a drift out, to data units per time unit, with Ito's term of positive coordinates.

        Arguments:
            x: points in data units, shape (..., d).
            f: dimensionless drift there, shape (..., d).
            g: dimensionless noise there, shape (..., d); may be left out if no coordinate is positive.
        """
        f = f.double() * self.scale / self.clock[1]
        if g is None:
            return f
        a = (g.double() * self.scale).square() / self.clock[1]
        return torch.where(self.positive, x * (f + 0.5 * a), f)

    def diffusion(self, x: Tensor, g: Tensor) -> Tensor:
        """Brings dimensionless noise g at points x, both of shape (..., d), out, to data units per root of time unit."""
        g = g.double() * self.scale / self.clock[1].sqrt()
        return torch.where(self.positive, x * g, g)

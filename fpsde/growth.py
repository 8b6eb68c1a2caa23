r"""Growth: cells that divide and die at a rate that depends on where they are.

With a rate :math:`\gamma(x)` the density of the living follows

.. math:: \partial_t p = -\sum_i \partial_i (f_i p) + \tfrac12 \sum_i \partial_i^2 (a_i p) + (\gamma - E_p \gamma)\, p,
    \qquad \frac{d}{dt} \log N = E_p \gamma

The shape of the population tells the rate up to a constant; the change of its size N tells that.

References:
    Waddington-OT (Schiebinger et al., 2019), https://doi.org/10.1016/j.cell.2019.01.006
    Estimating the growth of cells from snapshots: TIGON (Sha et al., 2024), https://doi.org/10.1038/s42256-023-00763-w
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fpsde.field import COUPLED, FREE, LINEAR

__all__ = ["Growth", "multiplied"]

BEND = 0.5


class Growth(nn.Module):
    r"""A rate :math:`\gamma(x) = w \cdot \tanh(K x + b) + l \cdot x + c`, linear in its readout (w, l, c); zero at first.

    Arguments:
        dim: number of coordinates d.
        features: number of random features tanh, which stay as they are.
    """

    directions: Tensor
    shifts: Tensor

    def __init__(self, dim: int, features: int = 32) -> None:
        super().__init__()
        self.dim, self.n_features = dim, features
        self.settings: dict[str, Any] = {"dim": dim, "features": features}
        self.register_buffer("directions", 2 * BEND * torch.randn(features, dim) / math.sqrt(dim))
        self.register_buffer("shifts", BEND * torch.randn(features))
        self.readout = nn.Parameter(torch.zeros(features + dim + 1))

    def forward(self, x: Tensor) -> Tensor:
        """Returns the rate, shape (...), at points x of shape (..., d), per time."""
        return self.columns(x) @ self.readout

    def columns(self, x: Tensor) -> Tensor:
        """Returns the rate's derivative by its readout, shape (..., P)."""
        bent = (x @ self.directions.T + self.shifts).tanh()
        return torch.cat([bent, x, torch.ones_like(x[..., :1])], -1)

    def source(self, x: Tensor) -> Tensor:
        """Returns the rate less its mean over the N points of every time, shape (M, N), for x of shape (M, N, d)."""
        rate = self(x)
        return rate - rate.mean(1, keepdim=True)

    def readout_parameters(self) -> list[nn.Parameter]:
        """Returns the parameters that the rate is linear in."""
        return [self.readout]

    def get_readout(self) -> Tensor:
        """Returns the readout, shape (1, P)."""
        return self.readout.detach()[None].clone()

    @torch.no_grad()
    def set_readout(self, values: Tensor) -> None:
        """Sets the readout from a tensor of shape (1, P)."""
        self.readout.copy_(values[0])

    def groups(self) -> Tensor:
        """Returns the kind of each entry of the readout, shape (1, P), as a drift does."""
        kinds = torch.tensor([[COUPLED, LINEAR, FREE]], device=self.readout.device)
        return kinds.repeat_interleave(torch.tensor([self.n_features, self.dim, 1], device=kinds.device), 1)


def multiplied(points: NDArray[np.float64], log_sizes: NDArray[np.float64],
               rng: np.random.RandomState) -> NDArray[np.float64]:
    """Draws as many points again as there are, each in proportion to its progeny, by systematic resampling.

    Arguments:
        points: shape (n, d).
        log_sizes: logarithm of the progeny of each, shape (n,).
        rng: the one draw that it takes.
    """
    shares = np.exp(log_sizes - log_sizes.max()).cumsum()
    places = (np.arange(len(points)) + rng.random_sample()) / len(points)
    return points[np.searchsorted(shares / shares[-1], places)]

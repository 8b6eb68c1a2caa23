r"""What chooses a density path between the snapshots, where no likelihood does: least kinetic energy, near the pooled law.

Cells develop at different paces: between two snapshots they are mostly where cells are seen at some time. So besides the
energy of its parts a path pays, between the snapshots, for its relative entropy to the law of all snapshots pooled,

.. math:: E_{p_t} \log \frac{p(t, x)}{\alpha\, p(t, x) + (1 - \alpha)\, \bar p(x)}, \qquad
          \bar p = \frac{1}{T} \sum_j p(t_j, x)

which with a small :math:`\alpha` is bounded: a narrow cloud far from all others feels nothing.

References:
    Generalized Schrodinger Bridge Matching (Liu et al., 2024), https://arxiv.org/abs/2310.02233, for costs of a state
    Divergence measures based on the Shannon entropy (Lin, 1991), https://doi.org/10.1109/18.61115
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from fpsde.density import GaussianMixturePath
from fpsde.fokker_planck import LossTerms

__all__ = ["PathLoss"]

OWN_SHARE = 0.01
MAX_POOLED = 8


class PathLoss(nn.Module):
    """Negative log-likelihood at the snapshots, plus what chooses the path between them.

    Arguments:
        density: the density path.
        times: of the snapshots, shape (T,), increasing.
        energy: weight of the kinetic energy of the density's parts.
        pooling: weight of the relative entropy to the pooled law.
    """

    times: Tensor

    def __init__(self, density: GaussianMixturePath, times: Tensor, energy: float = 0.0, pooling: float = 0.0) -> None:
        super().__init__()
        self.density, self.energy, self.pooling = density, energy, pooling
        self.register_buffer("times", times, persistent=False)

    def forward(self, t: Tensor, x: Tensor, t_inside: Tensor, noise: Tensor) -> LossTerms:
        """Evaluates the loss.

        Arguments:
            t: snapshot times, shape (S,).
            x: points of the snapshots, shape (S, B, d).
            t_inside: times in between, shape (M,).
            noise: standard normal, shape (M, N, `density.noise_size`), the same for each part of the density.
        """
        likelihood = self.density.log_prob(t, x).mean()
        loss = -likelihood
        if self.energy:
            loss = loss + self.energy * self.density.kinetic_energy(t_inside).mean()
        if self.pooling:
            loss = loss + self.pooling * (self._between(t_inside) * self.relative_entropy(t_inside, noise)).mean()
        return LossTerms(loss, likelihood, torch.zeros_like(likelihood))

    def relative_entropy(self, t: Tensor, noise: Tensor) -> Tensor:
        """Estimates the relative entropy to the pooled law, shape (M,), at times t, shape (M,), from noise as above."""
        x, weights = self.density.draws(t, noise)
        own, pooled = self.density.log_prob(t, x), self._pooled(x)
        mixed = torch.logaddexp(own + math.log(OWN_SHARE), pooled + math.log1p(-OWN_SHARE))
        return (weights * (own - mixed)).sum(-1)

    def _pooled(self, x: Tensor) -> Tensor:
        """Log of the mean of the density over the snapshots, shape (M, N), which is not moved itself."""
        most = min(len(self.times), MAX_POOLED)
        chosen = torch.linspace(0, len(self.times) - 1, most, device=x.device).round().long()
        points = x.reshape(1, -1, x.shape[-1]).expand(len(chosen), -1, -1)
        log_probs = self.density.held_log_prob(self.times[chosen], points)
        return (log_probs.logsumexp(0) - math.log(len(chosen))).view(x.shape[:-1])

    def _between(self, t: Tensor) -> Tensor:
        """Nought at the snapshots, one half-way between two of them, shape (M,)."""
        right = torch.searchsorted(self.times, t, right=True).clamp(1, len(self.times) - 1)
        left = self.times[right - 1]
        return torch.sin(math.pi * (t - left) / (self.times[right] - left)).square()

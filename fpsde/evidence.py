r"""How much each group of coefficients may bend, decided by the data: ridge regression under its marginal likelihood.

For :math:`y = \sum_g A_g w_g + e` with priors :math:`w_g \sim N(0, v_g)` and noise of covariance C, the observations are
Gaussian with covariance :math:`S = C + \sum_g v_g A_g A_g^T`. The variances v maximise that likelihood; a group that the
data do not ask for goes to zero by itself.

References:
    MM algorithms for variance components models (Zhou, Hu, Zhou, Sinsheimer & Lange, 2019),
    https://doi.org/10.1080/10618600.2018.1529601
    Bayesian interpolation (MacKay, 1992), https://doi.org/10.1162/neco.1992.4.3.415
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Component", "Explained", "explain"]


class Component(NamedTuple):
    """A part of the covariance of the observations whose variance is looked for."""

    kernel: Tensor
    """A A^T of a group of coefficients, or a covariance of the noise, shape (n, n)."""
    start: float
    """Where the search for its variance starts."""
    most: float
    """Largest variance allowed."""
    least: float = 0.0
    """Smallest variance allowed; the largest too, if nothing is to be looked for."""
    noise: bool = False
    """Whether it is noise, which explains nothing."""


class Explained(NamedTuple):
    """Variances of most evidence and what follows from them."""

    variances: Tensor
    """Shape (G,)."""
    dual: Tensor
    """u = S^-1 y, shape (n,): the coefficients of group g are v_g A_g^T u."""
    misfit: float
    """Square of what is left, in units of all noise, over the degrees of freedom that are left."""
    log_evidence: float


def explain(observed: Tensor, noise: Tensor, components: list[Component], rounds: int = 60) -> Explained:
    """Finds the variances of most evidence.

    The update of every round raises the marginal likelihood; from different starts it may end in different maxima, so
    that the start says what is believed first.

    Arguments:
        observed: y, shape (n,).
        noise: C, shape (n, n), positive definite.
        components: the groups and any further noise.
        rounds: updates.
    """
    kernels = torch.stack([c.kernel for c in components])
    least, most = (torch.tensor(bound).to(observed) for bound in zip(*((c.least, c.most) for c in components), strict=True))
    variances = torch.tensor([c.start for c in components]).to(observed)
    for left in range(rounds, -1, -1):
        covariance = noise + torch.einsum("g,gij->ij", variances, kernels)
        factor, _ = torch.linalg.cholesky_ex(covariance)
        inverse = torch.cholesky_inverse(factor)
        dual = inverse @ observed
        if left:
            ratio = torch.einsum("i,gij,j->g", dual, kernels, dual) / torch.einsum("ij,gij->g", inverse, kernels)
            variances = (variances * ratio.clamp_min(0).sqrt()).clamp(least, most)
    is_noise = torch.tensor([c.noise for c in components]).to(observed)
    whole = noise + torch.einsum("g,gij->ij", variances * is_noise, kernels)
    # What is left is e = whole u, and in units of that noise its square is u^T whole u.
    misfit = float(dual @ whole @ dual) / max(float((inverse * whole).sum()), 1.0)
    evidence = -0.5 * float(observed @ dual) - float(factor.diagonal().log().sum())
    return Explained(variances, dual, misfit, evidence)

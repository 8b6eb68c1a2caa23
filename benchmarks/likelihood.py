r"""Maximum likelihood with the true parametric form on the same snapshots: what the data allow.

The points are independent draws from :math:`p(t_j; \theta)`. Nothing but the numbers in the truth's own formula and in the
start is left open, so that no estimator without that formula can be expected to do better. The search starts at the truth.

- "linear": f = A x + b, g constant. Gaussian; mean and covariance by the matrix exponential (Van Loan). The start's
  covariance is free up to ten dimensions and diagonal above, as it is in `systems.py`.
- "geometric": f = mu x, g = s x. Gaussian in log x.
- "pull": f = a x + b, g constant, the 1-D linear form.
- "well", f = a x - b x^3 with constant g, and "bent", f = -a x with g = s (1 + c tanh x): the Fokker-Planck equation on a
  grid, by a chain that jumps to neighbours; start Gaussian.

References:
    Computing integrals involving the matrix exponential (Van Loan, 1978), https://doi.org/10.1109/TAC.1978.1101743
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from scipy.optimize import minimize
from systems import Array, Field, System
from torch import Tensor

__all__ = ["Fields", "maximum_likelihood"]

FULL_START_UP_TO = 10
GRID = 201
POINTS = 10_000

Fields = tuple[Field, Field]


def maximum_likelihood(system: System, x: Array, t: Array) -> Fields | None:
    """Drift and diffusion of most likelihood, or nothing if the system's likelihood cannot be had.

    Arguments:
        system: the truth; gives the form and where the search starts.
        x: the snapshots' points, shape (n, d).
        t: the time of each, shape (n,).
    """
    if not system.form:
        return None
    times = np.unique(t)
    groups = [x[t == s] for s in times]
    if system.form == ("linear",):
        return _linear(system.drift, system.diffusion, groups, times)
    parts = []
    for i, form in enumerate(system.form):
        def alone(field: Field, i: int = i) -> Field:
            return lambda y: field(np.eye(system.dim)[i] * y)[:, [i]]

        parts.append(_FORMS[form](alone(system.drift), alone(system.diffusion), [z[:, [i]] for z in groups], times))

    def joined(k: int) -> Field:
        return lambda y: np.concatenate([part[k](y[:, [i]]) for i, part in enumerate(parts)], 1)

    return joined(0), joined(1)


def maximise(log_likelihood: Callable[[Tensor], Tensor], start: Array) -> Tensor:
    """The parameters of most likelihood, by L-BFGS in coordinates in which the likelihood is about equally curved."""
    centre = torch.as_tensor(start)
    curvature, axes = torch.linalg.eigh(-torch.autograd.functional.hessian(log_likelihood, centre))
    # The first step of L-BFGS has length one: of the order of a standard error at tens of thousands of points.
    stretched = axes / (POINTS * curvature.abs().clamp_min(1e-8 * float(curvature.max()))).sqrt()

    def loss(u: Array) -> tuple[float, Array]:
        v = torch.tensor(u, requires_grad=True)
        value = -POINTS * log_likelihood(centre + stretched @ v)
        return value.item(), torch.autograd.grad(value, v)[0].numpy()

    result = minimize(loss, np.zeros_like(start), jac=True, method="L-BFGS-B",
                      options={"maxiter": 1000, "maxcor": 50, "ftol": 0.0, "gtol": 1e-3})
    # Round-off may stop a line search. The slope is in standard errors: a hundredth of one is near enough.
    if np.abs(result.jac).max() > 0.01:
        raise ArithmeticError(f"the likelihood's maximum was not found: {result.message}")
    return centre + stretched @ torch.as_tensor(result.x)


def gaussian_step(a: Tensor, b: Tensor, g: Tensor, gap: float) -> tuple[Tensor, Tensor, Tensor]:
    """The flow, the shift and the covariance that a linear SDE adds in a gap: x -> F x + c + noise of covariance Q."""
    d = len(b)
    # [[-A, G], [0, A^T]] gives F^-1 Q; a further row carries b, so that A need not be regular.
    block = torch.cat([torch.cat([-a, torch.diag(g**2)], 1), torch.cat([torch.zeros_like(a), a.T], 1)])
    affine = torch.cat([torch.cat([a, b[:, None]], 1), torch.zeros(1, d + 1).to(a)])
    moved = torch.matrix_exp(affine * gap)
    flow = moved[:d, :d]
    return flow, moved[:d, d], flow @ torch.matrix_exp(block * gap)[:d, d:]


def _linear(drift: Field, diffusion: Field, groups: list[Array], times: Array) -> Fields:
    d = groups[0].shape[1]
    means = torch.as_tensor(np.stack([z.mean(0) for z in groups]))
    covariances = torch.as_tensor(np.stack([np.cov(z.T, bias=True).reshape(d, d) for z in groups]))
    shares = torch.as_tensor([len(z) for z in groups], dtype=torch.float64) / sum(map(len, groups))
    gaps = np.diff(times)
    lower = torch.tril_indices(d, d, -1)
    n_lower = lower.shape[1] if d <= FULL_START_UP_TO else 0
    sizes = [d * d, d, d, d, d, n_lower]

    def unpack(p: Tensor) -> tuple[Tensor, ...]:
        a, b, g, m, spread, low = p.split(sizes)
        root = torch.diag(spread.exp())
        if n_lower:
            root = root.index_put((lower[0], lower[1]), low)
        return a.reshape(d, d), b, g.exp(), m, root @ root.T

    def log_likelihood(p: Tensor) -> Tensor:
        a, b, g, m, s = unpack(p)
        step = gaussian_step(a, b, g, gaps[0])
        total = torch.zeros((), dtype=torch.float64)
        for j, share in enumerate(shares):
            if j:
                flow, shift, added = step if np.isclose(gaps[j - 1], gaps[0]) else gaussian_step(a, b, g, gaps[j - 1])
                m, s = flow @ m + shift, flow @ s @ flow.T + added
            off, root = means[j] - m, torch.linalg.cholesky(0.5 * (s + s.T))
            both = covariances[j] + off[:, None] * off
            total = total - share * (root.diagonal().log().sum() + 0.5 * torch.cholesky_solve(both, root).trace())
        return total

    b = drift(np.zeros((1, d)))[0]
    a = (drift(np.eye(d)) - b).T
    start = np.concatenate([a.ravel(), b, np.log(diffusion(np.zeros((1, d)))[0]), means[0].numpy(),
                            0.5 * np.log(covariances[0].diagonal().numpy()), np.zeros(n_lower)])
    a, b, g = (z.numpy() for z in unpack(maximise(log_likelihood, start))[:3])
    return lambda y: y @ a.T + b, lambda y: np.broadcast_to(g, y.shape)


def _geometric(drift: Field, diffusion: Field, groups: list[Array], times: Array) -> Fields:
    logs = [torch.as_tensor(np.log(z[:, 0])) for z in groups]
    total = sum(map(len, logs))

    def log_likelihood(p: Tensor) -> Tensor:
        mu, s, m, spread = p[0], p[1].exp(), p[2], p[3].exp()
        value = torch.zeros((), dtype=torch.float64)
        for z, t in zip(logs, times, strict=True):
            variance = spread**2 + s**2 * t
            value = value - 0.5 * ((z - m - (mu - 0.5 * s**2) * t).square() / variance + variance.log()).sum() / total
        return value

    one = np.ones((1, 1))
    start = [drift(one)[0, 0], np.log(diffusion(one)[0, 0]), float(logs[0].mean()), np.log(float(logs[0].std()))]
    mu, log_s = maximise(log_likelihood, np.array(start))[:2].tolist()
    return lambda y: mu * y, lambda y: np.exp(log_s) * y


def _on_grid(start: Array, f: Callable[[Tensor, Tensor], Tensor], g: Callable[[Tensor, Tensor], Tensor],
             groups: list[Array], times: Array) -> Fields:
    every = np.concatenate(groups)
    margin = 0.15 * np.ptp(every)
    points = torch.linspace(every.min() - margin, every.max() + margin, GRID, dtype=torch.float64)
    h = float(points[1] - points[0])
    cells = [torch.as_tensor(((z[:, 0] - float(points[0])) / h).round().astype(int)) for z in groups]
    counts = torch.stack([torch.bincount(c, minlength=GRID) for c in cells]).double() / len(every)
    inside, n = torch.ones(GRID + 1, dtype=torch.float64), len(start)
    inside[0] = inside[-1] = 0.0

    def log_likelihood(p: Tensor) -> Tensor:
        drift, variance = f(points, p), g(points, p).square()
        up, down = (0.5 * (variance / h**2 + sign * drift / h).clamp_min(0) for sign in (1.0, -1.0))
        up, down = up * inside[1:], down * inside[:-1]
        generator = torch.diag(-(up + down)) + torch.diag(up[:-1], -1) + torch.diag(down[1:], 1)
        step = torch.matrix_exp(generator * float(times[1] - times[0]))
        law = torch.softmax(-0.5 * ((points - p[n]) / p[n + 1].exp()).square(), 0)
        value = torch.zeros((), dtype=torch.float64)
        for count in counts:
            value = value + (count * law.clamp_min(1e-12).log()).sum()
            law = step @ law
        return value

    first = groups[0][:, 0]
    p = maximise(log_likelihood, np.concatenate([start, [first.mean(), np.log(first.std())]]))

    def field(value: Callable[[Tensor, Tensor], Tensor]) -> Field:
        return lambda y: value(torch.as_tensor(y), p).numpy()

    return field(f), field(g)


def _well(drift: Field, diffusion: Field, groups: list[Array], times: Array) -> Fields:
    start = np.array([1.0, 1.0, np.log(diffusion(np.zeros((1, 1)))[0, 0])])
    return _on_grid(start, lambda x, p: p[0] * x - p[1] * x**3, lambda x, p: p[2].exp() + 0 * x, groups, times)


def _bent(drift: Field, diffusion: Field, groups: list[Array], times: Array) -> Fields:
    start = np.array([1.0, np.log(diffusion(np.zeros((1, 1)))[0, 0]), 0.5])
    return _on_grid(start, lambda x, p: -p[0] * x, lambda x, p: p[1].exp() * (1 + p[2] * x.tanh()), groups, times)


_FORMS = {"geometric": _geometric, "pull": _linear, "well": _well, "bent": _bent}

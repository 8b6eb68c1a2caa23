"""How well drift and noise could come back at best: the Cramer-Rao bound for the one-dimensional double well.

The snapshots are independent draws from p(t_j; f, g), so that their Fisher information for any parametrised f and g is

    I = N sum_j integral (d p_j / d theta)(d p_j / d theta)^T / p_j dx

Here p comes from the Fokker-Planck equation on a grid (a matrix exponential, the start is known), f and g are cubic splines
about the truth, and the bound on the errors that `recovery.py` reports follows from the inverse of I. No unbiased estimator
with so many free parameters does better; a prior that happens to be right can.

    python benchmarks/limit.py [-o FILE]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import BSpline
from scipy.linalg import expm
from systems import CORE

Array = NDArray[np.float64]

GRID = np.linspace(-2.6, 2.6, 201)
STEP = 1e-4


def densities(f: Array, g: Array, start: Array, gap: float, count: int) -> Array:
    """Probabilities of the grid's points at `count` times, shape (count, grid), by a chain that jumps to neighbours."""
    h = GRID[1] - GRID[0]
    up = np.maximum(g**2 / h**2 + f / h, 0) / 2
    down = np.maximum(g**2 / h**2 - f / h, 0) / 2
    up[-1] = down[0] = 0
    generator = np.diag(-(up + down)) + np.diag(up[:-1], -1) + np.diag(down[1:], 1)
    step, p = expm(generator * gap), [start]
    for _ in range(count - 1):
        p.append(step @ p[-1])
    return np.array(p).clip(1e-300)


def splines(n: int) -> Array:
    """Returns n cubic B-splines over the well, constant outside, shape (n, grid); one is a constant."""
    if n == 1:
        return np.ones((1, len(GRID)))
    breaks = np.linspace(-2.2, 2.2, n - 2)
    knots = np.concatenate([breaks[:1].repeat(3), breaks, breaks[-1:].repeat(3)])
    return np.stack([BSpline(knots, row, 3)(GRID.clip(-2.2, 2.2)) for row in np.eye(n)])


def bound(n_drift: int, n_noise: int) -> tuple[float, float]:
    """Lowest relative RMS errors of drift and noise with so many splines for each."""
    system = next(s for s in CORE if s.name == "double well, 1-D")
    f, g = (field(GRID[:, None])[:, 0] for field in (system.drift, system.diffusion))
    start = np.exp(-0.5 * (GRID / 0.3) ** 2)
    start, gap, count = start / start.sum(), system.duration / 10, 11
    drifts, noises = splines(n_drift), splines(n_noise)

    def slope(df: Array, dg: Array) -> Array:
        ahead, behind = (densities(f + e * df, g + e * dg, start, gap, count) for e in (STEP, -STEP))
        return (ahead - behind) / (2 * STEP)

    slopes = np.array([slope(b, 0 * b) for b in drifts] + [slope(0 * b, b) for b in noises])
    p = densities(f, g, start, gap, count)
    information = system.points * np.einsum("itx,jtx,tx->ij", slopes[:, 1:], slopes[:, 1:], 1 / p[1:])
    covariance = np.linalg.pinv(information, rcond=1e-14, hermitian=True)
    errors = []
    for part, basis, truth in ((covariance[:n_drift, :n_drift], drifts, f), (covariance[n_drift:, n_drift:], noises, g)):
        weight = p.mean(0)
        errors.append(float(np.sqrt(np.einsum("ix,ij,jx,x->", basis, part, basis, weight) / (weight * truth**2).sum())))
    return errors[0], errors[1]


def main() -> None:
    """Prints and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path)
    arguments = parser.parse_args()
    lines = ["# The best that the data allow: double well, 1-D, 11 snapshots of 2000 points", "",
             "`python benchmarks/limit.py`: Cramer-Rao bound on the relative RMS errors of `recovery.py`, in %", "",
             "| splines for the drift | for the noise | drift | noise |", "|---|---|---|---|"]
    for n_drift, n_noise in ((6, 1), (8, 1), (12, 1), (6, 6), (8, 8), (12, 12)):
        drift, noise = bound(n_drift, n_noise)
        shown = "one constant" if n_noise == 1 else n_noise
        lines.append(f"| {n_drift} | {shown} | {100 * drift:.1f} | {100 * noise:.1f} |")
    print("\n".join(lines))
    if arguments.output:
        arguments.output.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()

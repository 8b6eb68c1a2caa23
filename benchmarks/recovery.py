"""How well drift and diffusion come back where the truth is known.

Relative root-mean-square errors of f and g, all coordinates together, weighted by the true density: both are evaluated at
fresh points of fresh runs at 41 times. Snapshots are unpaired: every one comes from runs of its own. Beside the errors
stand two naive baselines that use the same data: a drift of zero (error 100 % by definition) and a linear drift with
constant noise fitted to the moments of the snapshots.

    python benchmarks/recovery.py [--seeds 3] [--steps 1000] [--lotka-volterra PATH/lv.npz] [-o FILE]
"""

from __future__ import annotations

import argparse
import platform
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from fpsde import FokkerPlanckSDE, read_snapshots

Array = NDArray[np.float64]
Field = Callable[[Array], Array]

ROTATION = np.array([[-0.6, 1.5], [-1.5, -0.6]])
SHARED = Path(__file__).resolve().parent.parent.parent / "shared" / "data" / "lv.npz"


@dataclass(frozen=True)
class System:
    """An autonomous SDE with diagonal noise, its start and what has been aimed at."""

    name: str
    drift: Field
    diffusion: Field
    start: Callable[[int, np.random.Generator], Array]
    duration: float
    goal: tuple[float, float]
    points: int = 2000

    def run(self, n: int, times: Array, rng: np.random.Generator) -> list[Array]:
        """Euler-Maruyama in steps of a 2000th of the duration; the states of n runs at the times."""
        x, now, states = self.start(n, rng), 0.0, []
        for stop in times:
            steps = int(np.ceil((stop - now) / self.duration * 2000 - 1e-9))
            for _ in range(steps):
                h = (stop - now) / steps
                x = x + self.drift(x) * h + self.diffusion(x) * np.sqrt(h) * rng.standard_normal(x.shape)
            now = stop
            states.append(x)
        return states

    def snapshots(self, rng: np.random.Generator) -> tuple[Array, Array]:
        """Eleven unpaired snapshots."""
        times = np.linspace(0, self.duration, 11)
        xs = [self.run(self.points, np.array([t]), rng)[0] for t in times]
        return np.concatenate(xs), np.repeat(times, self.points)


SYSTEMS = [
    System("Ornstein-Uhlenbeck, 2-D, rotating", lambda x: x @ ROTATION.T,
           lambda x: np.full_like(x, 1.0) * [0.5, 0.7],
           lambda n, rng: np.array([3.0, 0.0]) + 0.4 * rng.standard_normal((n, 2)), 4.0, (0.05, 0.08)),
    System("double well, 1-D", lambda x: x - x**3, lambda x: np.full_like(x, 0.7),
           lambda n, rng: 0.3 * rng.standard_normal((n, 1)), 4.0, (0.05, 0.08)),
    System("double well, 2-D", lambda x: np.stack([x[:, 0] - x[:, 0] ** 3, -x[:, 1]], 1),
           lambda x: np.full_like(x, 1.0) * [0.7, 0.5],
           lambda n, rng: rng.standard_normal((n, 2)) * [0.3, 1.0], 4.0, (0.05, 0.08)),
    System("geometric Brownian motion, 2-D", lambda x: x * [0.4, -0.3], lambda x: x * [0.3, 0.2],
           lambda n, rng: np.array([1.0, 2.0]) * np.exp(0.1 * rng.standard_normal((n, 2))), 2.0, (0.12, 0.25)),
    System("Lotka-Volterra (lv.npz), 200 points",
           lambda x: np.stack([x[:, 0] - 0.4 * x[:, 0] * x[:, 1], 0.1 * x[:, 0] * x[:, 1] - 0.4 * x[:, 1]], 1),
           lambda x: 0.02 * x, lambda n, rng: np.array([5.0, 4.0]) + 0.1 * rng.random((n, 2)), 10.0, (0.12, 0.25), 200),
]


def relative_error(value: Array, truth: Array) -> float:
    """Root mean square of the difference over that of the truth, all coordinates together."""
    return float(np.sqrt(((value - truth) ** 2).sum() / (truth**2).sum()))


def linear_baseline(x: Array, t: Array) -> tuple[Field, Field]:
    """Linear drift and constant noise from the snapshots' means and covariances, by integrated moment equations."""
    times, d = np.unique(t), x.shape[1]
    means = np.stack([x[t == s].mean(0) for s in times])
    seconds = np.stack([(x[t == s].T @ x[t == s]) / (t == s).sum() for s in times])
    gaps = np.diff(times)
    middle, middle_square = (means[1:] + means[:-1]) / 2, (seconds[1:] + seconds[:-1]) / 2
    rows, right = [], []
    # d E[x_i] = (A E[x] + b)_i and d E[x_i x_j] = (A S + b m^T + transpose)_ij + a_i [i = j], by the trapezium rule.
    for k, gap in enumerate(gaps):
        for i in range(d):
            row = np.zeros((d, d + 2))
            row[i, :d], row[i, d] = middle[k], 1
            rows.append(row.ravel())
            right.append((means[k + 1, i] - means[k, i]) / gap)
            for j in range(i, d):
                row = np.zeros((d, d + 2))
                row[i, :d] += middle_square[k][:, j]
                row[i, d] += middle[k, j]
                row[j, :d] += middle_square[k][:, i]
                row[j, d] += middle[k, i]
                row[i, d + 1] += i == j
                rows.append(row.ravel())
                right.append((seconds[k + 1, i, j] - seconds[k, i, j]) / gap)
    solution = np.linalg.lstsq(np.array(rows), np.array(right), rcond=None)[0].reshape(d, d + 2)
    noise = np.sqrt(solution[:, d + 1].clip(0))
    return lambda y: y @ solution[:, :d].T + solution[:, d], lambda y: np.broadcast_to(noise, y.shape)


def measure(system: System, seed: int, steps: int, components: int, diffusion: str,
            lotka_volterra: Path) -> dict[str, tuple[float, float]]:
    """Errors of drift and diffusion, free-form, and those of the baseline."""
    rng = np.random.default_rng(seed)
    if "lv.npz" in system.name:
        data = read_snapshots(lotka_volterra)
        x, t = data.x, data.t
    else:
        x, t = system.snapshots(rng)
    fresh = np.concatenate(system.run(1000, np.linspace(0, system.duration, 41), rng))
    f, g = system.drift(fresh), system.diffusion(fresh)
    model = FokkerPlanckSDE(components, drift="autonomous", diffusion=diffusion, max_steps=steps, random_state=seed)
    model.fit(x, t)
    baseline = linear_baseline(x, t)
    return {"fpsde": (relative_error(model.drift(fresh, 0.0), f), relative_error(model.diffusion(fresh, 0.0), g)),
            "linear moments": (relative_error(baseline[0](fresh), f), relative_error(baseline[1](fresh), g))}


def main() -> None:
    """Prints and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--components", type=int, default=8)
    parser.add_argument("--diffusion", choices=["state", "constant"], default="state")
    parser.add_argument("--only", default="", help="part of a system's name")
    parser.add_argument("--lotka-volterra", type=Path, default=SHARED)
    parser.add_argument("-o", "--output", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False).stdout
    lines = ["# Recovery of drift and diffusion", "",
             f"{platform.machine()}, {torch.get_num_threads()} CPU thread, Python {platform.python_version()}, torch "
             f"{torch.__version__}, commit {commit.strip()}", "",
             f"`python benchmarks/recovery.py --seeds {arguments.seeds} --steps {arguments.steps} --components "
             f"{arguments.components} --diffusion {arguments.diffusion}`", "",
             "Relative RMS error in %, median over seeds (least to largest); 11 unpaired snapshots, free-form f(x), "
             f"{'free-form g(x)' if arguments.diffusion == 'state' else 'constant g'}.",
             "", "| system | drift | goal | diffusion | goal | linear moments: drift | diffusion | s per fit |",
             "|---|---|---|---|---|---|---|---|"]
    print("\n".join(lines), flush=True)
    for system in SYSTEMS:
        if arguments.only not in system.name:
            continue
        if "lv.npz" in system.name and not arguments.lotka_volterra.is_file():
            print(f"{arguments.lotka_volterra} is not there: {system.name} left out; name it with --lotka-volterra")
            continue
        start = time.monotonic()
        results = [measure(system, seed, arguments.steps, arguments.components, arguments.diffusion,
                           arguments.lotka_volterra)
                   for seed in range(arguments.seeds)]
        seconds = (time.monotonic() - start) / arguments.seeds
        cells = {(who, k): 100 * np.array([r[who][k] for r in results]) for who in results[0] for k in (0, 1)}
        shown = {key: f"{np.median(v):.1f} ({v.min():.1f} to {v.max():.1f})" for key, v in cells.items()}
        lines.append(f"| {system.name} | {shown['fpsde', 0]} | {100 * system.goal[0]:.0f} | {shown['fpsde', 1]} | "
                     f"{100 * system.goal[1]:.0f} | {shown['linear moments', 0]} | {shown['linear moments', 1]} | "
                     f"{seconds:.0f} |")
        print(lines[-1], flush=True)
    if arguments.output:
        arguments.output.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()

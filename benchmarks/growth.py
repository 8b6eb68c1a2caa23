"""How well the rate of growth comes back, and what leaving it out does to the drift.

A turning 2-D Ornstein-Uhlenbeck process whose points multiply at the rate tanh(x_1), seven unpaired snapshots from time 0
to 3, each of runs of its own. The number of points at a time is in proportion to the size of the population. One fit is
without growth, one learns it from the shapes alone, one uses the counts. The shapes tell a rate up to a constant: error and
correlation are those of the rate less its mean, over the points of all snapshots.

    python benchmarks/growth.py [--points 1200,4000] [--seeds 3] [--steps 100] [-o FILE]
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from recovery import numbers
from scores import heading, publish, relative_error, spread
from systems import ROTATION, Array

from fpsde import FokkerPlanckSDE

NOISE = np.array([0.5, 0.7])
TIMES = np.linspace(0, 3, 7)
STEP = 0.01
RESERVE = 20
WAYS = {"without": None, "learned": "learned", "counts": "counts"}


def rate(x: Array) -> Array:
    """The true rate, shape (n,), at points of shape (n, 2)."""
    return np.tanh(x[:, 0])


def populations(n: int, rng: np.random.Generator) -> tuple[Array, Array]:
    """Points and their times, n / 2 of them at the first."""
    groups = []
    for stop in TIMES:
        x = rng.normal([2.0, 0.0], 0.6, (RESERVE * n, 2))
        log_size = np.zeros(len(x))
        for _ in range(round(stop / STEP)):
            log_size += STEP * rate(x)
            x = x + STEP * x @ ROTATION.T + np.sqrt(STEP) * NOISE * rng.normal(size=x.shape)
        progeny = np.exp(log_size)
        groups.append(x[rng.choice(len(x), round(n * progeny.mean() / 2), p=progeny / progeny.sum())])
    return np.concatenate(groups), np.repeat(TIMES, [len(x) for x in groups])


def measure(points: int, growth: str | None, steps: int, seed: int) -> dict[str, float]:
    """Errors of drift, noise and rate, its correlation with the truth, and seconds."""
    x, t = populations(points, np.random.default_rng(seed))
    begin = time.monotonic()
    model = FokkerPlanckSDE(8, drift="autonomous", diffusion="constant", growth=growth, max_steps=steps, random_state=seed,
                            device="cpu").fit(x, t)
    found = {"s": time.monotonic() - begin, "drift": relative_error(model.drift(x, 0.0), x @ ROTATION.T),
             "noise": relative_error(model.diffusion(x, 0.0), np.broadcast_to(NOISE, x.shape))}
    if growth is not None:
        learned, true = (values - values.mean() for values in (model.growth(x), rate(x)))
        # A rate that is the same everywhere goes with nothing.
        correlation = float(np.corrcoef(learned, true)[0, 1]) if learned.any() else 0.0
        found |= {"rate": relative_error(learned, true), "correlation": correlation}
    return found


def table(arguments: argparse.Namespace) -> list[str]:
    """The lines of the table."""
    lines = ["Relative RMS errors in %, median over seeds (least to largest); the rate less its mean.", "",
             "| points | growth | error of the rate | its correlation with the truth | drift | noise | s per fit |",
             "|---" * 7 + "|"]
    for points in arguments.points:
        for name, growth in WAYS.items():
            results = [measure(points, growth, arguments.steps, seed) for seed in range(arguments.seeds)]
            told = {key: [result[key] for result in results] for key in results[0]}
            cells = [spread(told.get("rate", [])), spread(told.get("correlation", []), 1, 2), spread(told["drift"]),
                     spread(told["noise"]), f"{np.mean(told['s']):.0f}"]
            lines.append(f"| {points} | {name} | {' | '.join(cells)} |")
            print(lines[-1], flush=True)
    return lines


def main(words: Sequence[str] | None = None) -> None:
    """Prints and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=numbers, default=[1200, 4000])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("-o", "--output", type=Path)
    arguments = parser.parse_args(words)
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message="the number of points at a time varies")
    command = f"--points {','.join(map(str, arguments.points))} --seeds {arguments.seeds} --steps {arguments.steps}"
    lines = heading("The rate of growth", f"python benchmarks/growth.py {command}")
    publish([*lines, *table(arguments)], arguments.output)


if __name__ == "__main__":
    main()

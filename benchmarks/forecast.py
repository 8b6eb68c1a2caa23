"""How well a fit tells the snapshot after its last one, and how often its band holds the truth.

Accuracy: fitted to the first ten of eleven snapshots, W1 at the last time of the tenth's points, pushed there; beside it
another sample of the truth (the floor), the tenth snapshot as it is, and the tenth pushed by the true equation.

Calibration: ensembles, each of fresh data, fitted to all snapshots but the last. Forecasts from the last one fitted to the
one left out, and from the second half-way to the third; bands of the mean and the standard deviation of each coordinate
against those of 100,000 fresh runs. Few and small snapshots, so that there can be many fits.

Beyond: one ensemble on the first ten Lotka-Volterra snapshots, and how wide its bands are between snapshots and past them.

    python benchmarks/forecast.py [--suite accuracy] [--seeds 1] [--steps 1000] [-o FILE]
    python benchmarks/forecast.py --suite calibration [--seeds 12] [--steps 60] [--members 5] [-o FILE]
    python benchmarks/forecast.py --suite beyond [--steps 100] [--members 5] [-o FILE]
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from recovery import chosen, snapshots
from scipy.stats import t as student
from scores import SHARED, heading, matches, spread
from systems import CORE, Array, System, even, gaussian

from fpsde import FokkerPlanckSDE, wasserstein

PULL = System("Ornstein-Uhlenbeck, 1-D", lambda x: -x, even(np.array([0.7])), gaussian(np.array([2.0]), 0.4), 4.0,
              noise=(0.7,))
LEVELS = (0.9, 0.5)
PREDICTIONS = ("fpsde", "true equation", "floor", "carry-forward")
MOST = 1000


def measure(system: System, seed: int, arguments: argparse.Namespace) -> dict[str, float]:
    """W1 of predictions of the last snapshot, coordinates in standard deviations over all data."""
    rng = np.random.default_rng(seed)
    x, t = snapshots(system, rng, arguments.lotka_volterra)
    *_, before, last = np.unique(t)
    model = FokkerPlanckSDE(arguments.components, drift="autonomous", max_steps=arguments.steps, random_state=seed)
    model.fit(x[t < last], t[t < last])
    start, observed = (rng.permutation(x[t == when])[:MOST] for when in (before, last))
    predictions = (model.push(start, before, last, random_state=seed),
                   system.push(start, last - before, rng),
                   system.run(len(start), np.array([last]), rng)[0], start)
    return {name: wasserstein(y / x.std(0), observed / x.std(0)) for name, y in zip(PREDICTIONS, predictions, strict=True)}


def accuracy(arguments: argparse.Namespace) -> list[str]:
    """The lines of the table of W1."""
    lines = [f"W1 to the eleventh snapshot, coordinates in standard deviations, {MOST} points or fewer; median over seeds.",
             "", "| system | " + " | ".join(PREDICTIONS) + " | s per fit |", "|---" * (len(PREDICTIONS) + 2) + "|"]
    for system in chosen(arguments):
        begin = time.monotonic()
        results = [measure(system, seed, arguments) for seed in range(arguments.seeds)]
        cells = [spread([r[name] for r in results], 1.0, 3, short=True) for name in PREDICTIONS]
        lines.append(f"| {system.name} | {' | '.join(cells)} | {(time.monotonic() - begin) / arguments.seeds:.0f} |")
        print(lines[-1], flush=True)
    return lines


def statistics(x: Array) -> Array:
    """Mean and standard deviation of each coordinate, shape (2 d,)."""
    return np.concatenate([x.mean(0), x.std(0)])


def bands(system: System, seed: int, arguments: argparse.Namespace) -> Array:
    """Mean, and the half-widths of the bands, of the statistics inside the data and after them: shape (3, 2, 2 d)."""
    x, t = system.snapshots(np.random.default_rng(seed), arguments.snapshots, arguments.points)
    _, second, third, *_, before, last = np.unique(t)
    model = FokkerPlanckSDE(arguments.components, n_members=arguments.members, drift="autonomous", diffusion="constant",
                            hidden=(16,), max_steps=arguments.steps, random_state=seed)
    model.fit(x[t < last], t[t < last])
    results = []
    for start, end in ((second, 0.5 * (second + third)), (before, last)):
        found = [model.forecast(x[t == start], [start, end], level, seed, statistics) for level in LEVELS]
        results.append([found[0].mean[1], *(band.high[1] - band.mean[1] for band in found)])
    return np.array(results).transpose(1, 0, 2)


def calibration(arguments: argparse.Namespace) -> list[str]:
    """The lines of the table of how often the bands hold the truth."""
    claim = ", ".join(f"{100 * q:.0f} % +- {100 * np.sqrt(q * (1 - q) / arguments.seeds):.0f}" for q in LEVELS)
    lines = [f"{arguments.members} members, {arguments.snapshots} snapshots of {arguments.points} points, all but the last "
             f"fitted; {arguments.seeds} data sets. Share of them whose band holds the truth in %, by the claim {claim} "
             "(binomial error of a row). Bias, scatter over data sets and mean deviation s over members of one ensemble's "
             "mean and members, in % of the population's standard deviation.", "",
             "| system | time | statistic | 90 % band | 50 % band | bias | scatter | s over members |", "|---" * 8 + "|"]
    held = []
    for system in (PULL, CORE[1]):
        if not matches(system.name, arguments.only):
            continue
        times = np.linspace(0, system.duration, arguments.snapshots)
        asked = np.array([0.5 * (times[1] + times[2]), times[-1]])
        truth = np.array([statistics(y) for y in system.run(100_000, asked, np.random.default_rng(10**6))])
        mean, *halves = np.stack([bands(system, seed, arguments) for seed in range(arguments.seeds)], 1)
        inside = np.array([np.abs(mean - truth) <= half for half in halves])
        held.append(inside)
        unit = 100 / truth[:, system.dim:].mean(1)
        m = arguments.members
        s = halves[0] / (student.ppf(0.5 + 0.5 * LEVELS[0], m - 1) * np.sqrt(1 + 1 / m))
        for k, when in enumerate(asked):
            for i in range(truth.shape[1]):
                error = unit[k] * (mean[:, k, i] - truth[k, i])
                what = f"{'mean' if i < system.dim else 'standard deviation'} of x{i % system.dim + 1}"
                lines.append(f"| {system.name} | {when:.2g}{', forecast' if k else ''} | {what} | "
                             + " | ".join(f"{100 * share:.0f}" for share in inside[:, :, k, i].mean(1))
                             + f" | {error.mean():.1f} | {error.std(ddof=1):.1f} | "
                             f"{unit[k] * np.sqrt((s[:, k, i] ** 2).mean()):.1f} |")
                print(lines[-1], flush=True)
    # Statistics of one ensemble go together: the error is that of its shares.
    for k, name in enumerate(("between snapshots", "forecast")):
        shares = [np.concatenate([inside[level][:, k].mean(1) for inside in held]) for level in range(2)]
        told = [f"{100 * s.mean():.0f} +- {100 * s.std(ddof=1) / np.sqrt(len(s)):.0f}" for s in shares]
        lines.append(f"| all | {name} | all | {' | '.join(told)} | | | |")
        print(lines[-1], flush=True)
    return lines


def beyond(arguments: argparse.Namespace) -> list[str]:
    """The lines of the table of the bands inside the data and past them: one ensemble on all but the last of lv.npz."""
    system = CORE[-1]
    x, t = snapshots(system, np.random.default_rng(0), arguments.lotka_volterra)
    times = np.unique(t)
    model = FokkerPlanckSDE(arguments.components, n_members=arguments.members, drift="autonomous",
                            max_steps=arguments.steps, random_state=0)
    model.fit(x[t < times[-1]], t[t < times[-1]])
    truth = np.array([statistics(y) for y in system.run(100_000, times, np.random.default_rng(10**6))])
    lines = [f"{arguments.members} members; from one snapshot to the next, by its number. Half-width of the 90 % band in "
             "standard deviations of the population, and whether the band holds the truth.", "",
             "| from | to | mean of prey | mean of predator | deviation of prey | deviation of predator |",
             "|---" * 6 + "|"]
    for j in np.linspace(0, len(times) - 2, min(4, len(times) - 1)).round().astype(int):
        band = model.forecast(x[t == times[j]], times[j:j + 2], LEVELS[0], 0, statistics)
        half = (band.high[1] - band.mean[1]) / np.tile(truth[j + 1, system.dim:], 2)
        held = (band.low[1] < truth[j + 1]) & (truth[j + 1] < band.high[1])
        past = ", past the data" if j == len(times) - 2 else ""
        cells = [f"{h:.2f}, {'holds' if ok else 'misses'}" for h, ok in zip(half, held, strict=True)]
        lines.append(f"| {j + 1} | {j + 2}{past} | {' | '.join(cells)} |")
        print(lines[-1], flush=True)
    return lines


def main() -> None:
    """Prints and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", choices=["accuracy", "calibration", "beyond"], default="accuracy")
    parser.add_argument("--seeds", type=int, help="12 for calibration, else 1 if left out")
    parser.add_argument("--steps", type=int, help="1000 for accuracy, 60 for calibration, 100 for beyond if left out")
    parser.add_argument("--components", type=int, help="2 for calibration, else 8 if left out")
    parser.add_argument("--members", type=int, default=5, help="calibration and beyond: of an ensemble")
    parser.add_argument("--snapshots", type=int, default=6, help="calibration: how many, the last of them left out")
    parser.add_argument("--points", type=int, default=300, help="calibration: in a snapshot")
    parser.add_argument("--only", default="", help="part of a system's name, or several separated by ;")
    parser.add_argument("--lotka-volterra", type=Path, default=SHARED / "lv.npz")
    parser.add_argument("-o", "--output", type=Path)
    arguments = parser.parse_args()
    if arguments.snapshots < 5:
        parser.error("--snapshots must be at least 5: forecasts start from the second and from the last one fitted")
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message="simulating from")
    suites: dict[str, tuple[Callable[[argparse.Namespace], list[str]], dict[str, int]]] = {
        "accuracy": (accuracy, {"seeds": 1, "steps": 1000, "components": 8}),
        "calibration": (calibration, {"seeds": 12, "steps": 60, "components": 2}),
        "beyond": (beyond, {"seeds": 1, "steps": 100, "components": 8})}
    suite, usual = suites[arguments.suite]
    for name, value in usual.items():
        if getattr(arguments, name) is None:
            setattr(arguments, name, value)
    command = f"--suite {arguments.suite} --seeds {arguments.seeds} --steps {arguments.steps} " \
              f"--components {arguments.components}"
    if suite is not accuracy:
        command += f" --members {arguments.members}"
    if suite is calibration:
        command += f" --snapshots {arguments.snapshots} --points {arguments.points}"
    lines = heading(f"Forecasts: {arguments.suite}", f"python benchmarks/forecast.py {command}")
    print("\n".join(lines), flush=True)
    lines += suite(arguments)
    if arguments.output:
        arguments.output.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()

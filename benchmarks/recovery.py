"""How well drift and diffusion come back where the truth is known.

Relative root-mean-square errors of f and g, all coordinates together, weighted by the true density: both are evaluated at
fresh points of fresh runs at 41 times. Snapshots are unpaired: every one comes from runs of its own.

`--suite core` is a short table. Beside the errors stand two naive baselines that use the same data: a drift of zero (error
100 % by definition) and a linear drift with constant noise fitted to the moments of the snapshots. `--suite wide` has more
systems, up to 20-D, more or fewer snapshots and points, and the maximum-likelihood limit beside (`wide.py`).

    python benchmarks/recovery.py [--seeds 3] [--steps 1000] [--positive] [--lotka-volterra PATH/lv.npz] [-o FILE]
    python benchmarks/recovery.py --suite wide [--snapshots 5,11,21] [--points 200,2000] [--only "coupled, 10-D"] [-o FILE]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from baseline import linear_baseline
from scores import SHARED, heading, matches, relative_error, spread
from systems import CORE, Array, System
from wide import wide_table

from fpsde import FokkerPlanckSDE, read_snapshots


def chosen(arguments: argparse.Namespace) -> Iterator[System]:
    """The core systems that are asked for and whose data are there."""
    for system in CORE:
        if matches(system.name, arguments.only):
            if "lv.npz" not in system.name or arguments.lotka_volterra.is_file():
                yield system
            else:
                print(f"{arguments.lotka_volterra} is not there: {system.name} left out; name it with --lotka-volterra")


def snapshots(system: System, rng: np.random.Generator, lotka_volterra: Path) -> tuple[Array, Array]:
    """Points and their times: drawn, or those of the file."""
    if "lv.npz" not in system.name:
        return system.snapshots(rng)
    data = read_snapshots(lotka_volterra)
    return data.x, data.t


def measure(system: System, seed: int, arguments: argparse.Namespace) -> dict[str, tuple[float, float]]:
    """Errors of drift and diffusion, free-form, and those of the baseline."""
    rng = np.random.default_rng(seed)
    x, t = snapshots(system, rng, arguments.lotka_volterra)
    fresh = np.concatenate(system.run(1000, np.linspace(0, system.duration, 41), rng))
    f, g = system.drift(fresh), system.diffusion(fresh)
    model = FokkerPlanckSDE(arguments.components, drift="autonomous", diffusion=arguments.diffusion,
                            positive=arguments.positive, max_steps=arguments.steps, random_state=seed).fit(x, t)
    baseline = linear_baseline(x, t)
    return {"fpsde": (relative_error(model.drift(fresh, 0.0), f), relative_error(model.diffusion(fresh, 0.0), g)),
            "linear moments": (relative_error(baseline[0](fresh), f), relative_error(baseline[1](fresh), g))}


def core_table(arguments: argparse.Namespace) -> list[str]:
    """The lines of the table of the core systems."""
    lines = ["Relative RMS error in %, median over seeds (least to largest); 11 unpaired snapshots, free-form f(x), "
             f"{'free-form g(x)' if arguments.diffusion == 'state' else 'constant g'}.",
             "", "| system | drift | goal | diffusion | goal | linear moments: drift | diffusion | s per fit |",
             "|---|---|---|---|---|---|---|---|"]
    print("\n".join(lines), flush=True)
    for system in chosen(arguments):
        start = time.monotonic()
        results = [measure(system, seed, arguments) for seed in range(arguments.seeds)]
        seconds = (time.monotonic() - start) / arguments.seeds
        shown = {(who, k): spread([r[who][k] for r in results]) for who in results[0] for k in (0, 1)}
        lines.append(f"| {system.name} | {shown['fpsde', 0]} | {100 * system.goal[0]:.0f} | {shown['fpsde', 1]} | "
                     f"{100 * system.goal[1]:.0f} | {shown['linear moments', 0]} | {shown['linear moments', 1]} | "
                     f"{seconds:.0f} |")
        print(lines[-1], flush=True)
    return lines


def numbers(text: str) -> list[int]:
    """Whole numbers that commas separate."""
    return [int(part) for part in text.split(",")]


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", choices=["core", "wide"], default="core")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--components", type=int, default=8)
    parser.add_argument("--diffusion", choices=["state", "constant"], default="state")
    parser.add_argument("--positive", action="store_true", help="model all coordinates by their logarithm")
    parser.add_argument("--snapshots", type=numbers, help="wide: how many, 11 if left out")
    parser.add_argument("--points", type=numbers, help="wide: in a snapshot, 2000 if left out")
    parser.add_argument("--no-given", action="store_true", help="wide: without the fits that are told the diffusion")
    parser.add_argument("--store", type=Path, help="wide: a file that keeps what each seed gave, for further runs")
    parser.add_argument("--stored", action="store_true", help="wide: the table of what --store holds, without further fits")
    parser.add_argument("--only", default="", help="part of a system's name, or several separated by ;")
    parser.add_argument("--lotka-volterra", type=Path, default=SHARED / "lv.npz")
    parser.add_argument("-o", "--output", type=Path)
    return parser


def main() -> None:
    """Prints and writes the table."""
    arguments = parser().parse_args()
    if arguments.suite == "core" and (arguments.snapshots or arguments.points):
        parser().error("--snapshots and --points go with --suite wide; core has 11 snapshots of 200 or 2000 points")
    if arguments.stored and not arguments.store:
        parser().error("--stored makes the table of what --store FILE holds: name it")
    torch.set_num_threads(1)
    command = f"--seeds {arguments.seeds} --steps {arguments.steps} --components {arguments.components} " \
              f"--diffusion {arguments.diffusion}{' --positive' if arguments.positive else ''}" \
              f"{f' --only {arguments.only!r}' if arguments.only else ''}"
    if arguments.suite == "wide":
        arguments.snapshots, arguments.points = arguments.snapshots or [11], arguments.points or [2000]
        command = f"--suite wide {command} --snapshots {','.join(map(str, arguments.snapshots))} --points " \
                  f"{','.join(map(str, arguments.points))}{' --no-given' if arguments.no_given else ''}"
    lines = heading("Recovery of drift and diffusion", f"python benchmarks/recovery.py {command}")
    print("\n".join(lines), flush=True)
    lines += wide_table(arguments) if arguments.suite == "wide" else core_table(arguments)
    if arguments.output:
        arguments.output.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()

"""What several threads of the CPU gain in a training step, by its size: which steps are worth sharing out.

One thread and several take turns in one process, each running a step as often as lasts a second; figures are medians over
the turns. A step is forward, backward and Adam, of the path (likelihood and what chooses it in between) or of the nets
(after a path that is held); a solve is one of the readouts of a drift free in time; moments is one round of the moment
equations of an autonomous drift, five snapshots of 2000 points. Work is the number of hidden units at all points: points
x d x 64 for the nets, points x components x d for the path.

    python benchmarks/threads.py [--threads 2] [--dims 2 10 50 200] [--tasks path nets solve moments] [--turns 5] [-o FILE]
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from derivatives import build
from gpu import WEIGHTS, case, stepper
from scores import heading, publish

from fpsde.fokker_planck import FokkerPlanckLoss
from fpsde.hollow import HollowNet
from fpsde.memory import kept_memory
from fpsde.moments import MomentEquations
from fpsde.projection import ReadoutSolver, Ridge
from fpsde.readouts import solve_moments

POINTS, SECONDS, MOMENTS_UP_TO = 2048, 1.0, 10


def solve(dim: int) -> Callable[[], object]:
    """A solve of the readouts."""
    model = build(dim, "leave-one-out").requires_grad_(False)
    solver, t, x = ReadoutSolver(model, Ridge()), torch.linspace(0.02, 0.98, 32), torch.randn(32, 64, dim)
    return lambda: solver.step(t, x, WEIGHTS)


def moments(dim: int) -> Callable[[], object]:
    """A round of the moment equations."""
    model, times = build(dim, "leave-one-out").requires_grad_(False), torch.linspace(0, 1, 5)
    drift = HollowNet(dim, time=False)
    model = FokkerPlanckLoss(model.density, drift, model.diffusion)
    equations = MomentEquations(model, times, [torch.randn(2000, dim) for _ in times], torch.Generator().manual_seed(0))
    return lambda: solve_moments(equations, 1)


def step(name: str) -> Callable[[int], Callable[[], object]]:
    """A step of path or nets."""
    return lambda dim: stepper(case(name, dim, POINTS, torch.device("cpu")), "eager")


TASKS: dict[str, Callable[[int], Callable[[], object]]] = {
    "path": step("path"), "nets": step("nets"), "solve": solve, "moments": moments}
WORK = {"path": POINTS * 32, "nets": POINTS * 64, "solve": POINTS * 64, "moments": 4 * 1024 * 64}


def turns(task: Callable[[], object], threads: int, count: int) -> dict[int, tuple[float, float]]:
    """Median seconds on the wall and of the processor, for one thread and for several."""
    taken: dict[int, list[tuple[float, float]]] = {1: [], threads: []}
    for turn in range(count + 1):
        for number, found in taken.items():
            torch.set_num_threads(number)
            task()
            begin, processor, runs = time.perf_counter(), time.process_time(), 0
            while not runs or time.perf_counter() - begin < SECONDS:
                task()
                runs += 1
            if turn:
                found.append(((time.perf_counter() - begin) / runs, (time.process_time() - processor) / runs))
    torch.set_num_threads(1)
    return {number: (float(np.median([w for w, _ in found])), float(np.median([c for _, c in found])))
            for number, found in taken.items()}


def main() -> None:
    """Prints and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dims", type=int, nargs="+", default=[2, 10, 50, 200])
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("-o", "--output", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    lines = heading("What threads gain", f"python benchmarks/threads.py --threads {arguments.threads} --dims "
                    f"{' '.join(map(str, arguments.dims))} --tasks {' '.join(arguments.tasks)} --turns {arguments.turns}")
    lines += [f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the start.", "",
              f"| | d | work, millions | ms, 1 thread | ms, {arguments.threads} threads | times as fast | "
              "times the processor |",
              "|---|---|---|---|---|---|---|"]
    print("\n".join(lines), flush=True)
    with kept_memory():
        for dim in arguments.dims:
            for name in arguments.tasks:
                if name == "moments" and dim > MOMENTS_UP_TO:
                    continue
                work, task = WORK[name] * dim, TASKS[name](dim)
                (wall, one), (shared, all_of_them) = turns(task, arguments.threads, arguments.turns).values()
                lines.append(f"| {name} | {dim} | {work / 1e6:.2f} | {1e3 * wall:.1f} | {1e3 * shared:.1f} | "
                             f"{wall / shared:.2f} | {all_of_them / one:.2f} |")
                print(lines[-1], flush=True)
    publish(lines, arguments.output)


if __name__ == "__main__":
    main()

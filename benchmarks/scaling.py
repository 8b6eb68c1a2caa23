"""How the cost of a fit grows: with points, dimensions, components and times, each with its exponent.

One of the four is varied, the others stay. Of every fit are told apart, in processor time: what comes before the steps
(checking, scaling, matching and clustering the points; with many components for each of several paths); a step of the
path; a step of the nets, with its share of the solves, or, of an autonomous drift, a step that refines the path; solving
the moment equations of an autonomous drift; and what comes after the last step. Steps are medians, without the first of a
loop and without the scores on held-out points. Of the sweeps at the end, those of the first 20 s stand for the others.
The exponent is the slope of the logarithms over the three largest sizes, so that 1 means in proportion. The points are
Gaussian clouds that move; what they are hardly matters for the cost.

    python benchmarks/scaling.py [--only points,dimensions,components,times] [--drift time] [-o FILE]
"""

from __future__ import annotations

import argparse
import resource
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import torch
from numpy.typing import NDArray

from fpsde import identification
from fpsde.arguments import fit_config
from fpsde.estimator import FokkerPlanckSDE
from fpsde.memory import kept_memory
from fpsde.projection import ReadoutSolver
from fpsde.snapshots import Snapshots
from fpsde.threads import one_thread
from fpsde.train import train

__all__ = ["Cost", "cost", "exponent"]

Array = NDArray[np.float64]

USUAL = {"points": 5000, "dimensions": 2, "components": 8, "times": 5}
SIZES = {"points": (10**3, 10**4, 10**5, 10**6, 10**7), "dimensions": (2, 10, 50, 200, 1000),
         "components": (8, 32, 128, 512), "times": (3, 10, 30, 100)}
OF_AUTONOMOUS = {**SIZES, "dimensions": (2, 5, 10, 20, 50), "components": (8, 32, 128)}
LARGEST = 3
STEPS_OF_A_PATH = 10
SECONDS_AT_END = 20.0


class Cost(NamedTuple):
    """What a fit took, in processor time."""

    start: float
    """Seconds before the steps."""
    path: float
    """Milliseconds of a step of the path."""
    nets: float
    """Milliseconds of a step of the nets, or of one that refines the path."""
    solving: float
    """Seconds that solve moment equations."""
    finish: float
    """Seconds after the last step."""
    gib: float
    """Most memory that the process has held so far."""


class Clock:
    """Times what a fit does from within."""

    def __init__(self) -> None:
        self.loops: list[tuple[float, float, float, bool]] = []
        """Of every loop its start, its end, the seconds of a step, and whether it trains the path alone."""
        self.aside = 0.0
        self.solves: dict[str, list[float]] = {"step": [], "sweep": []}
        """Seconds of every solve inside of loops, and of every sweep after them."""
        self.interval, self.skipped = 1, 0

    def train(self, module: Any, groups: Any, draw: Any, score: Callable[[Any], float], config: Any, *, report: Any,
              **others: Any) -> Any:
        """The training loop, timed."""
        steps: list[float] = []

        def judged(average: Any) -> float:
            begin = time.process_time()
            value = score(average)
            self.aside += time.process_time() - begin
            return value

        def reported(*arguments: Any) -> None:
            nonlocal last
            steps.append(time.process_time() - last - self.aside)
            report(*arguments)
            last, self.aside = time.process_time(), 0.0

        begin = last = time.process_time()
        self.aside = 0.0
        result = train(module, groups, draw, judged, config, report=reported, **others)
        of_path = type(module).__name__ == "PathLoss"
        self.loops.append((begin, time.process_time(), float(np.median(steps[1:])), of_path))
        return result

    def solve(self, name: str, solver: ReadoutSolver, *arguments: Any) -> None:
        """A solve or a sweep of the readouts, timed; of long sweeps after the steps, the first alone."""
        if name == "sweep" and sum(self.solves[name]) > SECONDS_AT_END:
            self.skipped += 1
            return
        begin = time.process_time()
        SOLVES[name](solver, *arguments)
        self.solves[name].append(time.process_time() - begin)
        self.aside += self.solves[name][-1]
        self.interval = solver.interval

    def cost(self, begin: float, end: float) -> Cost:
        """What a fit took that began and ended then."""
        path = [loop for loop in self.loops if loop[3]]
        others = [loop for loop in self.loops if not loop[3]]
        last = path[-1]
        start = last[0] - begin - sum(stop - start for start, stop, _, _ in path[:-1])
        between = others[-1][0] - last[1] - sum(stop - start for start, stop, _, _ in others[:-1])
        inside, after = self.solves["step"], self.solves["sweep"]
        nets = float(np.median([loop[2] for loop in others]))
        return Cost(start, 1e3 * float(np.median([loop[2] for loop in path])),
                    1e3 * (nets + (float(np.median(inside)) / self.interval if inside else 0.0)), max(between, 0.0),
                    end - others[-1][1] + (self.skipped * float(np.mean(after)) if after else 0.0),
                    resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)


SOLVES = {"step": ReadoutSolver.step, "sweep": ReadoutSolver.sweep}


def clouds(points: int, dim: int, times: int) -> tuple[Array, Array]:
    """So many points in all, shape (n, d), and their times."""
    rng = np.random.default_rng(0)
    t = np.linspace(0, 1, times).repeat(-(-points // times))[:points]
    x = rng.standard_normal((points, dim))
    x *= (0.5 + 0.3 * t)[:, None]
    x[:, 0] += 2 * np.cos(2 * t)
    x[:, 1] += 2 * np.sin(2 * t)
    return x, t


def cost(drift: str, steps: int, points: int, dimensions: int, components: int, times: int) -> Cost:
    """Fits once."""
    x, t = clouds(points, dimensions, times)
    settings = FokkerPlanckSDE(components, drift=drift, max_steps=steps).get_params(deep=False)
    clock, device = Clock(), torch.device("cpu")
    begin = time.process_time()
    with (warnings.catch_warnings(), one_thread(device), kept_memory(),
          mock.patch.object(identification, "train", clock.train),
          mock.patch.object(ReadoutSolver, "step", lambda *arguments: clock.solve("step", *arguments)),
          mock.patch.object(ReadoutSolver, "sweep", lambda *arguments: clock.solve("sweep", *arguments))):
        warnings.simplefilter("ignore")
        data = Snapshots.of(x, t)
        identification.identify(data, fit_config(settings, data), 0, device)
    return clock.cost(begin, time.process_time())


def exponent(sizes: list[int], values: list[float]) -> float:
    """The slope of the logarithms over the largest sizes."""
    return float(np.polyfit(np.log(sizes[-LARGEST:]), np.log(np.maximum(values[-LARGEST:], 1e-9)), 1)[0])


def table(name: str, drift: str, steps: int, sizes: list[int]) -> list[str]:
    """The lines of one table."""
    others = ", ".join(f"{value} {other}" for other, value in USUAL.items() if other != name)
    shown = [0, 1, 2, 4] if drift == "time" else [0, 1, 2, 3, 4]
    heads = ["s before the steps", "ms a step of the path", "ms a step of the nets" if drift == "time" else
             "ms a step that refines", "s solving", "s after the steps"]
    lines = [f"## {name.capitalize()}, drift {drift}", "", f"{others}.", "",
             f"| {name} | {' | '.join(heads[i] for i in shown)} | GiB so far |", "|---" * (len(shown) + 2) + "|"]
    print("\n".join(lines), flush=True)
    costs = []
    for size in sizes:
        sizes_of_fit = {**USUAL, name: size}
        few = min(1.0, max(0.15, 80 / sizes_of_fit["dimensions"]))
        # A path of 16 components each needs some steps of its own.
        least = STEPS_OF_A_PATH * sizes_of_fit["components"] // 16 if drift == "time" else 0
        costs.append(cost(drift, max(round(few * steps), least), **sizes_of_fit))
        places = (f"{costs[-1][i]:.1f}" if i in (1, 2) else f"{costs[-1][i]:.2f}" for i in shown)
        lines.append(f"| {size:,} | {' | '.join(places)} | {costs[-1].gib:.1f} |")
        print(lines[-1], flush=True)
    slopes = [f"{exponent(sizes, [c[i] for c in costs]):.2f}" for i in shown]
    lines += [f"| exponent | {' | '.join(slopes)} | |", ""]
    print("\n".join(lines[-2:]), flush=True)
    return lines


def main() -> None:
    """Runs the tables that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(SIZES), help="tables, with commas")
    parser.add_argument("--drift", default="time")
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--most", type=int, default=10**9, help="largest size that is tried")
    parser.add_argument("-o", "--output", help="file for the tables")
    arguments = parser.parse_args()
    every = SIZES if arguments.drift == "time" else OF_AUTONOMOUS
    # Once, for what is imported with the first fit.
    cost(arguments.drift, 10, **USUAL)
    lines: list[str] = []
    for name in arguments.only.split(","):
        lines += table(name, arguments.drift, arguments.steps, [size for size in every[name] if size <= arguments.most])
    if arguments.output:
        Path(arguments.output).write_text("\n".join(lines))


if __name__ == "__main__":
    main()

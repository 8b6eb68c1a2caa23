"""How the cost of a fit grows: with points, dimensions, components and times, each with its exponent.

One of the four is varied, the others stay. Of every fit three times are told apart: a step of the path and a step of the
nets, lower quartiles, for other work runs on the machine, and all that is beside the steps: checking and scaling the
points, matching and clustering them, averages on held-out points, solving. The exponent is the slope of the logarithms
over the three largest sizes, so that 1 means in proportion. The points are Gaussian clouds that move; what they are hardly
matters for the cost.

    python benchmarks/scaling.py [--only points,dimensions,components,times] [--drift time] [-o FILE]
"""

from __future__ import annotations

import argparse
import resource
import time
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from fpsde.arguments import fit_config
from fpsde.estimator import FokkerPlanckSDE
from fpsde.identification import identify
from fpsde.memory import kept_memory
from fpsde.snapshots import Snapshots
from fpsde.train import Report, one_thread

__all__ = ["Cost", "cost", "exponent"]

Array = NDArray[np.float64]

USUAL = {"points": 5000, "dimensions": 2, "components": 8, "times": 5}
SIZES = {"points": (10**3, 10**4, 10**5, 10**6, 10**7), "dimensions": (2, 10, 50, 200, 1000),
         "components": (8, 32, 128, 512), "times": (3, 10, 30, 100)}
LARGEST = 3


class Cost(NamedTuple):
    """What a fit took."""

    path: float
    """Milliseconds of a step."""
    nets: float
    """The same, when the nets are trained."""
    beside: float
    """Seconds beside the steps."""
    gib: float
    """Most memory that the process has held so far."""


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
    reports: list[tuple[int, float]] = []

    def note(report: Report) -> None:
        if not report.stage:
            reports.append((report.step, time.perf_counter()))

    device = torch.device("cpu")
    begin = time.perf_counter()
    with warnings.catch_warnings(), one_thread(device), kept_memory():
        warnings.simplefilter("ignore")
        data = Snapshots.of(x, t)
        identify(data, fit_config(settings, data), 0, device, note)
    seconds = time.perf_counter() - begin
    gaps = np.array([(step, later - earlier) for (step, earlier), (following, later)
                     in zip(reports, reports[1:], strict=False) if following == step + 1])
    late = gaps[:, 0] > 0.8 * steps
    path, nets = (float(np.quantile(gaps[part, 1], 0.25)) for part in (~late, late))
    beside = max(seconds - path * (~late).sum() - nets * late.sum(), 0.0)
    return Cost(1e3 * path, 1e3 * nets, beside, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)


def exponent(sizes: list[int], values: list[float]) -> float:
    """The slope of the logarithms over the largest sizes."""
    return float(np.polyfit(np.log(sizes[-LARGEST:]), np.log(np.maximum(values[-LARGEST:], 1e-9)), 1)[0])


def table(name: str, drift: str, steps: int, sizes: list[int]) -> list[str]:
    """The lines of one table."""
    others = ", ".join(f"{value} {other}" for other, value in USUAL.items() if other != name)
    lines = [f"## {name.capitalize()}", "", f"drift {drift}, {others}, at least {steps} steps.", "",
             f"| {name} | ms a step of the path | of the nets | s beside the steps | GiB so far |", "|---|---|---|---|---|"]
    print("\n".join(lines), flush=True)
    costs = []
    for size in sizes:
        sizes_of_fit = {**USUAL, name: size}
        # A path of 16 components each needs some steps of its own.
        costs.append(cost(drift, max(steps, sizes_of_fit["components"] // 16 * 10), **sizes_of_fit))
        path, nets, beside, gib = costs[-1]
        lines.append(f"| {size:,} | {path:.1f} | {nets:.1f} | {beside:.1f} | {gib:.1f} |")
        print(lines[-1], flush=True)
    slopes = [f"{exponent(sizes, [c[part] for c in costs]):.2f}" for part in range(3)]
    lines += [f"| exponent | {' | '.join(slopes)} | |", ""]
    print("\n".join(lines[-2:]), flush=True)
    return lines


def main() -> None:
    """Runs the tables that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(SIZES), help="tables, with commas")
    parser.add_argument("--drift", default="time")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--most", type=int, default=10**9, help="largest size that is tried")
    parser.add_argument("-o", "--output", help="file for the tables")
    arguments = parser.parse_args()
    lines: list[str] = []
    for name in arguments.only.split(","):
        lines += table(name, arguments.drift, arguments.steps, [size for size in SIZES[name] if size <= arguments.most])
    if arguments.output:
        Path(arguments.output).write_text("\n".join(lines))


if __name__ == "__main__":
    main()

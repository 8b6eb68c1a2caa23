"""Where the time of a training step goes: processor milliseconds by part, on one thread, in a fit with the defaults.

Parts are functions of the package, timed from outside; what a part calls that is a part itself is not counted twice. The
points are Gaussian clouds that move, 5000 of them at five times. Two phases of a drift free in time: steps of the path
(twice as many components as one path has make two paths), and steps of the nets, with the solves of their readouts.

    python benchmarks/steps.py [--dims 2 5 50] [--steps 200] [--drift time] [-o FILE]
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from scaling import clouds
from scores import heading, publish
from torch import Tensor, nn

from fpsde import identification, projection, train
from fpsde.arguments import fit_config
from fpsde.density import GaussianMixturePath
from fpsde.diffusion import StateDiffusion
from fpsde.estimator import FokkerPlanckSDE
from fpsde.fokker_planck import FokkerPlanckLoss
from fpsde.hollow import HollowNet
from fpsde.memory import kept_memory
from fpsde.path import PathLoss
from fpsde.snapshots import Snapshots

POINTS, TIMES = 5000, 5
PARTS = (
    (projection, "strong_rows", "rows"), (projection._NormalEquations, "add", "products"),
    (projection._NormalEquations, "solve", "factor"), (identification._Fit, "polish", "last solves"),
    (PathLoss, "forward", "loss"), (FokkerPlanckLoss, "forward", "loss"), (PathLoss, "relative_entropy", "pooled law"),
    (GaussianMixturePath, "terms", "density"), (GaussianMixturePath, "log_prob", "density"),
    (GaussianMixturePath, "held_log_prob", "density"),
    (GaussianMixturePath, "kinetic_energy", "energy"), (GaussianMixturePath, "sample", "sample"),
    (HollowNet, "taylor", "nets"), (HollowNet, "columns", "columns"), (StateDiffusion, "columns", "columns"),
    (Tensor, "backward", "backward"), (nn.utils, "clip_grad_norm_", "clip"), (torch.optim.Adam, "step", "Adam"),
    (train._Loop, "follow", "average"))
LEAST = 0.01


class Sections:
    """Processor seconds by the names of the parts that are under way."""

    def __init__(self) -> None:
        self.seconds: Counter[tuple[str, ...]] = Counter()
        self.steps: Counter[str] = Counter()
        self.under_way: list[str] = []
        self.inner = [0.0]

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Counts what runs within, less the parts in it."""
        if self.under_way and self.under_way[-1] == name:
            yield
            return
        self.under_way.append(name)
        self.inner.append(0.0)
        begin = time.process_time()
        try:
            yield
        finally:
            taken = time.process_time() - begin
            self.seconds[tuple(self.under_way)] += taken - self.inner.pop()
            self.inner[-1] += taken
            self.under_way.pop()

    def timed(self, function: Callable[..., Any], name: str) -> Callable[..., Any]:
        """The function as a part."""
        def wrapped(*arguments: Any, **named: Any) -> Any:
            with self.part(name):
                return function(*arguments, **named)
        return wrapped

    def train(self, module: Any, groups: Any, draw: Any, score: Any, config: Any, *, before: Any, **others: Any) -> Any:
        """The training loop, as a phase of its own."""
        phase = "path" if isinstance(module, PathLoss) else "nets"
        self.steps[phase] += config.steps
        with self.part(phase):
            return train.train(module, groups, self.timed(draw, "draw"), self.timed(score, "scores"), config,
                               before=None if before is None else self.timed(before, "solve"), **others)


def fit(dim: int, drift: str, steps: int) -> Sections:
    """Fits once."""
    x, t = clouds(POINTS, dim, TIMES)
    settings = FokkerPlanckSDE(drift=drift, max_steps=steps).get_params(deep=False)
    sections, device = Sections(), torch.device("cpu")
    with ExitStack() as stack:
        for manager in (warnings.catch_warnings(), kept_memory(),
                        mock.patch.object(identification, "train", sections.train)):
            stack.enter_context(manager)
        warnings.simplefilter("ignore")
        for owner, name, label in PARTS:
            if hasattr(owner, name):
                stack.enter_context(mock.patch.object(owner, name, sections.timed(getattr(owner, name), label)))
        data = Snapshots.of(x, t)
        identification.identify(data, fit_config(settings, data), 0, device)
    return sections


def table(dims: list[int], found: list[Sections], phase: str) -> list[str]:
    """Milliseconds a step by part, a column for each dimension."""
    each = [{path[1:]: 1e3 * s / f.steps[phase] for path, s in f.seconds.items() if path[0] == phase} for f in found]
    totals = [sum(parts.values()) for parts in each]
    names = sorted({name for parts in each for name in parts},
                   key=lambda name: (-max(sum(v for n, v in p.items() if n[:1] == name[:1]) for p in each), name))
    lines = [f"## A step of the {phase}, ms", "", f"| part | {' | '.join(f'd = {d}' for d in dims)} |",
             "|---" * (len(dims) + 1) + "|"]
    for name in names:
        values = [parts.get(name, 0.0) for parts in each]
        if any(v > LEAST * total for v, total in zip(values, totals, strict=True)):
            lines.append(f"| {', '.join(name) or 'all else'} | {' | '.join(f'{v:.2f}' for v in values)} |")
    return [*lines, f"| **all** | {' | '.join(f'{t:.1f}' for t in totals)} |", ""]


def main() -> None:
    """Prints and writes the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dims", type=int, nargs="+", default=[2, 5, 50])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--drift", default="time")
    parser.add_argument("-o", "--output", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    dims = arguments.dims
    lines = heading("Where the time of a step goes", f"python benchmarks/steps.py --dims {' '.join(map(str, dims))} "
                    f"--steps {arguments.steps} --drift {arguments.drift}")
    fit(2, arguments.drift, 20)
    found = [fit(dim, arguments.drift, arguments.steps) for dim in dims]
    for phase in [phase for phase in ("path", "nets") if found[0].steps[phase]]:
        lines += table(dims, found, phase)
    last = [sum(s for path, s in f.seconds.items() if path[0] == "last solves") for f in found]
    lines.append("After the steps, s: " + ", ".join(f"{s:.1f} for d = {d}" for s, d in zip(last, dims, strict=True)) + ".")
    publish(lines, arguments.output)


if __name__ == "__main__":
    main()

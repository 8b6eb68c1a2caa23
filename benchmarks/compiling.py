"""What compiling a step of the path costs and saves, on one thread of the CPU: after how many steps it has paid.

A step is the loss and its gradient as in a fit, 2048 points over the times; what optimiser and draws take is not in it. Its
time is the least of many, for other work runs on the machine. Nothing that was compiled before is used.

    python benchmarks/compiling.py [-o FILE]
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from fpsde.diffusion import ConstantDiffusion
from fpsde.fokker_planck import FokkerPlanckLoss, LossWeights
from fpsde.hollow import HollowNet
from fpsde.memory import kept_memory
from fpsde.mixture import initial_path

POINTS, REPEATS = 2048, 60
CASES = ((2, 16, 11, True), (5, 16, 5, True), (2, 32, 11, False), (20, 16, 11, True), (50, 16, 5, True))


def least_ms(step: Callable[[], None]) -> float:
    """Milliseconds."""
    seconds = []
    for _ in range(REPEATS):
        begin = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - begin)
    return 1e3 * min(seconds)


def row(dim: int, components: int, times: int, constant: bool) -> str:
    """A row of the table."""
    rng = np.random.default_rng(0)
    snapshots = [rng.standard_normal((400, dim)) for _ in range(times)]
    path = initial_path(snapshots, np.linspace(0, 1, times), components, rng, constant).float()
    model = FokkerPlanckLoss(path, HollowNet(dim, hidden=(4,)), ConstantDiffusion(torch.ones(dim)), not constant)
    weights = LossWeights(0.0, 0.0, 0.0, 1e-3 if constant else 0.0)
    batch = (torch.linspace(0, 1, times), torch.randn(times, POINTS // times, dim), torch.rand(8), torch.randn(8, 1, dim))
    compiled = torch.compile(model, dynamic=False)

    def step(function: Callable[..., object]) -> None:
        model.zero_grad(set_to_none=True)
        function(*batch, weights).loss.backward()  # type: ignore[attr-defined]

    with kept_memory():
        before = least_ms(lambda: step(model))
        begin = time.perf_counter()
        step(compiled)
        seconds = time.perf_counter() - begin
        after = least_ms(lambda: step(compiled))
    steps = f"{1e3 * seconds / (before - after):.0f}" if after < before else "never"
    drift = "time" if constant else "autonomous"
    return f"| {drift} | {dim} | {components} | {times} | {before:.1f} | {after:.1f} | {seconds:.0f} | {steps} |"


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", help="file for the table")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    head = "| drift | d | components | times | ms a step | compiled | s to compile | pays after steps |"
    lines = [head, "|" + 8 * "---|"]
    print("\n".join(lines), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder
        for case in CASES:
            torch.compiler.reset()
            lines.append(row(*case))
            print(lines[-1], flush=True)
    if arguments.output:
        Path(arguments.output).write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()

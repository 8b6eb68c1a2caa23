"""A large fit and a large simulation: how much memory they take, and whether it grows.

The fit is of points in many dimensions at five times, by the estimator; the memory of the process is read at every step.
Between phases the fit may come to want more, within one it must not. The simulation streams its paths to a file, every
number of paths in a process of its own.

    python benchmarks/load.py [--points 1000000] [--dim 20] [--steps 5000] [--drift time] [--paths 100000,1000000] [-o FILE]
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from types import TracebackType
from typing import Self
from unittest import mock

import numpy as np
import torch
from scores import heading, publish
from systems import Array

from fpsde import FokkerPlanckSDE

TIMES = np.linspace(0.0, 1.0, 5)
OUTPUTS, STEPS_OF_PATHS = 5, 20
MIB = 2**20


def resident() -> float:
    """The memory that the process has now, in MiB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / MIB


def peak() -> float:
    """The most that it has had, in MiB; getrusage would tell the most of the process that started this one."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


class Recorder:
    """In the place of the bar that shows progress: the memory at every step."""

    def __init__(self) -> None:
        self.steps: list[tuple[int, float]] = []

    def __call__(self, *_: object, **__: object) -> Self:
        return self

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        pass

    def update(self, step: int, _: object = None) -> None:
        """Takes note of a step."""
        self.steps.append((step, resident()))
        if step % 500 == 0:
            print(f"step {step}: {self.steps[-1][1]:.0f} MiB", flush=True)

    def stage(self, step: int, name: str) -> None:
        """Shows what begins."""
        print(f"step {step}, {name}: {resident():.0f} MiB", flush=True)


def snapshots(points: int, dim: int) -> tuple[Array, Array]:
    """A cloud whose pairs of coordinates turn, at five times."""
    rng, each = np.random.default_rng(0), points // len(TIMES)
    x = rng.standard_normal((each * len(TIMES), dim))
    for j, t in enumerate(TIMES):
        part = x[j * each:(j + 1) * each]
        part *= 0.4 + 0.2 * t
        part[:, 0::2] += 2 * np.cos(t)
        part[:, 1::2] += 2 * np.sin(t)
    return x, TIMES.repeat(each)


def fit(points: int, dim: int, steps: int, drift: str) -> list[str]:
    """Rows of what a fit takes."""
    x, t = snapshots(points, dim)
    before, begin, recorder = resident(), time.process_time(), Recorder()
    with mock.patch("fpsde.estimator.Progress", recorder):
        FokkerPlanckSDE(2, drift=drift, hidden=(16,), max_steps=steps, random_state=0, device="cpu").fit(x, t)
    taken, memory = time.process_time() - begin, dict(recorder.steps)
    lines = [f"{len(x)} points x {dim}, drift {drift}, {steps} steps in {taken:.0f} s of the processor. Before the fit, "
             f"with the data, {before:.0f} MiB; most {peak():.0f} MiB.", "", "| step | MiB |", "|---|---|"]
    lines += [f"| {step} | {memory[step]:.0f} |" for step in (1, 100, *range(500, steps + 1, 500)) if step in memory]
    late = [s for s in memory if s >= min(1000, steps // 2)]
    return [*lines, "", f"From step {late[0]} to the last: {memory[late[-1]] - memory[late[0]]:+.0f} MiB.", ""]


def stream(paths: int) -> None:
    """Prints the peak and the seconds of streaming so many paths to a file, after a small fit."""
    x, t = snapshots(500, 2)
    model = FokkerPlanckSDE(2, hidden=(16,), max_steps=20, random_state=0, device="cpu").fit(x, t)
    start, times = x[t == 0][np.arange(paths) % 100], np.linspace(0, 1, OUTPUTS)
    model.simulate(start[:10_000], times, time_step=1 / STEPS_OF_PATHS, random_state=0)
    before, begin = peak(), time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        out = model.simulate(start, times, time_step=1 / STEPS_OF_PATHS, random_state=0, out=f"{folder}/paths.npy")
        size, after = out.nbytes / MIB, peak()
        again = model.simulate(start[:5000], times, time_step=1 / STEPS_OF_PATHS, random_state=0)
        same = bool(np.array_equal(out[:, :5000], again)) and bool(np.isfinite(out[-1]).all())
    print(f"| {paths} | {size:.0f} | {start.nbytes / MIB:.0f} | {before:.0f} | {after:.0f} | "
          f"{time.process_time() - begin:.0f} | {'yes' if same else 'NO'} |")


def main() -> None:
    """Prints and writes the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, usual in {"points": 1_000_000, "dim": 20, "steps": 5000}.items():
        parser.add_argument(f"--{name}", type=int, default=usual)
    parser.add_argument("--drift", default="time", help="with commas, or none")
    parser.add_argument("--paths", default="100000,1000000")
    parser.add_argument("--stream", type=int, help="only this many paths, in this process")
    parser.add_argument("-o", "--output", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    if arguments.stream:
        stream(arguments.stream)
        return
    lines = heading("Load", f"python benchmarks/load.py --points {arguments.points} --dim {arguments.dim} --steps "
                    f"{arguments.steps} --drift {arguments.drift} --paths {arguments.paths}")
    lines += [f"{time.strftime('%Y-%m-%d')}.", ""]
    for drift in filter(None, arguments.drift.split(",")):
        lines += fit(arguments.points, arguments.dim, arguments.steps, drift)
    if arguments.paths:
        lines += [f"Paths in 2-D at {OUTPUTS} times, {STEPS_OF_PATHS} steps, streamed to a file; memory of the process in "
                  "MiB, before with a simulation of 10,000 paths.", "",
                  "| paths | file | start points | before | most | s | the first 5000 as in memory |",
                  "|---|---|---|---|---|---|---|"]
        for paths in arguments.paths.split(","):
            told = subprocess.run([sys.executable, __file__, "--stream", paths], capture_output=True, text=True, check=True)
            lines.append(told.stdout.strip())
            print(lines[-1], flush=True)
    publish(lines, arguments.output)


if __name__ == "__main__":
    main()

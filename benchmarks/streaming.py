"""Data larger than memory: a fit to a file of 10,000,000 points in 50 dimensions by a process that may have 8 GiB.

The file is what `numpy.savez` writes. The process is the command line's own, under a limit of its address space, which
holds everything: libraries, the memory map, and what is allocated. Beside its peak of resident memory, in which pages of
the file count that the system has at hand anyway, stands the peak of what is its own. The points are exact draws from the
law of an Ornstein-Uhlenbeck process whose coordinates turn in pairs: the likelihood of held-out points has the law's own
beside it.

    python benchmarks/streaming.py [--points 10000000] [--dim 50] [--gib 8] [-o FILE]
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fpsde import FokkerPlanckSDE

Array = NDArray[np.float64]

TIMES = np.linspace(0, 1, 5)
DECAY, TURN, NOISE, START = 0.8, 2.0, 0.6, 0.5
ROWS = 100_000
GIB = 2**30


def law(t: float, dim: int) -> tuple[Array, float]:
    """Mean, shape (d,), and variance of every coordinate."""
    angle, shrunk = TURN * t, np.exp(-DECAY * t)
    mean = 2 * shrunk * np.tile([np.cos(angle), np.sin(angle)], dim // 2)
    return mean, START**2 * shrunk**2 + NOISE**2 / (2 * DECAY) * (1 - shrunk**2)


def write(folder: Path, points: int, dim: int) -> Path:
    """The file, written without ever holding the points: their times come in random order."""
    rng = np.random.default_rng(0)
    place = rng.integers(len(TIMES), size=points)
    laws = [law(t, dim) for t in TIMES]
    means, widths = np.array([mean for mean, _ in laws]), np.sqrt([variance for _, variance in laws])
    x = np.lib.format.open_memmap(folder / "X.npy", "w+", np.float32, (points, dim))
    for first in range(0, points, ROWS):
        j = place[first:first + ROWS]
        x[first:first + ROWS] = means[j] + widths[j, None] * rng.standard_normal((len(j), dim), dtype=np.float32)
    x.flush()
    np.savez(folder / "data.npz", X=np.load(folder / "X.npy", mmap_mode="r"), t=TIMES[place])
    (folder / "X.npy").unlink()
    return folder / "data.npz"


def watch(process: subprocess.Popen[str], peaks: dict[str, int]) -> None:
    """Keeps the peaks of a process's memory, in bytes, while it runs."""
    while process.poll() is None:
        try:
            lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
        except OSError:
            return
        for name, value in (line.split(":") for line in lines if line.startswith(("VmHWM", "RssAnon", "VmPeak"))):
            peaks[name] = max(peaks.get(name, 0), int(value.split()[0]) * 1024)
        time.sleep(0.2)


def main() -> None:
    """Writes the file, fits to it under the limit, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=10_000_000)
    parser.add_argument("--dim", type=int, default=50)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--components", type=int, default=4)
    parser.add_argument("--drift", default="time")
    parser.add_argument("--gib", type=float, default=8.0, help="limit of the address space")
    parser.add_argument("-o", "--output", help="file for the table")
    arguments = parser.parse_args()
    limit = int(arguments.gib * GIB)
    with tempfile.TemporaryDirectory() as folder:
        begin = time.monotonic()
        data = write(Path(folder), arguments.points, arguments.dim)
        wrote, size = time.monotonic() - begin, data.stat().st_size
        command = [sys.executable, "-m", "fpsde", "fit", str(data), "--drift", arguments.drift, "--diffusion", "constant",
                   "--components", str(arguments.components), "--steps", str(arguments.steps), "--device", "cpu",
                   "-o", str(Path(folder) / "model.fpsde")]
        peaks: dict[str, int] = {}
        begin = time.monotonic()
        process = subprocess.Popen(command, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
                                   preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)))
        watcher = threading.Thread(target=watch, args=(process, peaks))
        watcher.start()
        code = process.wait()
        watcher.join()
        seconds = time.monotonic() - begin
        if code:
            raise SystemExit(f"the fit failed under a limit of {arguments.gib:g} GiB")
        model = FokkerPlanckSDE.load(Path(folder) / "model.fpsde", device="cpu")
    truth = np.mean([-0.5 * arguments.dim * (1 + np.log(2 * np.pi * law(t, arguments.dim)[1])) for t in TIMES])
    rows = [("points x coordinates", f"{arguments.points:,} x {arguments.dim}, {len(TIMES)} times"),
            ("file, float32", f"{size / GIB:.2f} GiB, written in {wrote:.0f} s"),
            ("the points alone in float64", f"{arguments.points * arguments.dim * 8 / GIB:.2f} GiB"),
            ("limit of the address space", f"{arguments.gib:g} GiB"),
            ("peak of the address space", f"{peaks['VmPeak'] / GIB:.2f} GiB"),
            ("peak of resident memory", f"{peaks['VmHWM'] / GIB:.2f} GiB"),
            ("of which the process's own", f"{peaks['RssAnon'] / GIB:.2f} GiB"),
            ("reading, checking and fitting", f"{seconds:.0f} s, drift {arguments.drift}, {arguments.steps} steps"),
            ("log-likelihood of held-out points, of the law itself",
             f"{model.summary_['held_out_likelihood']:.3f}, {truth:.3f}")]
    table = "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)])
    print(table)
    if arguments.output:
        Path(arguments.output).write_text(table + "\n")


if __name__ == "__main__":
    main()

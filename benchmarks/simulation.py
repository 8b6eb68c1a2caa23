"""What stepping by torchsde costs over a hand-written Euler-Maruyama loop around the same nets.

A fitted equation of the default size in d dimensions, paths from one snapshot, fixed steps within one interval. The loops
draw their noise at every step and keep the end only, all paths at once or as many at once as the package takes. Medians
over interleaved rounds, in seconds of the processor, and ratios within one round. The most memory is that of the whole
process before and after simulate has run, with several outputs.

    python benchmarks/simulation.py [--paths 100000] [--dim 5] [--steps 200] [--rounds 3] [-o FILE]
"""

from __future__ import annotations

import argparse
import math
import resource
import time
from pathlib import Path

import numpy as np
import torch
from scores import heading, publish
from torch import Tensor

from fpsde.coordinates import Coordinates
from fpsde.diffusion import StateDiffusion
from fpsde.hollow import HollowNet
from fpsde.memory import kept_memory
from fpsde.sde import FittedSDE
from fpsde.simulation import BLOCK

OUTPUTS = 21


def by_hand(sde: FittedSDE, z: Tensor, steps: int, at_once: int) -> Tensor:
    """The ends of paths in dimensionless coordinates, one unit of time after z."""
    h, ends = 1 / steps, []
    for part in z.split(at_once):
        for n in range(steps):
            t = torch.tensor(n * h)
            part = part + sde.drift(t, part) * h + sde.diffusion(t, part) * (math.sqrt(h) * torch.randn_like(part))
        ends.append(part)
    return torch.cat(ends)


def main() -> None:
    """Prints and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, usual in {"paths": 100_000, "dim": 5, "steps": 200, "rounds": 3}.items():
        parser.add_argument(f"--{name}", type=int, default=usual)
    parser.add_argument("-o", "--output", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    dim, steps = arguments.dim, arguments.steps
    lines = heading("Simulation", f"python benchmarks/simulation.py --paths {arguments.paths} --dim {dim} --steps {steps} "
                    f"--rounds {arguments.rounds}", ("torch", "torchsde"))
    sde = FittedSDE(HollowNet(dim), StateDiffusion(HollowNet(dim), 0.5 * torch.ones(dim)),
                    Coordinates(torch.zeros(dim), torch.ones(dim), torch.tensor([0.0, 1.0])))
    x = torch.randn(arguments.paths, dim)
    ends = torch.tensor([0.0, 1.0])
    tasks = {
        "by hand, all at once": lambda: by_hand(sde, x, steps, arguments.paths),
        f"by hand, {4 * BLOCK} at once": lambda: by_hand(sde, x, steps, 4 * BLOCK),
        "simulate, euler": lambda: sde.paths(x, ends, 1 / steps, 0),
        "simulate, milstein": lambda: sde.paths(x, ends, 1 / steps, 0, "milstein"),
    }
    taken: dict[str, list[float]] = {name: [] for name in tasks}
    with kept_memory(), torch.no_grad():
        for _ in range(arguments.rounds):
            for name, task in tasks.items():
                begin = time.process_time()
                task()
                taken[name].append(time.process_time() - begin)
                print(f"{name}: {taken[name][-1]:.1f} s", flush=True)
    first = "by hand, all at once"
    lines += [f"{arguments.paths} paths x {dim} dimensions x {steps} steps. Goal: simulate with Euler-Maruyama at most 1.1 "
              "times a loop by hand.", "", "| | s | over the loop, all at once |", "|---|---|---|"]
    lines += [f"| {name} | {np.median(values):.2f} | {np.median(np.array(values) / np.array(taken[first])):.2f} |"
              for name, values in taken.items()]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    path = sde.paths(x, torch.linspace(0, 1, OUTPUTS), 1 / OUTPUTS, 0)
    more = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1e3
    lines += ["", f"{OUTPUTS} outputs, {path.numel() * path.element_size() / 1e6:.0f} MB: the most memory of the process "
              f"grew from {before / 1e3:.0f} to {before / 1e3 + more:.0f} MB."]
    publish(lines, arguments.output)


if __name__ == "__main__":
    main()

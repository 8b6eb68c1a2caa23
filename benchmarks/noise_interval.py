"""How often the interval of the noise level holds the truth, and how its standard errors compare with the errors.

Sets of data from one 2-D rotating Ornstein-Uhlenbeck process, a fit of each with the drift autonomous. The truth, as a
multiple of the fitted level: geometric mean over coordinates and points.

    python benchmarks/noise_interval.py [--sets 20] [--snapshots 6] [--points 300] [--steps 100] [-o FILE]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from scores import heading, publish, relative_error
from systems import CORE

from fpsde import FokkerPlanckSDE

SYSTEM = CORE[0]


def main() -> None:
    """Prints and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("sets", 20), ("snapshots", 6), ("points", 300), ("steps", 100)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("-o", "--output", type=Path)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    told = " ".join(f"--{name} {getattr(chosen, name)}" for name in ("sets", "snapshots", "points", "steps"))
    lines = heading("The interval of the noise level", f"python benchmarks/noise_interval.py {told}")
    lines += [f"{SYSTEM.name}, {chosen.snapshots} snapshots of {chosen.points} points. `held`: sets whose interval (95 %) "
              "holds the truth. Errors in %, root mean square over sets, beside those that `identifiability()` expects.",
              "", "| noise | held | mean width | truth over fit | noise: error | standard error | drift: error | "
              "standard error |", "|" + 8 * "---|"]
    for diffusion in ("constant", "state"):
        rows = []
        for seed in range(chosen.sets):
            x, t = SYSTEM.snapshots(np.random.default_rng(seed), chosen.snapshots, chosen.points)
            model = FokkerPlanckSDE(4, drift="autonomous", diffusion=diffusion, max_steps=chosen.steps, random_state=seed,
                                    device="cpu").fit(x, t)
            found, g, f = model.identifiability(), model.diffusion(x, 0.0), model.drift(x, 0.0)
            ratio = float(np.exp(np.log(SYSTEM.diffusion(x) / g).mean()))
            low, high = found.noise_interval
            rows.append((low <= ratio <= high, high - low, ratio, relative_error(g, SYSTEM.diffusion(x)), found.noise_error,
                         relative_error(f, SYSTEM.drift(x)), found.drift_error))
            print(diffusion, seed, *(f"{value:.3f}" for value in (low, high, *rows[-1][2:])), flush=True)
        held, width, ratio, *errors = np.array(rows, dtype=float).T
        cells = " | ".join(f"{100 * np.sqrt((error**2).mean()):.1f}" for error in errors)
        lines.append(f"| {diffusion} | {held.sum():.0f} of {len(held)} | {width.mean():.2f} | {ratio.mean():.3f} +- "
                     f"{ratio.std():.3f} | {cells} |")
    publish(lines, chosen.output)


if __name__ == "__main__":
    main()

"""Learned against true noise over a factor of a hundred: the 2-D rotating Ornstein-Uhlenbeck process, its g scaled.

Eleven unpaired snapshots of 500 points. Two fits of each data set, with one g for each coordinate and with a free-form
g(x), beside maximum likelihood with the true parametric form (`likelihood.py`). What is shown of g(x) is its root mean
square over points of the true density, and how far it varies over them.

    python benchmarks/noise_range.py [--steps 1000] [-o DIRECTORY]
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
import torch
from likelihood import maximum_likelihood
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator, PercentFormatter
from scores import heading, relative_error
from systems import Array, rotating

from fpsde import FokkerPlanckSDE

SCALES = np.geomspace(0.05, 5.0, 7)
WAYS = {"maximum likelihood": "limit", "constant g": "constant", "free-form g(x)": "state"}
LOOKS: dict[str, dict[str, Any]] = {
    "maximum likelihood": {"color": "0.6", "marker": "_", "markersize": 15, "markeredgewidth": 2.5},
    "constant g": {"color": "#0072b2", "marker": "o", "markersize": 8.5},
    "free-form g(x)": {"color": "#d55e00", "marker": "D", "markersize": 4.5}}
# Side by side in the picture of deviations, so that no line hides a mark.
SHIFTS = {"maximum likelihood": 1.0, "constant g": 0.95, "free-form g(x)": 1.05}


class Estimate(NamedTuple):
    """What one way found at one scale."""

    level: Array
    """Root mean square of g over the true density, shape (2,)."""
    range: Array
    """Its 5 % and 95 % quantiles there, shape (2, 2)."""
    drift: float
    diffusion: float
    """Relative errors."""


def estimates(scale: float, points: int, steps: int, seed: int) -> dict[str, Estimate]:
    """All ways on one data set."""
    system, rng = rotating(scale), np.random.default_rng(seed)
    x, t = system.snapshots(rng, 11, points)
    fresh = np.concatenate(system.run(1000, np.linspace(0, system.duration, 41), rng))
    found = {}
    for name, way in WAYS.items():
        fields = maximum_likelihood(system, x, t) if way == "limit" else None
        if fields is None:
            model = FokkerPlanckSDE(8, drift="autonomous", diffusion=way, max_steps=steps, random_state=seed).fit(x, t)
            f, g = model.drift(fresh, 0.0), model.diffusion(fresh, 0.0)
        else:
            f, g = (field(fresh) for field in fields)
        found[name] = Estimate(np.sqrt((g**2).mean(0)), np.quantile(g, [0.05, 0.95], axis=0),
                               relative_error(f, system.drift(fresh)), relative_error(g, system.diffusion(fresh)))
    return found


def draw(results: list[dict[str, Estimate]], path: Path, points: int) -> None:
    """Learned against true noise, and their ratio."""
    matplotlib.use("Agg")
    plt.rcParams.update({"font.size": 11, "axes.spines.top": False, "axes.spines.right": False})
    true = np.array([rotating(s).noise for s in SCALES])
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.6), constrained_layout=True)
    ends = np.array([true.min() / 1.5, true.max() * 1.5])
    left.plot(ends, ends, color="0.75", lw=1, zorder=0)
    left.text(0.06, 0.085, "learned = true", rotation=41, color="0.45", fontsize=9, ha="center")
    right.axhline(0, color="0.75", lw=1, zorder=0)
    for name, look in LOOKS.items():
        levels = np.array([r[name].level for r in results])
        ranges = np.array([r[name].range for r in results])
        for i in range(2):
            # Filled for the first coordinate, hollow for the second.
            face = look["color"] if i == 0 else "white"
            seen = levels[:, i], ranges[:, 0, i], ranges[:, 1, i]
            for axes, at, (value, low, high) in ((left, true[:, i], seen), (right, true[:, i] * SHIFTS[name],
                                                                            [z / true[:, i] - 1 for z in seen])):
                if name == "free-form g(x)":
                    axes.vlines(at, low, high, color=look["color"], lw=1.2, alpha=0.6)
                axes.plot(at, value, ls="", mfc=face, label=name if i == 0 else None, **look)
    decorate(left, right, ends, points)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def decorate(left: Axes, right: Axes, ends: Array, points: int) -> None:
    """Scales, labels and legend."""
    for axes in (left, right):
        axes.set(xscale="log", xlim=ends, xlabel="true noise g")
        axes.xaxis.set_major_formatter("{x:g}")
    left.set(yscale="log", ylim=ends, ylabel="learned noise g", title="Learned against true noise")
    left.yaxis.set_major_formatter("{x:g}")
    right.set(ylabel="learned / true - 1, logarithmic beyond 10 %",
              title=f"Relative deviation, 11 snapshots of {points} points")
    # Even about zero, logarithmic outside a tenth: where the noise is too small to be seen the deviations are large.
    right.set_yscale("symlog", linthresh=0.1, linscale=1.5)
    right.set_yticks([-0.5, -0.2, -0.1, -0.05, 0.0, 0.05, 0.1, 0.2, 0.5, 1.0])
    right.yaxis.set_minor_locator(NullLocator())
    right.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    right.set_ylim(-0.6, 1.1)
    left.legend(frameon=False, loc="lower right", title="filled: x, hollow: y; lines: 5 to 95 % of g(x)", title_fontsize=9,
                fontsize=10)


def row(scale: float, result: dict[str, Estimate]) -> str:
    """What all ways found at one scale."""
    cells = [", ".join(f"{v:.3g}" for v in rotating(scale).noise)]
    for e in result.values():
        cells += [", ".join(f"{v:.3g}" for v in e.level), f"{100 * e.diffusion:.1f}", f"{100 * e.drift:.1f}"]
    return "| " + " | ".join(cells) + " |"


def table(results: list[dict[str, Estimate]]) -> list[str]:
    """The rows in markdown."""
    names = list(WAYS)
    lines = ["| true g | " + " | ".join(f"{name}: g | error | drift" for name in names) + " |",
             "|---|" + "---|---|---|" * len(names)]
    return lines + [row(scale, result) for scale, result in zip(SCALES, results, strict=True)]


def main() -> None:
    """Fits, and writes picture and table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=500)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-o", "--output", type=Path, default=Path(__file__).resolve().parent / "results")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    lines = heading("Noise over a factor of a hundred", f"python benchmarks/noise_range.py --points {arguments.points} "
                    f"--steps {arguments.steps} --seed {arguments.seed}")
    results, begin = [], time.monotonic()
    for scale in SCALES:
        results.append(estimates(scale, arguments.points, arguments.steps, arguments.seed))
        print(row(scale, results[-1]), f"{time.monotonic() - begin:.0f} s", flush=True)
    lines += ["2-D rotating Ornstein-Uhlenbeck process, its noise scaled. g: root mean square over the true density, both "
              "coordinates; relative RMS errors of g and of the drift in %.", "", *table(results), "",
              "![Learned against true noise](noise_range.png)"]
    (arguments.output / "noise_range.md").write_text("\n".join(lines) + "\n")
    draw(results, arguments.output / "noise_range.png", arguments.points)


if __name__ == "__main__":
    main()

"""The same fit in float32, as fpsde trains, and in float64, on data that are hard on floating point.

Both fits draw the same random numbers. What is compared is the mean log-likelihood of as many new points, in float64. It is
measured in the data's own standard deviations (over all times), so that the unit of the data does not enter, and the
difference is put in relation to the larger of its size and the number of coordinates d, the log-likelihood being near 0 for
some clouds. The goal is 5 %.

    python benchmarks/numerics.py [--only "Cauchy; counts"] [--steps 300] [-o FILE]
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from scores import heading, matches, publish
from systems import Array

from fpsde import FokkerPlanckSDE, identification
from fpsde.density import GaussianMixturePath

TIMES = (0.0, 0.5, 1.0, 1.5)
GOAL = 0.05


@dataclass(frozen=True)
class Hard:
    """A population that floating point has trouble with: points of shape (n, d) at each of four times."""

    name: str
    draw: Callable[[np.random.Generator, int, float], Array]
    first: float = 0.0
    unit: float = 1.0
    """Of time."""
    settings: tuple[tuple[str, Any], ...] = ()

    def snapshots(self, seed: int, n: int) -> tuple[Array, Array]:
        """Points and times, n a snapshot."""
        rng = np.random.default_rng(seed)
        times = self.first + self.unit * np.array(TIMES)
        return np.concatenate([self.draw(rng, n, s) for s in TIMES]), np.repeat(times, n)


def turning(rng: np.random.Generator, n: int, t: float) -> Array:
    """A cloud that turns and spreads, of order one."""
    centre = 2 * np.array([np.cos(t), np.sin(t)])
    return centre + (0.4 + 0.2 * t) * rng.standard_normal((n, 2))


def modes(rng: np.random.Generator, n: int, t: float, count: int, apart: float) -> Array:
    """Equal modes on a line, so many of their standard deviations apart, that drift together."""
    place = apart * rng.integers(count, size=n) + t
    return np.stack([place + rng.standard_normal(n), 0.5 * t + rng.standard_normal(n)], 1)


def with_outliers(rng: np.random.Generator, n: int, t: float) -> Array:
    """One point of a hundred is a thousand standard deviations away."""
    x = turning(rng, n, t)
    x[::100] *= 1000
    return x


def collinear(rng: np.random.Generator, n: int, t: float) -> Array:
    """The second coordinate is the first but for a millionth of its spread."""
    first = turning(rng, n, t)[:, 0]
    return np.stack([first, first + 1e-6 * rng.standard_normal(n)], 1)


def narrow_start(rng: np.random.Generator, n: int, t: float) -> Array:
    """From a cloud a hundred-thousandth as wide as the last."""
    return np.array([t, 0.0]) + max(1e-5, t) * rng.standard_normal((n, 2))


ROWS = [
    Hard("as it should be", turning),
    Hard("scale 1e-20", lambda r, n, t: 1e-20 * turning(r, n, t)),
    Hard("scale 1e20", lambda r, n, t: 1e20 * turning(r, n, t)),
    Hard("scales 1e-8 and 1e8", lambda r, n, t: turning(r, n, t) * np.array([1e-8, 1e8])),
    Hard("offset of 1e8 standard deviations", lambda r, n, t: turning(r, n, t) + 1e8),
    Hard("times from 1e6 on, 1e-3 apart", turning, 1e6, 1e-3),
    Hard("Student, 2 degrees", lambda r, n, t: turning(r, n, t) + r.standard_t(2, (n, 2))),
    Hard("Cauchy, clipped at 1e4", lambda r, n, t: turning(r, n, t) + r.standard_cauchy((n, 2)).clip(-1e4, 1e4)),
    Hard("log-normal, sigma 2", lambda r, n, t: np.exp(2 * r.standard_normal((n, 2)) + t)),
    Hard("the same, positive", lambda r, n, t: np.exp(2 * r.standard_normal((n, 2)) + t), settings=(("positive", True),)),
    Hard("two modes, 1000 apart", lambda r, n, t: modes(r, n, t, 2, 1000.0)),
    Hard("ten modes, 20 apart", lambda r, n, t: modes(r, n, t, 10, 20.0)),
    Hard("all but collinear", collinear),
    Hard("counts with many ties", lambda r, n, t: r.poisson(1 + t, (n, 2)).astype(float)),
    Hard("every point fifty times", lambda r, n, t: turning(r, -(-n // 50), t).repeat(50, 0)[:n]),
    Hard("outliers of 1000", with_outliers),
    Hard("a start of 1e-5", narrow_start),
    Hard("three far of all scales, d = 6", lambda r, n, t: np.concatenate(
        [turning(r, n, t) * s + s for s in (1e-12, 1.0, 1e12)], 1)),
]


def drawn_in_single(*shape: Any, dtype: torch.dtype | None = None, _draw: Any = torch.randn,
                    **options: Any) -> torch.Tensor:
    """Draws the same numbers whatever the precision that is asked for."""
    return _draw(*shape, **options).to(dtype or torch.get_default_dtype())


class DoubleFit(identification._Fit):
    """A fit whose path, nets and points are in float64."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.t, self.model = self.t.double(), self.model.double()
        for batches in (self.kept, self.held):
            batches.x = batches.x.double()

    def _initial_path(self) -> GaussianMixturePath:
        return super()._initial_path().double()


def log_likelihood(row: Hard, drift: str, dtype: str, steps: int, points: int) -> tuple[float, float]:
    """Mean log-likelihood of new points, in standard deviations of the data, and seconds of the fit."""
    x, t = row.snapshots(0, points)
    new_x, new_t = row.snapshots(1, points)
    begin, settings = time.process_time(), dict(row.settings)
    fit = mock.patch.object(identification, "_Fit", DoubleFit) if dtype == "float64" else nullcontext()
    with fit, mock.patch.object(torch, "randn", drawn_in_single):
        model = FokkerPlanckSDE(4, drift=drift, hidden=(16,), max_steps=steps, random_state=0, device="cpu",
                                **settings).fit(x, t)
    taken = time.process_time() - begin
    assert next(model.sde_.drift.parameters()).dtype == getattr(torch, dtype)
    # Paths from the fit too must be numbers.
    ends = model.simulate(x[t == t.min()][:100], [t.min(), t.max()], random_state=0)
    if not (np.isfinite(ends).all() and np.isfinite(model.drift(x, t)).all() and np.isfinite(model.diffusion(x, t)).all()):
        raise ArithmeticError(f"{row.name}, {dtype}: not finite")
    found = model.score_samples(new_x, new_t)
    # With positive coordinates the density is that of their logarithm: its unit does not depend on the data's.
    unit = np.log(x).std(0) if settings else x.std(0)
    volume = np.log(new_x).sum(1).mean() if settings else 0.0
    return float(found.mean() + np.log(unit).sum() + volume), taken


def apart(single: float, double: float, dim: int) -> float:
    """The difference in relation to the larger of the log-likelihood's size and the number of coordinates."""
    return abs(single - double) / max(abs(double), dim)


def main() -> None:
    """Prints and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="parts of names, with ;")
    parser.add_argument("--drifts", default="autonomous,time")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--points", type=int, default=400)
    parser.add_argument("-o", "--output", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    lines = heading("Float32 against float64", f"python benchmarks/numerics.py --steps {arguments.steps} --points "
                    f"{arguments.points} --drifts {arguments.drifts}")
    lines += [f"{time.strftime('%Y-%m-%d')}. Mean log-likelihood of {4 * arguments.points} new points in the data's "
              "standard deviations, and the difference over the larger of its size and d.", "",
              "| data | drift | float32 | float64 | difference, % | s | s in float64 |", "|---|---|---|---|---|---|---|"]
    for row in ROWS:
        for drift in arguments.drifts.split(",") if matches(row.name, arguments.only) else ():
            (single, taken), (double, more) = (
                log_likelihood(row, drift, dtype, arguments.steps, arguments.points) for dtype in ("float32", "float64"))
            off = 100 * apart(single, double, row.snapshots(0, 4)[0].shape[1])
            lines.append(f"| {row.name} | {drift} | {single:.4f} | {double:.4f} | {off:.2f} | {taken:.1f} | {more:.1f} |")
            print(lines[-1], flush=True)
    publish(lines, arguments.output)


if __name__ == "__main__":
    main()

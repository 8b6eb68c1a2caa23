"""The wide recovery table: many systems, dimensions, snapshots and points, each beside what the data allow.

A row's fits are free-form, f(x) and g(x). Where g is constant a second fit is told it. At times midway between snapshots,
which no fit has seen, points of the first snapshot are simulated and compared with fresh draws of the truth by exact W1,
500 points each, coordinates divided by their standard deviation in the data; the floor is that of two such sets of draws.
The limit is maximum likelihood with the true parametric form (`likelihood.py`), on the same data and on further sets of the
same kind: with a handful of parameters a single one may come close to the truth by chance. `linear moments` is the naive
baseline of the core table.
"""

from __future__ import annotations

import argparse
import resource
import time
import warnings
from dataclasses import dataclass

import numpy as np
from baseline import linear_baseline
from likelihood import maximum_likelihood
from scores import matches, relative_error, spread
from systems import WIDE, Array, System

from fpsde import FokkerPlanckSDE
from fpsde.metrics import wasserstein

__all__ = ["wide_table"]

COMPARED = 500
LIMIT_SETS = 5


@dataclass(frozen=True)
class Row:
    """What one seed gave; None where there is nothing to tell."""

    drift: float
    diffusion: float
    given: float | None
    unseen: float | None
    floor: float
    linear_drift: float
    linear_diffusion: float
    """Of the linear baseline."""
    seconds: float
    remarks: tuple[str, ...]


def unseen(model: FokkerPlanckSDE, system: System, x: Array, t: Array,
           rng: np.random.Generator) -> tuple[float | None, float]:
    """Mean W1 at the times midway between snapshots, None if paths become infinite, and its floor."""
    times, first, scale = np.unique(t), x[t == t.min()], x.std(0)
    middle = (times[1:] + times[:-1]) / 2
    draws = system.run(2 * COMPARED, middle, rng)
    floor = [wasserstein(y[:COMPARED] / scale, y[COMPARED:] / scale) for y in draws]
    start = first[rng.choice(len(first), COMPARED, replace=len(first) < COMPARED)]
    try:
        paths = model.simulate(start, np.concatenate([times[:1], middle]), random_state=0)[1:]
    except ArithmeticError:
        return None, float(np.mean(floor))
    return float(np.mean([wasserstein(y / scale, z[:COMPARED] / scale) for y, z in zip(paths, draws, strict=True)])), \
        float(np.mean(floor))


def draw(system: System, snapshots: int, points: int, rng: np.random.Generator) -> tuple[Array, Array, Array]:
    """The snapshots, their times and fresh points to compare at."""
    x, t = system.snapshots(rng, snapshots, points)
    return x, t, np.concatenate(system.run(1000, np.linspace(0, system.duration, 41), rng))


def limit(system: System, snapshots: int, points: int, sets: int) -> list[tuple[float, float]]:
    """Errors of drift and diffusion by maximum likelihood for so many sets of data; sets without a maximum are left out."""
    errors = []
    for seed in range(sets if system.form else 0):
        x, t, fresh = draw(system, snapshots, points, np.random.default_rng(seed))
        try:
            fields = maximum_likelihood(system, x, t)
        except ArithmeticError as error:
            print(f"{system.name}, {system.dim}-D, set {seed}: {error}", flush=True)
            continue
        if fields is not None:
            errors.append((relative_error(fields[0](fresh), system.drift(fresh)),
                           relative_error(fields[1](fresh), system.diffusion(fresh))))
    return errors


def measure(system: System, seed: int, snapshots: int, points: int, arguments: argparse.Namespace) -> Row:
    """One seed: data and fits."""
    rng = np.random.default_rng(seed)
    x, t, fresh = draw(system, snapshots, points, rng)
    f, g = system.drift(fresh), system.diffusion(fresh)
    options = {"drift": "autonomous", "max_steps": arguments.steps, "random_state": seed}
    begin = time.monotonic()
    model = FokkerPlanckSDE(arguments.components, diffusion=arguments.diffusion, **options).fit(x, t)
    seconds, given, remarks = time.monotonic() - begin, None, []
    if "moment_misfit" not in model.summary_:
        remarks.append("by gradient descent")
    if system.noise and not arguments.no_given:
        told = FokkerPlanckSDE(arguments.components, diffusion=list(system.noise), **options).fit(x, t)
        given = relative_error(told.drift(fresh, 0.0), f)
    linear = linear_baseline(x, t)
    distance, floor = unseen(model, system, x, t, rng)
    if distance is None:
        remarks.append("paths became infinite")
    return Row(relative_error(model.drift(fresh, 0.0), f), relative_error(model.diffusion(fresh, 0.0), g), given, distance,
               floor, relative_error(linear[0](fresh), f), relative_error(linear[1](fresh), g), seconds, tuple(remarks))


def wide_table(arguments: argparse.Namespace) -> list[str]:
    """The lines of the table."""
    form = "free-form g(x)" if arguments.diffusion == "state" else "constant g"
    lines = [f"Relative RMS error in %, median over seeds (least to largest); unpaired snapshots, free-form f(x), {form}. "
             "`g known`: drift of a fit that is told a constant g. `limit`: maximum likelihood with the true parametric "
             f"form, over at least {LIMIT_SETS} sets of data; empty where it cannot be had.", "",
             "| system | d | snapshots | points | drift | limit | diffusion | limit | drift, g known | W1 at unseen times "
             "| floor | linear moments: drift | diffusion | s per fit | |", "|" + 15 * "---|"]
    print("\n".join(lines), flush=True)
    for system in WIDE:
        if not matches(f"{system.name}, {system.dim}-D", arguments.only):
            continue
        for snapshots in arguments.snapshots:
            for points in arguments.points:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    rows = [measure(system, seed, snapshots, points, arguments) for seed in range(arguments.seeds)]
                best = limit(system, snapshots, points, max(LIMIT_SETS, arguments.seeds))
                lines.append(line(system, snapshots, points, rows, best))
                print(lines[-1], flush=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    lines += ["", f"Most memory that the process held: {peak:.1f} GiB."]
    print("\n".join(lines[-2:]))
    return lines


def line(system: System, snapshots: int, points: int, rows: list[Row], best: list[tuple[float, float]]) -> str:
    """A row of the table."""
    remarks = [f"seed {seed}: {remark}" for seed, row in enumerate(rows) for remark in row.remarks]
    if system.form and len(best) < LIMIT_SETS:
        remarks.append(f"limit from {len(best)} sets of data")

    def shown(name: str) -> str:
        return spread([getattr(row, name) for row in rows], short=True)

    cells = [system.name, system.dim, snapshots, points, shown("drift"), spread([b[0] for b in best]), shown("diffusion"),
             spread([b[1] for b in best]), shown("given"), spread([r.unseen for r in rows], 1.0, 2, short=True),
             spread([r.floor for r in rows], 1.0, 2, short=True), shown("linear_drift"), shown("linear_diffusion"),
             f"{np.mean([r.seconds for r in rows]):.0f}", "; ".join(remarks)]
    return "| " + " | ".join(map(str, cells)) + " |"

"""The wide recovery table: many systems, dimensions, snapshots and points, each beside what the data allow.

A row's fits are free-form, f(x) and g(x); a second fit of the same data is told g. At times midway between snapshots,
which no fit has seen, points of the first snapshot are simulated and compared with fresh draws of the truth by exact W1,
500 points each, coordinates divided by their standard deviation in the data; the floor is that of two such sets of draws.
The limit is maximum likelihood with the true parametric form (`likelihood.py`), on the same data and on further sets of the
same kind: with a handful of parameters a single one may come close to the truth by chance. `linear moments` is the naive
baseline of the core table.

All rows together take many hours. What each seed gives can be kept in a file of one JSON object a line, from which further
runs, several at a time too, take what is there.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import resource
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from baseline import linear_baseline
from likelihood import Fields, maximum_likelihood
from scores import matches, relative_error, spread
from systems import WIDE, Array, System

from fpsde import FokkerPlanckSDE
from fpsde.metrics import wasserstein

__all__ = ["wide_table"]

COMPARED = 500
LIMIT_SETS = 5


@dataclass(frozen=True)
class Errors:
    """Of one way to find drift and diffusion, for one seed; None where there is nothing to tell."""

    drift: float
    diffusion: float
    unseen: float | None = None
    """W1 at unseen times."""
    floor: float | None = None
    seconds: float | None = None
    """Of the processor."""
    remark: str = ""


class Draws:
    """One seed: the snapshots, fresh points to compare at, and fresh draws of the truth midway between the snapshots."""

    def __init__(self, system: System, seed: int, snapshots: int, points: int) -> None:
        rng = np.random.default_rng(seed)
        self.x, self.t = system.snapshots(rng, snapshots, points)
        self.system, self.rng = system, rng
        self.fresh = np.concatenate(system.run(1000, np.linspace(0, system.duration, 41), rng))

    def errors(self, fields: Fields) -> tuple[float, float]:
        """Of a drift and a diffusion."""
        truth = (self.system.drift, self.system.diffusion)
        return tuple(relative_error(g(self.fresh), f(self.fresh)) for g, f in zip(fields, truth, strict=True))

    @functools.cached_property
    def truth(self) -> tuple[Array, list[Array], Array]:
        """Times midway between snapshots, twice as many draws there as are compared, and where predictions start."""
        times, first = np.unique(self.t), self.x[self.t == self.t.min()]
        middle = (times[1:] + times[:-1]) / 2
        draws = self.system.run(2 * COMPARED, middle, self.rng)
        return middle, draws, first[self.rng.choice(len(first), COMPARED, replace=len(first) < COMPARED)]

    def unseen(self, model: FokkerPlanckSDE) -> tuple[float | None, float]:
        """Mean W1 at the times midway between snapshots, None if paths become infinite, and its floor."""
        (middle, draws, start), scale = self.truth, self.x.std(0)
        floor = float(np.mean([wasserstein(y[:COMPARED] / scale, y[COMPARED:] / scale) for y in draws]))
        try:
            paths = model.simulate(start, np.concatenate([[self.t.min()], middle]), random_state=0)[1:]
        except ArithmeticError:
            return None, floor
        apart = [wasserstein(y / scale, z[:COMPARED] / scale) for y, z in zip(paths, draws, strict=True)]
        return float(np.mean(apart)), floor


def fitted(draws: Draws, seed: int, arguments: argparse.Namespace, told: bool) -> Errors:
    """A fit of ours, told the diffusion or not."""
    diffusion = (draws.system.told or list(draws.system.noise)) if told else arguments.diffusion
    begin = time.process_time()
    model = FokkerPlanckSDE(arguments.components, drift="autonomous", diffusion=diffusion, max_steps=arguments.steps,
                            random_state=seed).fit(draws.x, draws.t)
    seconds = time.process_time() - begin
    remarks = [] if "moment_misfit" in model.summary_ else ["by gradient descent"]
    drift, noise = draws.errors((lambda x: model.drift(x, 0.0), lambda x: model.diffusion(x, 0.0)))
    distance, floor = draws.unseen(model)
    remarks += ["paths became infinite"] if distance is None else []
    return Errors(drift, noise, distance, floor, seconds, ", ".join(remarks))


def most_likely(draws: Draws) -> Errors | None:
    """Maximum likelihood with the true form; None if its likelihood cannot be had or no maximum is found."""
    try:
        fields = maximum_likelihood(draws.system, draws.x, draws.t)
    except ArithmeticError:
        return None
    return None if fields is None else Errors(*draws.errors(fields))


def kept(path: Path | None, key: list[Any], make: Callable[[], Errors | None], only: bool = False) -> Errors | None:
    """What a file holds under a key; made and added to it if it is not there, or None if only what is there is wanted."""
    if path is not None and path.is_file():
        for entry in map(json.loads, path.read_text().splitlines()):
            if entry["key"] == key:
                return entry["errors"] and Errors(**entry["errors"])
    if only:
        return None
    errors = make()
    if path is not None:
        with path.open("a") as file:
            file.write(json.dumps({"key": key, "errors": errors and asdict(errors)}) + "\n")
    return errors


def wide_table(arguments: argparse.Namespace) -> list[str]:
    """The lines of the table."""
    form = "free-form g(x)" if arguments.diffusion == "state" else "constant g"
    lines = [f"Relative RMS error in %, median over seeds (least to largest); unpaired snapshots, free-form f(x), {form}. "
             "`g known`: of a fit that is told g. `limit`: maximum likelihood with the true parametric "
             f"form, over at least {LIMIT_SETS} sets of data; empty where it cannot be had.", "",
             "| system | d | snapshots | points | seeds | drift | g known | limit | diffusion | limit | W1 at unseen times "
             "| g known | floor | linear moments: drift | diffusion | CPU s | |", "|" + 17 * "---|"]
    print("\n".join(lines), flush=True)
    for system in WIDE:
        if matches(f"{system.name}, {system.dim}-D", arguments.only):
            for snapshots, points in itertools.product(arguments.snapshots, arguments.points):
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    row = line(system, snapshots, points, arguments)
                if row:
                    lines.append(row)
                    print(row, flush=True)
    if not arguments.stored:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        lines += ["", f"Most memory that the process held: {peak:.1f} GiB."]
        print("\n".join(lines[-2:]))
    return lines


def line(system: System, snapshots: int, points: int, arguments: argparse.Namespace) -> str:
    """A row of the table; empty if there is no fit of ours."""
    settings = [arguments.diffusion, arguments.steps, arguments.components]

    draws = functools.cache(lambda seed: Draws(system, seed, snapshots, points))

    def measured(what: str, sets: int, way: Callable[[Draws, int], Errors | None], *settings: Any) -> dict[int, Errors]:
        found = {seed: kept(arguments.store, [system.name, system.dim, snapshots, points, what, seed, *settings],
                            lambda seed=seed: way(draws(seed), seed), arguments.stored) for seed in range(sets)}
        return {seed: errors for seed, errors in found.items() if errors is not None}

    free = measured("free", arguments.seeds, lambda draws, seed: fitted(draws, seed, arguments, told=False), *settings)
    told = measured("told", 0 if arguments.no_given else arguments.seeds,
                    lambda draws, seed: fitted(draws, seed, arguments, told=True), *settings[1:])
    linear = measured("linear moments", arguments.seeds,
                      lambda draws, seed: Errors(*draws.errors(linear_baseline(draws.x, draws.t))))
    best = measured("limit", max(LIMIT_SETS, arguments.seeds) if system.form else 0, lambda draws, seed: most_likely(draws))
    remarks = [f"{who}seed {seed}: {errors.remark}" for who, rows in (("", free), ("told g, ", told))
               for seed, errors in rows.items() if errors.remark]
    if not free:
        return ""
    if system.form and len(best) < LIMIT_SETS:
        remarks.append(f"limit from {len(best)} sets of data")

    def shown(rows: dict[int, Errors], name: str, *form: Any) -> str:
        return spread([getattr(row, name) for row in rows.values()], *form, short=True)

    distances = [shown(rows, name, 1.0, 2) for rows, name in ((free, "unseen"), (told, "unseen"), (free, "floor"))]
    cells = [system.name, system.dim, snapshots, points, len(free), shown(free, "drift"), shown(told, "drift"),
             shown(best, "drift"), shown(free, "diffusion"), shown(best, "diffusion"), *distances, shown(linear, "drift"),
             shown(linear, "diffusion"), f"{np.mean([row.seconds for row in free.values()]):.0f}", "; ".join(remarks)]
    return "| " + " | ".join(map(str, cells)) + " |"

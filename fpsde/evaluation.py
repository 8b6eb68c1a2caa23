"""How well a model tells snapshots, beside the floor and naive baselines.

Predictions of a snapshot, against its observed points:

- model: the previous snapshot's points, simulated one step to its time;
- roll-out: the first snapshot's points, simulated to its time;
- density: points drawn from the model's own density, which the SDE is to follow;
- floor: other points of the same snapshot, the best that any model can do;
- carry-forward: the previous snapshot's points as they are;
- midpoint: between the snapshots before and after along optimal transport, where there is one after.

A fitted model is scored on the steps that it was fitted to, at equal counts. Leaving one time out refits without it and
predicts it, with all points as the field's tables do; nothing of the fit has seen the left-out time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student

from fpsde.metrics import energy_distance, halves, mmd, permutation_test, transport_midpoint, wasserstein
from fpsde.snapshots import Snapshots, mean_and_variance

__all__ = ["DISTANCES", "LEFT_OUT_PREDICTIONS", "Following", "LeftOutScore", "StepScore", "evaluate_steps",
           "follow_density", "format_fit", "format_following", "format_left_out", "format_scores", "leave_one_out", "worst"]

Array = NDArray[np.float64]

DISTANCES = {"W1": lambda x, y: wasserstein(x, y, 1), "W2": lambda x, y: wasserstein(x, y, 2), "MMD^2": mmd,
             "energy": energy_distance}
LEVEL = 0.01
SLACK = 1.1
DRAWS = 9
ROUND_OFF = 1e-9
MOST_STARTS = 8
MOST_TESTED = 1000
PREDICTIONS = ("model", "density", "floor", "carry-forward", "midpoint")
LEFT_OUT_PREDICTIONS = ("model", "roll-out", "density", "floor", "carry-forward", "midpoint")


class Model(Protocol):
    """What an evaluation needs of a model."""

    def push(self, X0: Array, start: float, end: float, *, random_state: int) -> Array: ...  # noqa: D102
    def sample(self, n: int, t: float, random_state: int) -> Array: ...  # noqa: D102


class Following(NamedTuple):
    """Whether the SDE follows its own density over one step: exact W1 to the observed points, of both."""

    start: float
    end: float
    ratio: float
    """W1 of the pushed snapshot over that of the density's own draws, their geometric mean."""
    allowed: float
    """What a model within 10 % of its density stays below, but for one chance in a hundred over all steps."""


class StepScore(NamedTuple):
    """Distances of predictions of one snapshot to its observed points.

    Coordinates are divided by their standard deviation over all data, so that each counts alike.
    """

    start: float
    end: float
    points: int
    """In each comparison; where growth was learned, as many as there are draws of different paths."""
    distances: dict[str, dict[str, float]]
    """By name of the distance and of the prediction; NaN where there is no such prediction. W1 of the density is a mean
    over several draws."""
    p_value: float
    """Of the permutation test that predicted and observed points come from one law; uniform if the model is true."""
    ratio: float
    """As in :class:`Following`, and so is what is allowed."""
    allowed: float


class LeftOutScore(NamedTuple):
    """Exact W1 of predictions of a snapshot that the fit has not seen.

    Coordinates are divided by their standard deviation over all data: on whitened data that changes nothing.
    """

    time: float
    seed: int
    points: int
    """Number of points of the left-out time compared with."""
    seconds: float
    """That the fit took."""
    distances: dict[str, float]
    """By name of the prediction."""
    p_value: float
    """Of the permutation test that pushed points and those of the left-out time come from one law."""


def evaluate_steps(model: Model, data: Snapshots, max_points: int = 1000, seed: int = 0) -> list[StepScore]:
    """Scores every step from one snapshot to the next.

    Arguments:
        model: a fitted model.
        data: the snapshots to compare with; of unequal weights, a thinned sample of them.
        max_points: largest number of points in a comparison; cost grows with its cube.
        seed: chooses points and noise.
    """
    rng = np.random.default_rng(seed)
    data = data.thinned(rng)
    scale = data.x.std(0)
    groups, times = data.groups(), data.times
    scores = []
    for j in range(1, len(times)):
        count = min(max_points, len(groups[j]) // 2, *(len(x) for x in groups[j - 1:j + 2]))
        observed, other = halves(groups[j], count, rng)
        before = groups[j - 1][rng.permutation(len(groups[j - 1]))]
        start, end = float(times[j - 1]), float(times[j])
        pushed = _pushed(model, before, count, start, end, int(rng.integers(2**31)))
        count = len(pushed)
        before, observed, other = before[:count], observed[:count], other[:count]
        # As many permutations as the level of a single step asks for.
        p_value = permutation_test(pushed / scale, observed / scale, np.random.default_rng([seed, j]),
                                   round((len(times) - 1) / LEVEL) - 1)
        draws = _draws(model, count, end, rng)
        predictions = {"model": pushed, "density": draws[0], "floor": other, "carry-forward": before}
        if j + 1 < len(times):
            after = groups[j + 1][rng.permutation(len(groups[j + 1]))[:count]]
            predictions["midpoint"] = transport_midpoint(
                before, after, (times[j] - times[j - 1]) / (times[j + 1] - times[j - 1]))[0]
        distances = {name: {who: distance(x / scale, observed / scale) for who, x in predictions.items()}
                     for name, distance in DISTANCES.items()}
        own = [distances["W1"]["density"], *(wasserstein(x / scale, observed / scale) for x in draws[1:])]
        distances["W1"]["density"] = float(np.mean(own))
        for row in distances.values():
            row.setdefault("midpoint", float("nan"))
        followed = _following(distances["W1"]["model"], own, len(times) - 1)
        scores.append(StepScore(start, end, count, distances, p_value, *followed))
    return scores


def follow_density(model: Model, data: Snapshots, max_points: int = 500, seed: int = 0) -> list[Following]:
    """Says of every step from one snapshot to the next whether the SDE follows its own density.

    Arguments:
        model: a fitted model.
        data: the snapshots, in memory or on disk; of unequal weights, a thinned sample is compared with.
        max_points: largest number of points in a comparison; cost grows with its cube.
        seed: chooses points and noise.
    """
    rng = np.random.default_rng(seed)
    data = data.thinned(rng)
    times, scale, results = data.times, np.sqrt(mean_and_variance(data.x)[1]), []
    for start, end in zip(times[:-1].tolist(), times[1:].tolist(), strict=True):
        before, observed = (x[rng.permutation(len(x))[:MOST_STARTS * max_points]] for x in (data.at(start), data.at(end)))
        count = min(max_points, len(before), len(observed))
        pushed = _pushed(model, before, count, start, end, int(rng.integers(2**31)))
        observed = observed[:len(pushed)]
        first, *own = [wasserstein(x / scale, observed / scale) for x in (pushed, *_draws(model, len(observed), end, rng))]
        results.append(Following(start, end, *_following(first, own, len(times) - 1)))
    return results


def _pushed(model: Model, starts: Array, count: int, start: float, end: float, seed: int) -> Array:
    """At most so many independent draws from the pushed population.

    Where points multiply, the draws of one path are copies and no sample of their own: more starts are then pushed.
    """
    pushed = model.push(starts[:count], start, end, random_state=seed)
    if (copies := _copies(pushed)) > 1:
        pushed = _without_copies(model.push(starts[:min(copies, MOST_STARTS) * count], start, end, random_state=seed))
    return pushed[:count]


def _without_copies(pushed: Array) -> Array:
    """Draws of as many paths, each still kept in proportion to its progeny: copies stand side by side."""
    return pushed[::_copies(pushed)]


def _copies(pushed: Array) -> int:
    """The largest number of draws of one path."""
    ends = np.flatnonzero(np.concatenate([[True], (np.diff(pushed, axis=0) != 0).any(1), [True]]))
    return int(np.diff(ends).max())


def _draws(model: Model, count: int, time: float, rng: np.random.Generator) -> list[Array]:
    return [model.sample(count, time, random_state=int(rng.integers(2**31))) for _ in range(DRAWS)]


def worst(steps: Sequence[StepScore | Following]) -> StepScore | Following:
    """The step at which the SDE is furthest from its own density: of those beyond chance if there are any."""
    return max(steps, key=lambda step: (step.ratio > step.allowed, step.ratio))


def _following(pushed: float, own: Sequence[float], steps: int) -> tuple[float, float]:
    """The ratio of a distance to those of draws of the density, and what ten per cent and chance explain of it.

    If the pushed points have the density's law, their distance is one more draw, and its logarithm within
    their prediction interval.
    """
    first, *logs = np.log(np.maximum([pushed, *own], ROUND_OFF))
    width = student.ppf(1 - LEVEL / steps, len(own) - 1) * np.sqrt(1 + 1 / len(own)) * np.std(logs, ddof=1)
    return float(np.exp(first - np.mean(logs))), float(SLACK * np.exp(width))


def leave_one_out(fit: Callable[[Snapshots, int], Model], data: Snapshots, max_points: int | None = None,
                  seeds: Sequence[int] = (0,), report: Callable[[LeftOutScore], None] | None = None) -> list[LeftOutScore]:
    """Refits without every inner time in turn and scores what the fits say about it.

    Arguments:
        fit: fits a model to snapshots with a seed.
        data: snapshots at three times or more; of unequal weights, all are fitted to and a thinned sample is compared with.
        max_points: points in a comparison, at equal counts; all points of all times if left out, which needs the extra
            `transport`. The floor compares two halves of the left-out time, hence at most half its points.
        seeds: of the fits and their noise, one fit each; the first also chooses points.
        report: called with every score.

    Raises:
        ValueError: if there is no inner time.
        ImportError: before the first fit, if POT is needed and not installed.
    """
    seen = data.thinned(np.random.default_rng(seeds[0]))
    times, scale = data.times, seen.x.std(0)
    if len(times) < 3:
        raise ValueError(f"leaving one time out needs an inner time, hence three times or more, got {len(times)}")
    scores = []
    for j in range(1, len(times) - 1):
        start, previous, now, following = times[[0, j - 1, j, j + 1]].tolist()
        rng = np.random.default_rng([seeds[0], j])
        first, before, observed, after = _equal_counts(
            [seen.at(t) / scale for t in (start, previous, now, following)], max_points, rng)
        middle, mass = transport_midpoint(before, after, (now - previous) / (following - previous))
        most = int((seen.t == now).sum()) // 2
        baselines = {"floor": wasserstein(*halves(seen.at(now) / scale, min(len(observed), most), rng)),
                     "carry-forward": wasserstein(before, observed),
                     "midpoint": wasserstein(middle, observed, mass=None if len(before) == len(after) else mass)}
        kept = data.t != now
        rest = Snapshots.of(data.x[kept], data.t[kept], data.names, None if data.weights is None else data.weights[kept])
        for seed in seeds:
            begin = time.monotonic()
            model = fit(rest, seed)
            seconds = time.monotonic() - begin
            predictions = {"model": model.push(before * scale, previous, now, random_state=seed),
                           "roll-out": model.push(first * scale, start, now, random_state=seed),
                           "density": model.sample(len(observed), now, random_state=seed)}
            distances = {name: wasserstein(x / scale, observed) for name, x in predictions.items()}
            pushed, seen_now = (x[rng.permutation(len(x))[:MOST_TESTED]]
                                for x in (_without_copies(predictions["model"]) / scale, observed))
            p_value = permutation_test(pushed, seen_now, rng, round((len(times) - 2) / LEVEL) - 1)
            scores.append(LeftOutScore(now, seed, len(observed), seconds, distances | baselines, p_value))
            if report is not None:
                report(scores[-1])
    return scores


def _equal_counts(groups: list[Array], most: int | None, rng: np.random.Generator) -> list[Array]:
    """As many points of each, chosen at random; all of them if there is no limit."""
    if most is None:
        return groups
    count = min(most, *(len(x) for x in groups))
    return [x[rng.permutation(len(x))[:count]] for x in groups]


def format_left_out(scores: list[LeftOutScore]) -> str:
    """Lays the scores of left-out times out as a table, with the mean over times last, and of several seeds its ends."""
    names = "  ".join(f"{name:>13}" for name in LEFT_OUT_PREDICTIONS)
    lines = ["W1 to the left-out time (coordinates in standard deviations), and p of a permutation test (MMD) of the model",
             f"{'left out':>8}  {'seed':>4}  {'points':>6}  {names}  {'p':>6}"]

    def row(name: str, seed: str, points: str, values: Array, p: str = "") -> str:
        return f"{name:>8}  {seed:>4}  {points:>6}  {'  '.join(f'{v:13.3f}' for v in values)}  {p:>6}".rstrip()

    by_seed: dict[int, list[Array]] = {}
    for s in scores:
        values = np.array([s.distances[name] for name in LEFT_OUT_PREDICTIONS])
        by_seed.setdefault(s.seed, []).append(values)
        lines.append(row(f"{s.time:g}", f"{s.seed}", f"{s.points}", values, f"{s.p_value:.3f}"))
    means = np.array([np.mean(values, axis=0) for values in by_seed.values()])
    lines.append(row("mean", "", "", means.mean(0)))
    if len(means) > 1:
        lines += [row("least", "", "", means.min(0)), row("largest", "", "", means.max(0))]
    return "\n".join(lines)


def format_fit(scores: list[StepScore]) -> str:
    """Says in one sentence at which steps the predicted points differ from the observed ones by more than chance."""
    shown = ", ".join(f"{score.start:g} -> {score.end:g} p = {score.p_value:.3g}" for score in scores)
    # Bonferroni: one chance in a hundred over all steps together.
    rejected = sum(score.p_value <= LEVEL / len(scores) * (1 + 1e-9) for score in scores)
    verdict = (f"predicted and observed points differ by more than chance at {rejected} of {len(scores)} steps" if rejected
               else "at no step do predicted and observed points differ by more than chance")
    least, most = (end(score.points for score in scores) for end in (min, max))
    points = f"{least}" if least == most else f"{least} to {most}"
    return f"Test of fit (MMD, {points} points, permutations): {shown}; {verdict}."


def format_scores(scores: list[StepScore], distance: str = "W1") -> str:
    """Lays the scores of one distance out as a table."""
    lines = [f"{distance} to the next snapshot (coordinates in standard deviations, equal counts)",
             "  ".join([f"{'step':>15}", f"{'points':>6}", *(f"{name:>13}" for name in PREDICTIONS)])]
    for score in scores:
        row = score.distances[distance]
        cells = [f"{row[name]:13.3f}" if np.isfinite(row[name]) else f"{'-':>13}" for name in PREDICTIONS]
        lines.append("  ".join([f"{f'{score.start:g} -> {score.end:g}':>15}", f"{score.points:6d}", *cells]))
    return "\n".join(lines)


def format_following(steps: Sequence[StepScore | Following]) -> str:
    """Says in one sentence whether the SDE follows its own density at every step."""
    step = worst(steps)
    where, allowed = f"from {step.start:g} to {step.end:g}", f"10 % and chance allow {step.allowed:.3g}"
    if step.ratio > step.allowed:
        return (f"The SDE does not follow its own density {where}: W1 is {step.ratio:.3g} times the density's, {allowed}; "
                "more steps or points may help.")
    return (f"At no step does the SDE miss its own density by more than 10 % and chance: W1 is at most "
            f"{step.ratio:.3g} times the density's, {where} ({allowed}).")

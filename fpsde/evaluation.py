"""How well a fitted model tells the next snapshot from the one before, beside its floor and naive baselines.

For every step from one snapshot to the next, all at equal counts and against the same observed points:

- model: the previous snapshot's points, simulated to the next time;
- density: points drawn from the model's own density;
- floor: other points of the same snapshot, the best that any model can do;
- carry-forward: the previous snapshot's points as they are;
- midpoint: halfway between the snapshots before and after along optimal transport, where there is one after.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from fpsde.metrics import energy_distance, halves, mmd, transport_midpoint, wasserstein
from fpsde.snapshots import Snapshots

__all__ = ["DISTANCES", "StepScore", "evaluate_steps", "format_scores"]

Array = NDArray[np.float64]

DISTANCES = {"W1": lambda x, y: wasserstein(x, y, 1), "W2": lambda x, y: wasserstein(x, y, 2), "MMD^2": mmd,
             "energy": energy_distance}
PREDICTIONS = ("model", "density", "floor", "carry-forward", "midpoint")


class Model(Protocol):
    """What an evaluation needs of a model."""

    def simulate(self, X0: Array, times: list[float], *, random_state: int) -> Array: ...  # noqa: D102
    def sample(self, n: int, t: float, random_state: int) -> Array: ...  # noqa: D102


class StepScore(NamedTuple):
    """Distances of predictions of one snapshot to its observed points.

    Coordinates are divided by their standard deviation over all data, so that each counts alike.
    """

    start: float
    end: float
    points: int
    distances: dict[str, dict[str, float]]
    """By name of the distance and of the prediction; NaN where there is no such prediction."""


def evaluate_steps(model: Model, data: Snapshots, max_points: int = 1000, seed: int = 0) -> list[StepScore]:
    """Scores every step from one snapshot to the next.

    Arguments:
        model: a fitted model.
        data: the snapshots to compare with.
        max_points: largest number of points in a comparison; cost grows with its cube.
        seed: chooses points and noise.
    """
    rng = np.random.default_rng(seed)
    scale = data.x.std(0)
    groups, times = data.groups(), data.times
    scores = []
    for j in range(1, len(times)):
        count = min(max_points, len(groups[j]) // 2, *(len(x) for x in groups[j - 1:j + 2]))
        observed, other = halves(groups[j], count, rng)
        before = groups[j - 1][rng.permutation(len(groups[j - 1]))[:count]]
        start, end = float(times[j - 1]), float(times[j])
        predictions = {
            "model": model.simulate(before, [start, end], random_state=int(rng.integers(2**31)))[-1],
            "density": model.sample(count, end, random_state=int(rng.integers(2**31))),
            "floor": other, "carry-forward": before}
        if j + 1 < len(times):
            after = groups[j + 1][rng.permutation(len(groups[j + 1]))[:count]]
            predictions["midpoint"] = transport_midpoint(
                before, after, (times[j] - times[j - 1]) / (times[j + 1] - times[j - 1]))
        distances = {name: {who: distance(x / scale, observed / scale) for who, x in predictions.items()}
                     for name, distance in DISTANCES.items()}
        for row in distances.values():
            row.setdefault("midpoint", float("nan"))
        scores.append(StepScore(start, end, count, distances))
    return scores


def format_scores(scores: list[StepScore], distance: str = "W1") -> str:
    """Lays the scores of one distance out as a table, with a last line that says what they mean."""
    lines = [f"{distance} to the next snapshot (coordinates in standard deviations, equal counts)",
             "  ".join([f"{'step':>15}", f"{'points':>6}", *(f"{name:>13}" for name in PREDICTIONS)])]
    for score in scores:
        row = score.distances[distance]
        cells = [f"{row[name]:13.3f}" if np.isfinite(row[name]) else f"{'-':>13}" for name in PREDICTIONS]
        lines.append("  ".join([f"{f'{score.start:g} -> {score.end:g}':>15}", f"{score.points:6d}", *cells]))
    worst = max(scores, key=lambda s: s.distances[distance]["model"] - s.distances[distance]["density"])
    row = worst.distances[distance]
    if row["model"] > 1.1 * row["density"]:
        lines.append(f"The SDE does not yet follow its own density from {worst.start:g} to {worst.end:g}: "
                     f"{distance} {row['model']:.3f} against {row['density']:.3f}; more steps or points may help.")
    else:
        lines.append("At every step the SDE is within 10 % of its own density.")
    return "\n".join(lines)

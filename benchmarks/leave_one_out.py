"""How well a fit without one inner time tells that time, on five principal components of embryoid bodies.

For every inner time: fit without it, push all observed points of the previous time one step, exact W1 with Euclidean cost
against all points of the left-out time. Beside it the roll-out from the first time, the density's own draws and baselines.
Defaults of the estimator; nothing is chosen on a left-out time.

    python benchmarks/leave_one_out.py [DATA] [--seeds 3] [-o FILE]
"""

from __future__ import annotations

import numpy as np
import torch
from scores import data_parser, heading, parse_with_data, publish

from fpsde import FokkerPlanckSDE, read_snapshots
from fpsde.evaluation import LEFT_OUT_PREDICTIONS, LeftOutScore, leave_one_out
from fpsde.snapshots import Snapshots


def fit(data: Snapshots, seed: int) -> FokkerPlanckSDE:
    """Fits with the defaults."""
    return FokkerPlanckSDE(random_state=seed).fit(data.x, data.t)


def table(scores: list[LeftOutScore]) -> list[str]:
    """A row for every time and one for their mean: mean over seeds, and (least to largest) where seeds differ."""
    times, seeds = sorted({s.time for s in scores}), sorted({s.seed for s in scores})
    values = {who: np.array([[s.distances[who] for s in scores if s.time == t] for t in times])
              for who in LEFT_OUT_PREDICTIONS}
    seconds = np.array([[s.seconds for s in scores if s.time == t] for t in times])
    lines = ["| left out | " + " | ".join(LEFT_OUT_PREDICTIONS) + " | s per fit |",
             "|---" * (len(LEFT_OUT_PREDICTIONS) + 2) + "|"]
    for name, rows in [*((f"{t:g}", [k]) for k, t in enumerate(times)), ("mean", list(range(len(times))))]:
        cells = []
        for who in LEFT_OUT_PREDICTIONS:
            v = values[who][rows].mean(0)
            cells.append(f"{v.mean():.3f}" + (f" ({v.min():.3f} to {v.max():.3f})" if np.ptp(v) > 0 else ""))
        lines.append(f"| {name} | " + " | ".join(cells) + f" | {seconds[rows].mean():.0f} |")
    return [*lines, "", f"{len(seeds)} seeds: mean (least to largest)."]


def main() -> None:
    """Prints and writes the table."""
    arguments = parse_with_data(data_parser(__doc__, "eb5.npz"))
    torch.set_num_threads(1)
    lines = heading(f"Leave one time out: {arguments.data.name}",
                    f"python benchmarks/leave_one_out.py {arguments.data.name} --seeds {arguments.seeds}")

    def report(score: LeftOutScore) -> None:
        shown = ", ".join(f"{name} {value:.3f}" for name, value in score.distances.items())
        print(f"without {score.time:g}, seed {score.seed}, {score.seconds:.0f} s: {shown}", flush=True)

    scores = leave_one_out(fit, read_snapshots(arguments.data), seeds=range(arguments.seeds), report=report)
    lines += ["Exact W1 to all points of the left-out time, coordinates in standard deviations.", "", *table(scores)]
    publish(lines, arguments.output)


if __name__ == "__main__":
    main()

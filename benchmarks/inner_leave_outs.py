"""Chooses how to fit without a look at any left-out time: what is chosen for time j rests on fits that hold j out too.

For every pair of inner times: fit without both, push observed points of the training time before each of the two one step,
W1 against points of it (2000 at most, coordinates in standard deviations). Whoever holds out j sees, of the fits without
j, only the other time: C_j is the mean over these. A setting that is better in every C_j is better for all who leave one
time out, and no C_j knows the points of time j. The mean over j is no such criterion: every time is in it.

    python benchmarks/inner_leave_outs.py [DATA] [--try path_energy=0.04,path_pooling=0.02] ... [--seeds 1] [-o FILE]

Names are those of `IdentificationConfig`; the defaults are always among what is tried.
"""

from __future__ import annotations

import time
from ast import literal_eval
from dataclasses import replace
from itertools import combinations
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from scores import data_parser, heading, parse_with_data, publish
from systems import Array

from fpsde import FokkerPlanckSDE, Snapshots, read_snapshots
from fpsde.arguments import fit_config
from fpsde.metrics import wasserstein

COMPARED = 2000


def fit(data: Snapshots, seed: int, chosen: dict[str, Any]) -> FokkerPlanckSDE:
    """Fits with the defaults but for what is chosen."""
    with patch("fpsde.estimator.fit_config", lambda given, data: replace(fit_config(given, data), **chosen)):
        return FokkerPlanckSDE(random_state=seed).fit(data.x, data.t)


def criteria(data: Snapshots, seed: int, chosen: dict[str, Any]) -> Array:
    """The C_j of all inner times."""
    inner, scale = list(data.times[1:-1]), data.x.std(0)
    seen: dict[float, list[float]] = {t: [] for t in inner}
    for pair in combinations(inner, 2):
        kept = ~np.isin(data.t, pair)
        model = fit(data.subset(kept), seed, chosen)
        for left_out, other in (pair, pair[::-1]):
            before = model.times_[model.times_ < left_out].max()
            rng = np.random.default_rng(seed)
            start, observed = (x[rng.permutation(len(x))[:COMPARED]] for x in (data.at(before), data.at(left_out)))
            n = min(len(start), len(observed))
            pushed = model.push(start[:n], before, left_out, random_state=seed)
            seen[other].append(wasserstein(pushed / scale, observed[:n] / scale))
    return np.array([np.mean(seen[t]) for t in inner])


def setting(text: str) -> dict[str, Any]:
    """name=value,name=value as a dictionary."""
    return {name.strip(): literal_eval(value) for name, value in (part.split("=") for part in text.split(",") if part)}


def main() -> None:
    """Prints and writes the table."""
    parser = data_parser(__doc__, "eb5.npz")
    parser.add_argument("--try", dest="tried", type=setting, action="append", default=[], help="name=value,name=value")
    parser.set_defaults(seeds=1)
    arguments = parse_with_data(parser)
    torch.set_num_threads(1)
    data, tried = read_snapshots(arguments.data), [{}, *arguments.tried]
    told = "".join(f" --try {','.join(f'{k}={v}' for k, v in chosen.items())}" for chosen in arguments.tried)
    lines = heading(f"Inner leave-outs: {arguments.data.name}",
                    f"python benchmarks/inner_leave_outs.py {arguments.data.name}{told} --seeds {arguments.seeds}")
    lines += ["| setting | " + " | ".join(f"C_{t:g}" for t in data.times[1:-1]) + " | s |",
              "|---" * (len(data.times) - 2 + 2) + "|"]
    for chosen in tried:
        begin = time.process_time()
        found = np.mean([criteria(data, seed, chosen) for seed in range(arguments.seeds)], axis=0)
        name = ", ".join(f"{k} {v}" for k, v in chosen.items()) or "defaults"
        lines.append(f"| {name} | " + " | ".join(f"{c:.3f}" for c in found) + f" | {time.process_time() - begin:.0f} |")
        print(lines[-1], flush=True)
    publish([*lines, "", "W1 to the other left-out time; processor seconds of all fits of a row."], arguments.output)


if __name__ == "__main__":
    main()

r"""How fpsde does beside two published peers, OT-CFM and [SF]2M of torchcfm, when one inner time is left out.

The protocol of `leave_one_out.py`: for every inner time, fit without it, push all observed points of the previous time one
step, exact W1 with Euclidean cost against all points of the left-out time, coordinates in standard deviations. Seconds are
processor seconds of training and that push on one thread, so that a busy machine counts for little. fpsde has its defaults.

The peers have settings that their authors published for embryoid bodies. From the configuration for these five components:
nets of three hidden layers of 64 with SELU, batches of 128 coupled by exact optimal transport, AdamW with weight decay
.00001, sigma .1 for OT-CFM. From their single-cell notebook what that leaves open: one net over all times that sees (x, t),
a batch for every gap between training times in every step, 10 000 steps, sigma .25 and a score net for [SF]2M. The two
differ in the learning rate: the default is the notebook's .0001 and not the configuration's .001, chosen in favour of the
peers by what they do on a left-out time. As in their code, a gap of :math:`\Delta` time units takes :math:`\Delta` units of
the net's time at :math:`1/\Delta` of the velocity, and 100 Euler steps a time unit push the points: OT-CFM by its ODE,
[SF]2M by its SDE and by its ODE, since they report both. One choice is ours: the bridge of [SF]2M over a gap is that of the
same Brownian motion, hence of :math:`\sigma \sqrt{\Delta}`.

The peers need torchcfm without what its metadata asks for, which these parts do not import and which replaces torch by a
CUDA build; in an environment of its own:

    pip install -c constraints.txt torch
    pip install -c constraints.txt -e '.[transport]'
    pip install --no-deps torchcfm==1.0.7
    OMP_NUM_THREADS=1 python benchmarks/peers.py [DATA] [--seeds 3] [--curve FIGURE] [-o FILE]

References:
    Improving and generalizing flow-based generative models with minibatch optimal transport (Tong et al., 2024),
        https://arxiv.org/abs/2302.00482
    Simulation-free Schroedinger bridges via score and flow matching (Tong et al., 2024), https://arxiv.org/abs/2307.03672
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scores import data_parser, heading, parse_with_data
from torch import Tensor, nn

from fpsde import FokkerPlanckSDE, read_snapshots
from fpsde.evaluation import LeftOutScore, leave_one_out
from fpsde.metrics import wasserstein
from fpsde.snapshots import Snapshots

Array = NDArray[np.float64]

WIDTH, BATCH, LEARNING_RATE, WEIGHT_DECAY, STEPS = 64, 128, 1e-4, 1e-5, 10_000
PUSH_STEPS = 100
"""Euler steps a time unit."""
CHECKPOINTS = (0.03, 0.1, 0.2, 0.3, 0.45, 0.6, 0.8)
"""Shares of the training after which the curve looks at a peer."""
BUDGETS = (0.05, 0.1, 0.2, 0.5)
"""Shares of fpsde's default steps; each is a fit of its own, which divides them over its phases."""
BASELINES = ("carry-forward", "midpoint", "floor")
OWN = "fpsde, SDE"
COLOURS = {"OT-CFM, ODE": "#0072b2", "[SF]2M, SDE": "#d55e00", OWN: "#009e73"}


@dataclass(frozen=True)
class Peer:
    """A method of torchcfm with its published settings.

    Attributes:
        name: of the method.
        matcher: the class of torchcfm that draws points and their conditional velocity.
        sigma: width of the conditional paths; for [SF]2M also the noise of the SDE.
        has_score: whether it learns the score too, and with it an SDE.
        rate: learning rate.
    """

    name: str
    matcher: str
    sigma: float
    has_score: bool
    rate: float = LEARNING_RATE


PEERS = (Peer("OT-CFM", "ExactOptimalTransportConditionalFlowMatcher", 0.1, False),
         Peer("[SF]2M", "SchrodingerBridgeConditionalFlowMatcher", 0.25, True))


class Score(NamedTuple):
    """W1 of a method at one left-out time; processor seconds of training so far and of the push."""

    method: str
    time: float
    seed: int
    share: float
    """Of the training, 1 for its end."""
    seconds: float
    distance: float


class Flow(nn.Module):
    """Velocity and, for an SDE, the score times half the squared noise; both see (x, t)."""

    def __init__(self, peer: Peer, dim: int) -> None:
        super().__init__()
        from torchcfm.models import MLP

        self.velocity = MLP(dim=dim, w=WIDTH, time_varying=True)
        self.score = MLP(dim=dim, w=WIDTH, time_varying=True) if peer.has_score else None
        self.sigma = peer.sigma

    @torch.no_grad()
    def push(self, points: Array, start: float, end: float, noise: bool, seed: int) -> Array:
        """Moves points from one time to another by Euler steps of the ODE, or of the SDE if there is to be noise."""
        # A generator of its own: looking at a net during training must not change what training draws.
        generator = torch.Generator().manual_seed(seed)
        count = max(1, round(PUSH_STEPS * (end - start)))
        h = (end - start) / count
        x = torch.as_tensor(points, dtype=torch.float32)
        for k in range(count):
            xt = torch.cat([x, torch.full((len(x), 1), start + k * h)], 1)
            x = x + h * self.velocity(xt)
            if noise and self.score is not None:
                x = x + h * self.score(xt) + self.sigma * math.sqrt(h) * torch.randn(x.shape, generator=generator)
        return x.numpy().astype(np.float64)


def loss(flow: Flow, matchers: list[Any], groups: list[Tensor], times: list[float]) -> Tensor:
    """Flow matching, and score matching where there is a score, over a batch from every gap between training times."""
    inputs, velocities, noises, weights = [], [], [], []
    for j, matcher in enumerate(matchers):
        gap = times[j + 1] - times[j]
        x0, x1 = (x[torch.randint(len(x), (BATCH,))] for x in groups[j:j + 2])
        s, xs, u, noise = matcher.sample_location_and_conditional_flow(x0, x1, return_noise=True)
        inputs.append(torch.cat([xs, (times[j] + gap * s)[:, None]], 1))
        velocities.append(u / gap)
        noises.append(noise)
        if flow.score is not None:
            # The net learns sigma^2 / 2 times the score; the matcher's weight knows sigma sqrt(gap) instead of sigma.
            weights.append(gap * matcher.compute_lambda(s))
    xt = torch.cat(inputs)
    total = (flow.velocity(xt) - torch.cat(velocities)).square().mean()
    if flow.score is not None:
        total = total + (torch.cat(weights)[:, None] * flow.score(xt) + torch.cat(noises)).square().mean()
    return total


def train(peer: Peer, groups: list[Array], times: list[float], seed: int, steps: int,
          watch: Callable[[Flow, float, float], None], shares: tuple[float, ...]) -> None:
    """Trains and shows the flow to `watch` with its share of the training and the seconds so far, its own excluded."""
    import torchcfm

    begin = time.process_time()
    torch.manual_seed(seed)
    np.random.seed(seed)  # noqa: NPY002  torchcfm draws its pairs from numpy's global generator
    flow = Flow(peer, groups[0].shape[1])
    optimizer = torch.optim.AdamW(flow.parameters(), lr=peer.rate, weight_decay=WEIGHT_DECAY)
    spread = [math.sqrt(gap) if peer.has_score else 1.0 for gap in np.diff(times)]
    matchers = [getattr(torchcfm, peer.matcher)(sigma=peer.sigma * s) for s in spread]
    tensors = [torch.as_tensor(x, dtype=torch.float32) for x in groups]
    looks = {round(share * steps): share for share in (*shares, 1.0)}
    for step in range(1, steps + 1):
        optimizer.zero_grad()
        loss(flow, matchers, tensors, times).backward()
        optimizer.step()
        if step in looks:
            pause = time.process_time()
            watch(flow, looks[step], pause - begin)
            begin += time.process_time() - pause


def score_peer(peer: Peer, data: Snapshots, left_out: float, seed: int, steps: int,
               report: Callable[[Score], None], shares: tuple[float, ...]) -> None:
    """Trains a peer without one time and scores its pushes to it."""
    scale = data.x.std(0)
    times = data.times.tolist()
    previous, observed = times[times.index(left_out) - 1], data.at(left_out) / scale
    rest = [t for t in times if t != left_out]

    def watch(flow: Flow, share: float, seconds: float) -> None:
        # Exact W1 takes seconds: while it trains, [SF]2M is looked at by its SDE alone.
        for noise in ([True, False] if share == 1 else [True]) if peer.has_score else [False]:
            begin = time.process_time()
            pushed = flow.push(data.at(previous) / scale, previous, left_out, noise, seed)
            total = seconds + time.process_time() - begin
            name = f"{peer.name}, {'SDE' if noise else 'ODE'}"
            report(Score(name, left_out, seed, share, total, wasserstein(pushed, observed)))

    train(peer, [data.at(t) / scale for t in rest], rest, seed, steps, watch, shares)


class Timed:
    """A fitted model with the processor seconds of its fit and of its first push, the one step to the left-out time."""

    def __init__(self, model: FokkerPlanckSDE, seconds: float) -> None:
        self.model, self.seconds, self.pushed = model, seconds, False

    def push(self, X0: Array, start: float, end: float, *, random_state: int) -> Array:
        """Moves points and, at first, takes the time."""
        begin = time.process_time()
        moved = self.model.push(X0, start, end, random_state=random_state)
        if not self.pushed:
            self.seconds, self.pushed = self.seconds + time.process_time() - begin, True
        return moved

    def sample(self, n: int, t: float, random_state: int) -> Array:
        """Draws from the density."""
        return self.model.sample(n, t, random_state=random_state)


def score_own(data: Snapshots, seed: int, report: Callable[[Score], None], share: float = 1.0) -> None:
    """Scores fpsde with its defaults, or a share of their steps, and the baselines, which need no seconds worth telling."""
    fits: list[Timed] = []

    def fit(rest: Snapshots, seed: int) -> Timed:
        begin = time.process_time()
        model = FokkerPlanckSDE(random_state=seed)
        model.set_params(max_steps=round(share * model.max_steps)).fit(rest.x, rest.t)
        fits.append(Timed(model, time.process_time() - begin))
        return fits[-1]

    def tell(score: LeftOutScore) -> None:
        report(Score(OWN, score.time, score.seed, share, fits[-1].seconds, score.distances["model"]))
        if score.seed == 0 and share == 1:
            for name in BASELINES:
                report(Score(name, score.time, 0, 1.0, math.nan, score.distances[name]))

    leave_one_out(fit, data, seeds=[seed], report=tell)


def table(scores: list[Score]) -> list[str]:
    """A row for every method: mean over seeds at each time and over times, and (least to largest) where seeds differ."""
    times = sorted({s.time for s in scores})
    ends = [s for s in scores if s.share == 1]
    names = dict.fromkeys(s.method for s in ends)
    lines = ["| | " + " | ".join(f"{t:g}" for t in times) + " | mean | CPU s | seeds |",
             "|---" * (len(times) + 4) + "|"]
    for name in [*(n for n in names if n not in BASELINES), *(n for n in BASELINES if n in names)]:
        found = {(s.time, s.seed): s for s in ends if s.method == name}
        seeds = [k for k in sorted({seed for _, seed in found}) if all((t, k) in found for t in times)]
        if not seeds:
            continue
        values = np.array([[found[t, k].distance for k in seeds] for t in times])
        cells = [f"{v.mean():.3f}" + (f" ({v.min():.3f} to {v.max():.3f})" if np.ptp(v) > 0 else "")
                 for v in (*values, values.mean(0))]
        seconds = np.mean([found[t, k].seconds for t in times for k in seeds])
        cells += ["", ""] if name in BASELINES else [f"{seconds:.0f}", f"{len(seeds)}"]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


def curve_rows(scores: list[Score]) -> dict[str, list[tuple[float, float, float]]]:
    """Share of the training, seconds and W1, means over times for seed 0, for every method with more than an end."""
    rows: dict[str, list[tuple[float, float, float]]] = {}
    scores = [s for s in scores if s.seed == 0]
    for name in dict.fromkeys(s.method for s in scores if s.share < 1):
        for share in sorted({s.share for s in scores if s.method == name}):
            here = [s for s in scores if s.method == name and s.share == share]
            rows.setdefault(name, []).append(
                (share, float(np.mean([s.seconds for s in here])), float(np.mean([s.distance for s in here]))))
    return rows


def race(scores: list[Score]) -> list[str]:
    """Seconds until each method first has the W1 that OT-CFM ends with, at every time, for seed 0."""
    goal_of, rows = "OT-CFM, ODE", []
    scores = [s for s in scores if s.seed == 0]
    for end in (s for s in scores if s.method == goal_of and s.share == 1):
        there = [s for s in scores if s.time == end.time and s.distance <= end.distance]
        first = {name: min((s.seconds for s in there if s.method == name), default=math.nan)
                 for name in (OWN, *dict.fromkeys(s.method for s in scores if s.share < 1))}
        cells = " | ".join("never" if math.isnan(s) else f"{s:.0f}" for s in first.values())
        rows.append(f"| {end.time:g} | {end.distance:.3f} | {cells} | {first[goal_of] / first[OWN]:.1f} |")
        names = " | ".join(first)
    if not rows:
        return []
    return ["", f"CPU s until a method first has the W1 with which {goal_of} ends, seed 0:", "",
            f"| time | W1 | {names} | {goal_of} over {OWN} |", "|---" * (rows[0].count("|") - 1) + "|", *rows]


def draw(scores: list[Score], path: Path) -> None:
    """W1 against processor seconds, means over times for seed 0, with the baselines as lines."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6.4, 3.8), constrained_layout=True)
    for name, rows in curve_rows(scores).items():
        axes.plot([r[1] for r in rows], [r[2] for r in rows], "o-", ms=4,
                  color=COLOURS[name], label=name)
    for name in ("midpoint", "floor"):
        level = float(np.mean([s.distance for s in scores if s.method == name]))
        axes.axhline(level, color="0.6", lw=1, ls="--", zorder=0)
        axes.annotate(name, (0.01, level), xycoords=("axes fraction", "data"), xytext=(0, 3), textcoords="offset points",
                      color="0.4", fontsize=9)
    axes.set(xscale="log", xlabel="processor seconds of training and push, one thread",
             ylabel="mean W1 to the left-out time")
    axes.set_xticks([t for t in (1, 3, 10, 30, 100, 300, 1000) if axes.get_xlim()[0] < t < axes.get_xlim()[1]])
    axes.xaxis.set_major_formatter("{x:g}")
    axes.minorticks_off()
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def report_lines(scores: list[Score], head: list[str], steps: int) -> list[str]:
    """The results file."""
    lines = [*head,
             "Exact W1 to all points of the left-out time, coordinates in standard deviations, mean over seeds (least to "
             "largest); processor seconds of training and push on one thread.", "", *table(scores)]
    for name, rows in curve_rows(scores).items():
        last = FokkerPlanckSDE().max_steps if name == OWN else steps
        shown = [f"{w:.3f} after {seconds:.0f} CPU s ({share * last:.0f} steps)" for share, seconds, w in rows]
        lines += ["", f"{name} with fewer steps, mean over times, seed 0: " + "; ".join(shown) + "."]
    return [*lines, *race(scores)]


def main() -> None:
    """Prints every score as it comes and rewrites the results after each."""
    parser = data_parser(__doc__, "eb5.npz")
    parser.add_argument("--steps", type=int, default=STEPS, help=f"of a peer's training, {STEPS} as published")
    parser.add_argument("--rate", type=float, default=LEARNING_RATE, help="of learning, .0001 or .001 as published")
    parser.add_argument("--curve", type=Path, metavar="FIGURE", help="score peers while they train, and draw that")
    arguments = parse_with_data(parser)
    try:
        import torchcfm  # noqa: F401
    except ImportError as error:
        parser.error(f"the peers need more ({error}): pip install 'POT>=0.9.5' and pip install --no-deps torchcfm")
    torch.set_num_threads(1)
    data, steps, curve = read_snapshots(arguments.data), arguments.steps, arguments.curve
    command = f"OMP_NUM_THREADS=1 python benchmarks/peers.py {arguments.data.name} --seeds {arguments.seeds}"
    command += f" --steps {steps}" * (steps != STEPS) + f" --rate {arguments.rate}" * (arguments.rate != LEARNING_RATE)
    command += f" --curve {curve.name}" if curve else ""
    head = heading(f"fpsde and its peers, one time left out: {arguments.data.name}", command, ("torch", "torchcfm", "POT"))
    scores: list[Score] = []

    def results() -> str:
        return "\n".join(report_lines(scores, head, steps))

    def report(score: Score) -> None:
        scores.append(score)
        trained = "" if score.method in BASELINES else f", {score.share:.0%} of training, {score.seconds:.0f} CPU s"
        print(f"{score.method}, without {score.time:g}, seed {score.seed}{trained}: {score.distance:.3f}", flush=True)
        if arguments.output:
            arguments.output.write_text(results() + "\n")

    for seed in range(arguments.seeds):
        for share in (*(BUDGETS if curve and seed == 0 else ()), 1.0):
            score_own(data, seed, report, share)
        shares = CHECKPOINTS if curve and seed == 0 else ()
        for peer in (replace(peer, rate=arguments.rate) for peer in PEERS):
            for left_out in data.times[1:-1].tolist():
                score_peer(peer, data, left_out, seed, steps, report, shares)
        if shares:
            draw(scores, curve)
    print(results())


if __name__ == "__main__":
    main()

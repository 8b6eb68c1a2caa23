"""What (f, Df, D2f) and a training step cost beside a plain forward pass of the same nets.

Medians of interleaved runs on one thread, in seconds of the processor (of a machine that others use too), and ratios within
one run. Derivatives: (f, Df, D2f) of a HollowNet in Taylor and
in reverse mode, without gradient; beside them the diagonal of a dense Jacobian by torch.func, first derivatives only, timed
on few points and scaled up (to d = 50), and Hutchinson's estimate of the divergence from one draw, with its standard
deviation over that of the divergence itself. Training: the residual's nets, (f, Df) and (a, Da, D2a), and backward, over
forward and backward of the same two nets; and the whole loss, with a mixture path, over plain forward and backward of nets
and path; and a call for both nets in one over two calls.
Memory is what autograd holds for the backward pass of the whole loss, parameters left out.

    python benchmarks/derivatives.py [--dims 2 5 10 50 200 1000] [--seconds 10] [--conditioners masked]
                                     [--figure FILE] [-o FILE]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from scores import heading, publish
from torch import Tensor, nn

from fpsde.covariance import FullCovariance, LowRankCovariance
from fpsde.density import GaussianMixturePath
from fpsde.diffusion import StateDiffusion
from fpsde.fokker_planck import FokkerPlanckLoss, LossWeights, residual
from fpsde.hollow import CONDITIONERS, HollowNet
from fpsde.memory import kept_memory
from fpsde.mixture import FULL_RANK_UP_TO
from fpsde.spline import CubicSplineBasis

TIMES, POINTS, COMPONENTS, RANK = 16, 32, 32, 8
DENSE_WORK, DENSE_UP_TO = 20_000, 50
CURVES = {
    "forward": ("forward", "-", "k"), "Taylor": ("Taylor", "o-", "C0"), "reverse": ("reverse", "s-", "C1"),
    "dense": ("dense Jacobian, first derivative", "^-", "C3"), "Hutchinson": ("Hutchinson, divergence", "v--", "C2"),
    "plain loss": ("plain forward and backward", "-", "0.6"), "loss": ("training step", "D-", "C4")}
MOST_RUNS, FEWEST_RUNS = 41, 5


def medians(tasks: dict[str, Callable[[], object]], seconds: float) -> dict[str, float]:
    """Median seconds of each task, one after the other in every round."""
    taken: dict[str, list[float]] = {name: [] for name in tasks}
    for task in tasks.values():
        task()
    end = time.monotonic() + seconds
    while len(next(iter(taken.values()))) < MOST_RUNS and (
            time.monotonic() < end or len(next(iter(taken.values()))) < FEWEST_RUNS):
        for name, task in tasks.items():
            begin = time.process_time()
            task()
            taken[name].append(time.process_time() - begin)
    return {name: float(np.median(values)) for name, values in taken.items()}


def mixture(dim: int) -> GaussianMixturePath:
    """A path of random components over eleven snapshots' splines."""
    basis = CubicSplineBasis(np.linspace(0, 1, 9))
    size, floor = basis.size, 0.1 * torch.ones(basis.size, dim)
    units = torch.ones(size, dim)
    if dim <= FULL_RANK_UP_TO:
        covariance = FullCovariance(0.5 * torch.randn(size, COMPONENTS, dim, dim), floor.diag_embed(), units)
    else:
        covariance = LowRankCovariance(0.5 * torch.randn(size, COMPONENTS, dim, RANK),
                                       torch.zeros(size, COMPONENTS, dim), floor, units)
    return GaussianMixturePath(basis, torch.zeros(size, COMPONENTS), torch.randn(size, COMPONENTS, dim), covariance).float()


def build(dim: int, conditioner: str) -> FokkerPlanckLoss:
    """A path and two nets of the default size, all of them trained."""
    torch.manual_seed(dim)
    drift, noise = HollowNet(dim, conditioner), HollowNet(dim, conditioner)
    diffusion = StateDiffusion(noise, torch.ones(dim))
    with torch.no_grad():
        noise.readout.normal_(0, 0.1)
    return FokkerPlanckLoss(mixture(dim), drift, diffusion)


def derivatives(net: HollowNet, t: Tensor, x: Tensor, seconds: float) -> dict[str, float]:
    """Seconds of each way to the derivatives, and Hutchinson's relative standard deviation."""
    signs = torch.randint(0, 2, x.shape).to(x) * 2 - 1

    def hutchinson() -> Tensor:
        y = x.clone().requires_grad_()
        product, = torch.autograd.grad((net(t, y) * signs).sum(), y)
        return (product * signs).sum(-1)

    def plain(order: int) -> None:
        with torch.no_grad():
            net.derivatives(t, x, order)

    def backwards() -> None:
        with torch.no_grad():
            net.derivatives(t, x, 2, "reverse")

    few = max(1, min(len(x), DENSE_WORK // x.shape[1] ** 2))

    def dense() -> Tensor:
        def one(t: Tensor, x: Tensor) -> Tensor:
            return torch.func.jacrev(lambda y: net(t, y[None])[0], chunk_size=16)(x).diagonal()

        with torch.no_grad():
            return torch.func.vmap(one)(t[:few], x[:few])

    found = medians({"forward": lambda: plain(0), "Taylor": lambda: plain(2), "reverse": backwards,
                     "Hutchinson": hutchinson}, seconds)
    found["dense"] = medians({"dense": dense}, 0.0)["dense"] * len(x) / few if x.shape[1] <= DENSE_UP_TO else float("nan")
    with torch.no_grad():
        exact = net.divergence(t, x)
    found["deviation"] = float((hutchinson() - exact).square().mean().sqrt() / exact.std())
    return found


def training(model: FokkerPlanckLoss, t: Tensor, x: Tensor, seconds: float) -> dict[str, float]:
    """Seconds of a step of the nets alone and of the whole loss, each beside plain forward and backward; and its memory."""
    clock, weights = t[:, None], LossWeights(residual=1.0)
    fixed = type(model.density.terms(t, x))(*(term.detach() for term in model.density.terms(t, x)))

    def plain_nets() -> Tensor:
        return model.drift(clock, x).square().mean() + model.diffusion(clock, x).square().mean()

    def nets() -> Tensor:
        f = model.drift.derivatives(clock, x, order=1)
        return residual(fixed, (f[0], f[1]), model.diffusion.variance(clock, x)).square().mean()

    def plain_loss() -> Tensor:
        return plain_nets() - model.density.log_prob(t, x).mean() + model.density.log_prob(t, x).square().mean()

    def loss() -> Tensor:
        return model(t, x, t, x, weights).loss

    def step(value: Callable[[], Tensor]) -> Callable[[], None]:
        def run() -> None:
            model.zero_grad()
            value().backward()
        return run

    tasks = {"plain nets": plain_nets, "nets": nets, "plain loss": plain_loss, "loss": loss}
    found = medians({name: step(value) for name, value in tasks.items()}, seconds)
    found["bytes"] = float(held_bytes(loss, model))
    return found


def in_one_call(model: FokkerPlanckLoss, t: Tensor, x: Tensor, seconds: float) -> float:
    """What (f, Df, D2f) of one net with twice the coordinates takes over (f, Df) and (f, Df, D2f) of two; with backward.

    Both fields of a step could be had in one batched call, as a net whose halves see the same point; the drift then pays
    for a derivative that it does not need.
    """
    dim, conditioner = x.shape[-1], model.drift.settings["conditioner"]
    one, two = HollowNet(2 * dim, conditioner, linear=False), [HollowNet(dim, conditioner, linear=False) for _ in range(2)]
    twice = torch.cat([x, x], -1)

    def joint() -> None:
        sum(f.square().mean() for f in one.derivatives(t, twice, order=2)).backward()
        one.zero_grad()

    def apart() -> None:
        sum(f.square().mean() for k, net in enumerate(two, 1) for f in net.derivatives(t, x, order=k)).backward()
        for net in two:
            net.zero_grad()

    found = medians({"joint": joint, "apart": apart}, seconds)
    return found["joint"] / found["apart"]


def held_bytes(loss: Callable[[], Tensor], model: nn.Module) -> int:
    """Bytes of the tensors that autograd holds for the backward pass, each once and parameters not at all."""
    own, sizes = {p.untyped_storage().data_ptr() for p in (*model.parameters(), *model.buffers())}, {}

    def hold(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(hold, lambda tensor: tensor):
        loss()
    return sum(sizes.values())


def draw(dims: list[int], rows: dict[tuple[str, int], dict[str, float]], file: Path) -> None:
    """Cost against d on log axes, a panel for each conditioner."""
    shown = [c for c in CONDITIONERS if (c, dims[0]) in rows]
    figure, axes = plt.subplots(1, len(shown), squeeze=False, figsize=(10, 4.2), sharey=True, layout="constrained")
    for panel, conditioner in zip(axes[0], shown, strict=True):
        for name, (label, style, color) in CURVES.items():
            cost = [1e3 * rows[conditioner, d][name] for d in dims]
            panel.loglog(dims, cost, style, color=color, label=label, markersize=4)
        panel.set(title=conditioner, xlabel="dimension d")
        panel.grid(alpha=0.3)
    axes[0, 0].set_ylabel(f"ms for {TIMES * POINTS} points")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8)
    figure.savefig(file, dpi=110)


def _short(value: float) -> str:
    return "" if np.isnan(value) else f"{value:.2f}" if value < 10 else f"{value:.0f}"


def main() -> None:
    """Prints and writes the tables, and draws the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dims", type=int, nargs="+", default=[2, 5, 10, 50, 200, 1000])
    parser.add_argument("--seconds", type=float, default=10.0, help="for each of the medians' rounds")
    parser.add_argument("--conditioners", nargs="+", choices=list(CONDITIONERS), default=list(CONDITIONERS))
    parser.add_argument("--figure", type=Path)
    parser.add_argument("-o", "--output", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    lines = heading("Cost of derivatives and of a step", "python benchmarks/derivatives.py --dims "
                    + " ".join(map(str, arguments.dims)) + f" --seconds {arguments.seconds:g} --conditioners "
                    + " ".join(arguments.conditioners))
    first = [f"(f, Df, D2f) at {TIMES * POINTS} points over one forward pass, without gradient. Goal: Taylor at most 2.0, "
             "1.5 from d = 10 on.", "", "| conditioner | d | forward, ms | Taylor | reverse | dense, Df only | Hutchinson, "
             "div only | its deviation |", "|---" * 8 + "|"]
    second = ["", f"Forward and backward of {TIMES} x {POINTS} points, {COMPONENTS} components, over plain forward and "
              "backward. Goal: the whole loss at most 2.2. Held is the memory of the whole loss.", "",
              "| conditioner | d | nets, ms | over it | all, ms | over it | held, MB | per point and coordinate, kB | "
              "both nets in one call over two |", "|---" * 9 + "|"]
    rows = {}
    for conditioner in arguments.conditioners:
        for dim in arguments.dims:
            model = build(dim, conditioner)
            t, x = torch.linspace(0.02, 0.98, TIMES), torch.randn(TIMES, POINTS, dim)
            with kept_memory():
                found = derivatives(model.drift, t.repeat_interleave(POINTS), x.flatten(0, 1), arguments.seconds)
                found |= training(model, t, x, arguments.seconds)
                joint = in_one_call(model, t[:, None], x, arguments.seconds)
            rows[conditioner, dim] = found
            over = [found[name] / found["forward"] for name in ("Taylor", "reverse", "dense", "Hutchinson")]
            first.append(f"| {conditioner} | {dim} | {1e3 * found['forward']:.2f} | "
                         + " | ".join(_short(v) for v in over) + f" | {found['deviation']:.2f} |")
            second.append(f"| {conditioner} | {dim} | {1e3 * found['plain nets']:.2f} | "
                          f"{found['nets'] / found['plain nets']:.2f} | {1e3 * found['plain loss']:.2f} | "
                          f"{found['loss'] / found['plain loss']:.2f} | {found['bytes'] / 1e6:.1f} | "
                          f"{found['bytes'] / 1e3 / (TIMES * POINTS * dim):.2f} | {joint:.2f} |")
            print(f"{first[-1]}\n{second[-1]}", flush=True)
    publish([*lines, *first, *second], arguments.output)
    if arguments.figure:
        draw(arguments.dims, rows, arguments.figure)


if __name__ == "__main__":
    main()

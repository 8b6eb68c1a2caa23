"""What a training step takes on one GPU: eager, compiled and with CUDA graphs, beside the floor that the device sets.

Two steps, each forward, backward and Adam: that of the path (its likelihood at the snapshots, and what chooses it in
between) and that of the nets (drift and noise after a path that is held, by velocity and residual). Points are those of the
snapshots for the path and of the collocation for the nets.

- graphs: torch.compile with mode="reduce-overhead". captured: the eager step recorded as it is, optimiser included, in one
  CUDA graph, which fails if anything in it waits for the host.
- products: what the matrix products take if each runs at the rates that a large product and a large copy reach on the same
  device, whichever bounds it, and all else is fused into them; forward and backward, counted as they are called.
- least: operations of all products at that rate, or what must move at the least at the rate of a copy: points twice,
  parameters twice, their gradients, and seven times for Adam; the larger of the two.
- utilisation: products over the fastest step, in float32. memory: the least that a variant allocates.

Times on a GPU are by CUDA events around several steps; on the CPU (`--device cpu`, to try this script) they are seconds of
the processor on one thread, and what needs a GPU is left out. A series ends where memory does. Compiling takes up to a
minute for each case: choose some with --steps, --dims, --points and --variants.

Precision: errors are root mean squares over that of float64 at the same points, of (f, Df, D2f), of the residual and of the
loss's gradient by the nets. bf16 is autocast on the hollow transformer alone; tf32 is all products of the step.

    python benchmarks/gpu.py [--device cuda] [--steps path nets] [--dims 5 50 500] [--points 512 8192 131072 1000000]
                             [--variants eager compiled graphs captured] [--seconds 1] [--small] [-o FILE]
"""

from __future__ import annotations

import argparse
import copy
import platform
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from derivatives import build, medians
from scores import heading, publish
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from fpsde.fokker_planck import FokkerPlanckLoss, LossWeights, residual
from fpsde.hollow import HollowNet
from fpsde.path import PathLoss

STEPS, VARIANTS = ("path", "nets"), ("eager", "compiled", "graphs", "captured")
NEEDS_GPU = ("graphs", "captured")
WEIGHTS = LossWeights(0.03, 1.0, 0.01)
TIMES, SNAPSHOTS, BETWEEN, BLOCKS = 32, 11, 8, 5
FASTER, SHARE = 5.0, 0.4
CHECKED = 4096


class Rates(NamedTuple):
    """What the device reaches."""

    products: dict[str, float]
    """Operations a second of a large matrix product, by precision."""
    copy: float
    """Bytes a second of a large copy, read and written."""


class Case(NamedTuple):
    """A step: its module, the arguments of a call, what is trained, and the number of points."""

    module: nn.Module
    batch: tuple[Any, ...]
    trained: list[nn.Parameter]
    points: int


class Products(TorchDispatchMode):
    """Counts what matrix products take at given rates of operations and bytes a second."""

    def __init__(self, rate: float, moved: float) -> None:
        super().__init__()
        self.rate, self.moved, self.seconds = rate, moved, 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Adds an operation, if it is a product."""
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if func._overloadpacket in flop_registry:
            work = flop_registry[func._overloadpacket](*args, **kwargs, out_val=out)
            size = sum(a.numel() * a.element_size() for a in tree_leaves((args, out)) if isinstance(a, Tensor))
            self.seconds += max(work / self.rate, size / self.moved)
        return out


def seconds_of(task: Callable[[], object], device: torch.device, seconds: float) -> float:
    """Median seconds of a task, after it has run a few times."""
    if device.type == "cpu":
        return medians({"": task}, seconds)[""]

    def block(count: int) -> float:
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        for _ in range(count):
            task()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1e3 / count

    block(3)
    count = max(1, min(1000, int(seconds / BLOCKS / max(block(2), 1e-6))))
    return float(np.median([block(count) for _ in range(BLOCKS)]))


def rates(device: torch.device, small: bool, seconds: float) -> Rates:
    """Measures a product of large square matrices in each precision, and a copy."""
    gpu = device.type == "cuda"
    n = 256 if small else 8192 if gpu else 1024
    products = {}
    for name, precision, dtype in (("float32", "highest", torch.float32), ("tf32", "high", torch.float32),
                                   ("bf16", "highest", torch.bfloat16)):
        if name == "tf32" and not gpu:
            continue
        torch.set_float32_matmul_precision(precision)
        a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
        out = torch.empty_like(a)
        products[name] = 2 * n**3 / seconds_of(lambda a=a, b=b, out=out: torch.mm(a, b, out=out), device, seconds)
    torch.set_float32_matmul_precision("highest")
    source = torch.ones(2**20 if small else 2**28 if gpu else 2**24, device=device)
    target = torch.empty_like(source)
    return Rates(products, 2 * source.nbytes / seconds_of(lambda: target.copy_(source), device, seconds))


def case(step: str, dim: int, points: int, device: torch.device) -> Case:
    """Builds a step of about so many points, all of it on the device."""
    model = build(dim, "leave-one-out").to(device)
    generator = torch.Generator(device=device).manual_seed(dim)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, device=device, generator=generator)

    if step == "path":
        loss = PathLoss(model.density, torch.linspace(0, 1, SNAPSHOTS, device=device), 1e-3, 2e-2)
        each = points // SNAPSHOTS
        inside = torch.linspace(0.05, 0.95, BETWEEN, device=device)
        batch = (loss.times, normal(SNAPSHOTS, each, dim), inside, normal(BETWEEN, 2, model.density.noise_size))
        return Case(loss, batch, list(loss.parameters()), SNAPSHOTS * each)
    model.guides_density = False
    model.density.requires_grad_(False)
    t, x = torch.linspace(0.02, 0.98, TIMES, device=device), normal(TIMES, points // TIMES, dim)
    return Case(model, (t, x[:, :1], t, x, WEIGHTS), [p for p in model.parameters() if p.requires_grad], x[..., 0].numel())


def stepper(c: Case, variant: str) -> Callable[[], object]:
    """Returns the step as it is to be run."""
    forward: Callable[..., Any] = c.module
    if variant in ("compiled", "graphs"):
        forward = torch.compile(c.module, dynamic=False, mode="reduce-overhead" if variant == "graphs" else None)
    optimiser = torch.optim.Adam(c.trained, lr=1e-5, fused=True, capturable=variant == "captured")

    def step() -> None:
        if variant == "graphs":
            torch.compiler.cudagraph_mark_step_begin()
        optimiser.zero_grad(set_to_none=True)
        forward(*c.batch).loss.backward()
        optimiser.step()

    if variant != "captured":
        return step
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def floors(c: Case, known: Rates) -> tuple[float, float]:
    """Seconds of the products one by one, and the least for all of them and what must move."""
    def once() -> None:
        c.module(*c.batch).loss.backward()

    rate = known.products["float32"]
    with Products(rate, known.copy) as products:
        once()
    with FlopCounterMode(display=False) as counter:
        once()
    c.module.zero_grad(set_to_none=True)
    inputs = sum(part.nbytes for part in c.batch if isinstance(part, Tensor))
    moved = 2 * inputs + (2 + 1 + 7) * sum(p.nbytes for p in c.trained)
    return products.seconds, max(counter.get_total_flops() / rate, moved / known.copy)


def run(c: Case, variants: Sequence[str], device: torch.device, seconds: float) -> tuple[dict[str, float | str], float]:
    """Seconds of each variant, or what kept it from running; and the bytes that the leanest one allocates.

    Raises:
        torch.cuda.OutOfMemoryError: if none has memory enough.
    """
    found: dict[str, float | str] = {}
    most = float("inf")
    for variant in variants:
        _clear(device)
        try:
            found[variant] = seconds_of(stepper(c, variant), device, seconds)
            most = min(most, torch.cuda.max_memory_allocated() if device.type == "cuda" else most)
        except Exception as error:
            # Of many kinds, from the compiler or a capture; the others are measured all the same.
            full = isinstance(error, torch.cuda.OutOfMemoryError) or "out of memory" in str(error)
            found[variant] = "memory" if full else type(error).__name__
            print(f"{variant}: {type(error).__name__}: {' '.join(str(error).split()):.300}", flush=True)
        c.module.zero_grad(set_to_none=True)
    if all(value == "memory" for value in found.values()):
        raise torch.cuda.OutOfMemoryError("for no variant of the step")
    return found, most


def _clear(device: torch.device) -> None:
    """Gives back what compiled steps and their graphs hold, and counts memory anew."""
    torch.compiler.reset()
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def series(step: str, dim: int, arguments: argparse.Namespace, known: Rates) -> tuple[list[str], list[str]]:
    """The rows of one step in one dimension, from few points to many, and what they say about the goals."""
    rows, said, last = [], [], f"- {step}, d = {dim}: no step fits."
    shown = [variant for variant in VARIANTS if arguments.device.type == "cuda" or variant not in NEEDS_GPU]
    for points in arguments.points:
        try:
            c = case(step, dim, points, arguments.device)
            products, least = floors(c, known)
            found, memory = run(c, arguments.variants, arguments.device, arguments.seconds)
        except torch.cuda.OutOfMemoryError:
            said.append(f"- {step}, d = {dim}: memory ran out at {points} points.")
            break
        best = min((v for v in found.values() if isinstance(v, float)), default=float("nan"))
        used, faster = 100 * products / best, _over(found.get("eager"), found.get("compiled"))
        held = f"{memory / 2**30:.2f}" if memory < float("inf") else ""
        rows.append(f"| {step} | {dim} | {c.points} | " + " | ".join(_ms(found.get(variant)) for variant in shown)
                    + f" | {_short(faster)} | {1e3 * products:.3g} | {1e3 * least:.3g} | {used:.2g} | "
                    f"{c.points / best / 1e6:.3g} | {held} |")
        print(rows[-1], flush=True)
        if points == arguments.points[0] and faster is not None:
            said.append(f"- {step}, d = {dim}: with {c.points} points compiled is {faster:.1f} times as fast as eager "
                        f"(goal {FASTER:g}): {_reached(faster >= FASTER)}.")
        last = (f"- {step}, d = {dim}: most points {c.points}{f' in {held} GiB' if held else ''}, utilisation {used:.2g} % "
                f"(goal {100 * SHARE:.0f} %): {_reached(used >= 100 * SHARE)}.")
    return rows, [*said, last]


def halved(net: HollowNet, device: torch.device) -> None:
    """Runs the transformer of a net in bf16, and nothing else of it."""
    transform = net._transform

    def autocast(*arguments: Any) -> list[Tensor]:
        with torch.autocast(device.type, torch.bfloat16):
            return [c.to(arguments[0].dtype) for c in transform(*arguments)]

    net._transform = autocast  # type: ignore[method-assign]


def computed(model: FokkerPlanckLoss, batch: tuple[Any, ...]) -> list[Tensor]:
    """f, Df, D2f, the residual and the gradient of the loss by the nets, in float64."""
    t, x = batch[2:4]
    model.zero_grad(set_to_none=True)
    model(*batch).loss.backward()
    gradient = torch.cat([p.grad.flatten().double() for p in model.parameters() if p.grad is not None])
    with torch.no_grad():
        f = model.drift.derivatives(t[:, None], x, 2)
        r = residual(model.density.terms(t, x), (f[0], f[1]), model.diffusion.variance(t[:, None], x))
    return [*(part.double() for part in (*f, r)), gradient]


def precision(dim: int, arguments: argparse.Namespace) -> list[str]:
    """Rows: each precision's errors, and its eager step of the nets over that in float32."""
    device, rows, base = arguments.device, [], float("nan")
    c = case("nets", dim, min(CHECKED, arguments.points[-1]), device)
    exact = [part.double() if isinstance(part, Tensor) else part for part in c.batch]
    exact = computed(copy.deepcopy(c.module).double(), tuple(exact))
    for name in ("float32", "tf32", "bf16") if device.type == "cuda" else ("float32", "bf16"):
        model = copy.deepcopy(c.module)
        if name == "bf16":
            for net in (model.drift, model.diffusion.net):
                halved(net, device)
        torch.set_float32_matmul_precision("high" if name == "tf32" else "highest")
        found = computed(model, c.batch)
        errors = [float((a - b).norm() / b.norm()) for a, b in zip(found, exact, strict=True)]
        trained = [p for p in model.parameters() if p.requires_grad]
        taken = seconds_of(stepper(c._replace(module=model, trained=trained), "eager"), device, arguments.seconds)
        base = taken if name == "float32" else base
        rows.append(f"| {dim} | {name} | {' | '.join(f'{e:.1e}' for e in errors)} | {taken / base:.2f} |")
        print(rows[-1], flush=True)
    torch.set_float32_matmul_precision("highest")
    return rows


def _ms(value: float | str | None) -> str:
    return "" if value is None else value if isinstance(value, str) else f"{1e3 * value:.3g}"


def _over(a: float | str | None, b: float | str | None) -> float | None:
    return a / b if isinstance(a, float) and isinstance(b, float) else None


def _short(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _reached(condition: bool) -> str:
    return "reached" if condition else "missed"


def parse(words: Sequence[str] | None) -> argparse.Namespace:
    """The arguments, with what the device cannot do left out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", type=torch.device, default=torch.device("cuda"))
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=list(STEPS))
    parser.add_argument("--dims", type=int, nargs="+")
    parser.add_argument("--points", type=int, nargs="+", help="in a step, increasing")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS)
    parser.add_argument("--seconds", type=float, help="for each of the medians")
    parser.add_argument("--small", action="store_true", help="sizes to try it with, and nothing compiled unless named")
    parser.add_argument("-o", "--output", type=Path)
    arguments = parser.parse_args(words)
    small = arguments.small
    arguments.dims = arguments.dims or ([2, 5] if small else [5, 50, 500])
    arguments.points = sorted(arguments.points or ([64, 256] if small else [512, 8192, 131072, 1_000_000]))
    arguments.variants = arguments.variants or (["eager"] if small else list(VARIANTS))
    arguments.seconds = arguments.seconds if arguments.seconds is not None else 0.1 if small else 1.0
    if arguments.device.type == "cuda" and not torch.cuda.is_available():
        parser.error("there is no GPU here; --device cpu tries the script")
    if arguments.device.type == "cpu":
        arguments.variants = [v for v in arguments.variants if v not in NEEDS_GPU]
    if arguments.points[0] < TIMES:
        parser.error(f"a step has at least {TIMES} points")
    return arguments


def where(device: torch.device) -> str:
    """The device in words."""
    if device.type == "cpu":
        return f"On the CPU ({platform.processor() or platform.machine()}), to try the script: it says nothing about a GPU."
    about = torch.cuda.get_device_properties(device)
    return f"{about.name}, {about.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}."


def main(words: Sequence[str] | None = None) -> None:
    """Prints and writes the tables."""
    arguments = parse(words)
    device = arguments.device
    gpu = device.type == "cuda"
    if gpu:
        torch.cuda.set_device(device)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    command = f"python benchmarks/gpu.py --device {device} --steps {' '.join(arguments.steps)} --dims " + " ".join(
        map(str, arguments.dims)) + " --points " + " ".join(map(str, arguments.points)) + " --variants " + " ".join(
        arguments.variants) + f" --seconds {arguments.seconds:g}" + " --small" * arguments.small
    lines = heading(f"A training step on {torch.cuda.get_device_name(device) if gpu else 'the CPU'}", command)
    lines += [where(device), ""]
    known = rates(device, arguments.small, arguments.seconds)
    lines += ["Rates reached: " + ", ".join(f"{name} product {rate / 1e12:.3g} TFLOP/s" for name, rate in
                                            known.products.items()) + f", copy {known.copy / 1e9:.3g} GB/s.", ""]
    shown = [variant for variant in VARIANTS if gpu or variant not in NEEDS_GPU]
    head = ["step", "d", "points", *(f"{v}, ms" for v in shown), "eager / compiled", "products, ms", "least, ms",
            "utilisation, %", "million points/s", "memory, GiB"]
    lines += [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    print("\n".join(lines), flush=True)
    said = []
    with warnings.catch_warnings():
        # torch.compile's advice on what the graphs hold.
        warnings.simplefilter("ignore")
        for step in arguments.steps:
            for dim in arguments.dims:
                rows, reached = series(step, dim, arguments, known)
                lines, said = [*lines, *rows], [*said, *reached]
        columns = ["d", "precision", "f", "Df", "D2f", "residual", "gradient", "step over float32"]
        lines += ["", *said, "", f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
        for dim in arguments.dims:
            try:
                lines += precision(dim, arguments)
            except torch.cuda.OutOfMemoryError:
                lines.append(f"| {dim} | memory ran out{' |' * (len(columns) - 1)}")
    torch.set_num_threads(threads)
    publish(lines, arguments.output)


if __name__ == "__main__":
    main()

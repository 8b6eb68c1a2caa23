"""The training loop: steps, clipping, averaging, skipped steps, best state, and how to take it up again. It knows no model.

What is trained is a module whose forward is the loss. Anything else that has to happen at a step (drawing a batch,
solving for part of the parameters) is handed in.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from fpsde.compiled import Compiled, differentiated
from fpsde.ranks import count, everywhere, mean_value, together

__all__ = ["Offer", "Report", "State", "StateError", "TrainConfig", "TrainResult", "TrainingError", "choose_device",
           "copy_state", "restoring", "singular_matrices", "train"]


State = dict[str, Any]
"""A tree of tensors, numbers and words, by name."""
Offer = Callable[[Callable[[], State]], None]
"""Called where work can be left, with a function that returns its state: whoever wants to keep it asks for it."""


STEPS_BETWEEN_READS = 16


class TrainingError(ArithmeticError):
    """Training cannot go on; the message says what happened and what to try."""


class StateError(ValueError):
    """A state does not fit what is to go on from it; the message says what to do."""


@dataclass(frozen=True)
class TrainConfig:
    """How to train.

    Attributes:
        steps: number of steps.
        learning_rate: of Adam at the start; a group of parameters may carry its own.
        final_rate: the rate at the end as a share of that at the start (cosine schedule).
        clip: largest norm of the gradient.
        memory: decay of the running average of the parameters.
        check_every: steps between checks of the averaged parameters on held-out data.
        patience: this many skipped steps in a row stop the training.
    """

    steps: int = 2000
    learning_rate: float = 2e-2
    final_rate: float = 0.02
    clip: float = 5.0
    memory: float = 0.98
    check_every: int = 100
    patience: int = 25


class Report(NamedTuple):
    """The state of training, for progress and learning curves."""

    step: int
    steps: int
    seconds: float
    skipped: int
    values: Mapping[str, float]
    stage: str = ""
    """What begins now and is not counted in steps."""


class TrainResult(NamedTuple):
    """What training did."""

    steps: int
    skipped: int
    best_step: int
    best_score: float
    state: dict[str, Tensor]
    """The averaged state with the best score."""
    compiles: bool = True
    """Not so if compiling was tried and failed."""


def train(module: nn.Module, parameters: Iterable[dict[str, Any]], draw: Callable[[int], tuple[Any, ...]],
          score: Callable[[Any], float], config: TrainConfig, *,
          before: Callable[[int, tuple[Any, ...]], None] | None = None,
          report: Callable[[Report, Any], None] | None = None, offer: Offer | None = None,
          saved: State | None = None, compile: bool = False) -> TrainResult:
    """Trains a module whose forward is the loss.

    A step whose loss or gradient is not finite is skipped and counted: it reaches neither the parameters nor the
    optimiser. Where several processes train together, gradient, score and what is skipped are those of all.

    Arguments:
        module: returns a named tuple whose first entry, `loss`, is the scalar to descend.
        parameters: groups for the optimiser, with "params" and optionally "lr".
        draw: gives the arguments of the module at a step.
        score: judges the module with averaged parameters, lower is better.
        config: how to train.
        before: called with the step and the batch before the loss is evaluated.
        report: called after every step.
        offer: called after every step, with the state of the loop.
        saved: a state that was offered, to go on from. Whatever `draw`, `score` and `before` hold is for the caller to
            restore.
        compile: whether to compile the module, if this process is alone; the batches must be of one shape.

    Raises:
        StateError: if the saved state does not fit.
        TrainingError: if `patience` steps in a row had to be skipped, or if no score was finite.
    """
    loop = _Loop(module, parameters, config)
    optimiser, average = loop.optimiser, loop.average
    rates = [group["lr"] for group in optimiser.param_groups]
    trained = [p for group in optimiser.param_groups for p in group["params"]]
    with restoring():
        if saved is not None:
            loop.restore(saved, config.steps)
        if not all(p.requires_grad for p in trained):
            raise ValueError("parameters that do not learn")
    fast = Compiled(module, trained[0].device) if compile and count() == 1 else None
    evaluate = fast or differentiated(together(module, trained))
    start = time.monotonic()
    for step in range(loop.step, config.steps):
        share = config.final_rate + (1 - config.final_rate) * 0.5 * (1 + math.cos(math.pi * step / config.steps))
        for group, rate in zip(optimiser.param_groups, rates, strict=True):
            group["lr"] = share * rate
        batch = draw(step)
        if before is not None:
            before(step, batch)
        # Of all parameters, those too that are solved for: what is played back as a graph writes where it wrote before.
        module.zero_grad(set_to_none=True)
        terms = evaluate(*batch)
        norm = nn.utils.clip_grad_norm_(trained, config.clip)
        usable = everywhere(torch.isfinite(terms.loss.detach()) & torch.isfinite(norm))
        setattr(optimiser, "found_inf", loop.skips.count(usable))  # noqa: B010
        optimiser.step()
        loop.follow()
        if loop.skips.read(step, last=step + 1 == config.steps) >= config.patience:
            raise TrainingError(
                f"the loss or its gradient was not finite in {loop.skips.longest} steps in a row, the last at step "
                f"{step + 1}; lower the learning rate, look for outliers in the data, or use fewer components")
        if (step + 1) % config.check_every == 0 or step + 1 == config.steps:
            value = mean_value(score(average.module))
            if value <= loop.best:
                loop.best, loop.best_step, loop.best_state = value, step + 1, copy_state(average.module)
        loop.step = step + 1
        if report is not None:
            report(Report(step + 1, config.steps, time.monotonic() - start, loop.skips.total, {}), terms)
        if offer is not None:
            offer(loop.state)
    if config.steps and not math.isfinite(loop.best):
        raise TrainingError(f"after none of {config.steps} steps was the score on held-out data finite; look for outliers "
                            "in the data, or use fewer components")
    return TrainResult(config.steps, loop.skips.total, loop.best_step, loop.best, loop.best_state,
                       fast is None or not fast.failed)


class _Loop:
    """What changes from step to step."""

    def __init__(self, module: nn.Module, parameters: Iterable[dict[str, Any]], config: TrainConfig) -> None:
        self.module = module
        # Fused, for that is the one that leaves out an update when a tensor says so.
        self.optimiser = torch.optim.Adam(list(parameters), lr=config.learning_rate, betas=(0.9, 0.99), fused=True)
        self.average, self.memory = AveragedModel(module), config.memory
        self.skips = _Skips(self.optimiser.param_groups[0]["params"][0].device)
        self.step = 0
        self.best, self.best_step, self.best_state = math.inf, 0, copy_state(self.average.module)

    @torch.no_grad()
    def follow(self) -> None:
        """Lets the averages follow the parameters; torch's own way sends a count to the device and waits, every time."""
        averages: list[Tensor] = list(self.average.module.parameters())
        parameters: list[Tensor] = list(self.module.parameters())
        if bool(self.average.n_averaged):
            torch._foreach_lerp_(averages, parameters, 1 - self.memory)
        else:
            torch._foreach_copy_(averages, parameters)
        self.average.n_averaged += 1

    def state(self) -> State:
        moments = self.optimiser.state_dict()["state"]
        return {"step": self.step, "skips": self.skips.counts, "module": copy_state(self.module),
                "average": copy_state(self.average), "optimiser": {str(place): part for place, part in moments.items()},
                "best": self.best, "best_step": self.best_step, "best_state": self.best_state}

    def restore(self, state: State, steps: int) -> None:
        self.step, self.best, self.best_step = int(state["step"]), float(state["best"]), int(state["best_step"])
        if not 0 <= self.step <= steps:
            raise ValueError(f"step {self.step} of {steps}")
        self.skips.counts.copy_(state["skips"])
        self.module.load_state_dict(state["module"])
        self.average.module.load_state_dict(state["best_state"])
        self.best_state = copy_state(self.average.module)
        self.average.load_state_dict(state["average"])
        # The groups are as they were made; their rates follow the schedule.
        groups = self.optimiser.state_dict()["param_groups"]
        moments = {int(place): part for place, part in state["optimiser"].items()}
        trained = [p for group in self.optimiser.param_groups for p in group["params"]]
        for place, part in moments.items():
            if {name: value.shape for name, value in part.items()} != _moment_shapes(trained[place]):
                raise ValueError(f"moments of parameter {place}")
        self.optimiser.load_state_dict({"state": moments, "param_groups": groups})


def _moment_shapes(parameter: Tensor) -> dict[str, torch.Size]:
    """What Adam holds of a parameter."""
    return {"step": torch.Size(), "exp_avg": parameter.shape, "exp_avg_sq": parameter.shape}


def choose_device(name: str) -> torch.device:
    """Returns the device of a name; "auto" takes CUDA when there is one.

    Raises:
        ValueError: if the device is unknown or not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not re.fullmatch(r"cpu|cuda(:\d+)?", str(name)):
        raise ValueError(f"device must be 'auto', 'cpu', 'cuda' or 'cuda:0' and so on, got {name!r}")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device {name!r} was asked for, but this torch sees {torch.cuda.device_count() or 'no'} GPU; use "
                         "device='auto' or 'cpu'")
    return device


@contextmanager
def restoring() -> Iterator[None]:
    """Says in one sentence that a state does not fit what is to go on from it: one from others may be wrong in any way."""
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        what = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise StateError(f"the checkpoint does not fit this fit ({what:.200}); remove its folder to start anew") from error


@contextmanager
def singular_matrices() -> Iterator[None]:
    """Says in the words of the data, not of linear algebra, that a fit's matrices have become singular."""
    try:
        yield
    except torch.linalg.LinAlgError as error:
        raise TrainingError("a covariance of the density became singular; look for outliers and repeated points in the "
                            "data, or use fewer components") from error


class _Skips:
    """Counts steps that are left out, where the loss is; on a GPU, to ask for the counts is to wait for them."""

    def __init__(self, device: torch.device) -> None:
        self.every = 1 if device.type == "cpu" else STEPS_BETWEEN_READS
        # In all, in a row now, and most in a row since they were read.
        self.counts = torch.zeros(3, device=device)
        self.total, self.longest = 0, 0

    def count(self, usable: Tensor) -> Tensor:
        """Counts a step, and returns 1 if it is to be left out and 0 otherwise."""
        left_out = (~usable).to(self.counts)
        total, now, most = self.counts
        now = left_out * (now + 1)
        self.counts = torch.stack([total + left_out, now, torch.maximum(most, now)])
        return left_out

    def read(self, step: int, last: bool = False) -> int:
        """Returns the most steps in a row that were left out, as far as it is known by now."""
        if last or (step + 1) % self.every == 0:
            self.total, _, self.longest = map(int, self.counts.tolist())
        return self.longest


def copy_state(module: nn.Module) -> dict[str, Tensor]:
    """Returns a copy of a module's parameters and buffers by name."""
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}

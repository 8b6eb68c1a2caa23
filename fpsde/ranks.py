"""Processes that fit together, on one machine or on many: what each has to itself, and what they agree on.

Each is given the same data, keeps its share of every snapshot, and draws batches and collocation points of its own.
Gradients, normal equations and scores are means over all of them; what cannot be shared out, the first one finds and tells
the others. In a process that is alone every function here gives back what it is given.
"""

from __future__ import annotations

import atexit
import os
import warnings
from collections.abc import Callable, Iterable
from datetime import timedelta
from typing import TypeVar, cast

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

__all__ = ["agreed", "alike", "asked_every", "count", "everywhere", "first", "gathered", "join", "left_alone", "mean",
           "mean_value", "part_ways", "rank", "told_by_first", "together"]

T = TypeVar("T")

# The first process may solve for long while the others wait.
PATIENCE = timedelta(hours=3)
STEPS_BETWEEN_QUESTIONS = 16
_alone = False


def join(device: torch.device) -> torch.device:
    """Meets the processes that torchrun started beside this one, if any, over NCCL on GPUs and over gloo on the CPU.

    Returns:
        The device of this process: of several GPUs on a machine, each takes its own.

    Raises:
        ValueError: if there are more processes on this machine than GPUs.
    """
    started = int(os.environ.get("WORLD_SIZE", "1")) if dist.is_available() and dist.is_torchelastic_launched() else 1
    if count() == 1 and started == 1:
        return device
    if device.type == "cuda" and device.index is None:
        place = int(os.environ.get("LOCAL_RANK", "0"))
        if place >= torch.cuda.device_count():
            raise ValueError(f"process {place + 1} on this machine has no GPU of its own, there are "
                             f"{torch.cuda.device_count()}; start as many processes as GPUs, or use device='cpu'")
        device = torch.device("cuda", place)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
        atexit.register(_leave)
    return device


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def left_alone(error: Exception) -> bool:
    """Whether an error is no more than that another process has ended."""
    return count() > 1 and isinstance(error, RuntimeError) and ("onnection" in str(error) or "NCCL" in str(error))


def count() -> int:
    """Returns the number of processes; where the others wait for the first, it is alone."""
    if _alone:
        return 1
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Returns the place of this process among them, from 0."""
    return dist.get_rank() if count() > 1 else 0


def first() -> bool:
    """Returns whether this is the process that writes files and shows progress."""
    return rank() == 0


def told_by_first(make: Callable[[], T]) -> T:
    """Returns what the first process makes; an error that it runs into, or Ctrl-C, is raised in all."""
    global _alone
    if count() == 1:
        return make()
    told: list[tuple[T | None, BaseException | None]] = [(None, None)]
    if first():
        _alone = True
        try:
            told = [(make(), None)]
        except (Exception, KeyboardInterrupt) as error:
            told = [(None, error)]
        finally:
            _alone = False
    dist.broadcast_object_list(told)
    value, wrong = told[0]
    if wrong is not None:
        raise wrong
    return cast(T, value)


def mean(values: Tensor) -> Tensor:
    """Returns the mean over all processes, of values of one shape."""
    if count() == 1:
        return values
    total = values.detach().clone()
    dist.all_reduce(total)
    return total / count()


def mean_value(value: float) -> float:
    """Returns the mean of a number over all processes."""
    if count() == 1:
        return value
    where = "cuda" if dist.get_backend() == "nccl" else "cpu"
    return float(mean(torch.tensor(value, dtype=torch.float64, device=where)))


def asked_every() -> int:
    """Returns how many steps pass between questions to all: on GPUs, to ask is to wait for them."""
    return STEPS_BETWEEN_QUESTIONS if count() > 1 and dist.get_backend() == "nccl" else 1


def agreed(number: int) -> int:
    """Returns the largest of a number that each process has."""
    if count() == 1:
        return number
    value = torch.tensor(number, device="cuda" if dist.get_backend() == "nccl" else "cpu")
    dist.all_reduce(value, dist.ReduceOp.MAX)
    return int(value)


def everywhere(condition: Tensor) -> Tensor:
    """Returns whether a condition, shape (), holds in all processes."""
    return condition if count() == 1 else mean(condition.double()) == 1


def gathered(rows: Tensor) -> Tensor:
    """Returns the rows of all processes, each with its own number of them, one after the other."""
    if count() == 1:
        return rows
    counts = [torch.zeros(1, dtype=torch.long, device=rows.device) for _ in range(count())]
    dist.all_gather(counts, torch.tensor([len(rows)], device=rows.device))
    most = max(int(n) for n in counts)
    padded = torch.cat([rows, rows.new_zeros(most - len(rows), *rows.shape[1:])])
    parts = [torch.empty_like(padded) for _ in range(count())]
    dist.all_gather(parts, padded)
    return torch.cat([part[:int(n)] for part, n in zip(parts, counts, strict=True)])


def alike(module: nn.Module) -> None:
    """Gives parameters and buffers of a module the values that they have in the first process."""
    if count() > 1:
        for values in module.state_dict().values():
            dist.broadcast(values, 0)


def together(module: nn.Module, trained: Iterable[nn.Parameter]) -> nn.Module:
    """Returns a module whose backward pass leaves the mean of the gradients of all processes, alike in all of them.

    Arguments:
        module: its forward must be the loss, and reach all that is trained.
        trained: the parameters whose gradients are meant.
    """
    if count() == 1:
        return module
    chosen, needed = {id(p) for p in trained}, {p: p.requires_grad for p in module.parameters()}
    try:
        # Of a parameter that it has seen, it waits for the gradient.
        for parameter in needed:
            parameter.requires_grad_(needed[parameter] and id(parameter) in chosen)
        with warnings.catch_warnings():
            # The buffers never change. torch 2.13 has another word for it, which 2.11 does not know.
            warnings.simplefilter("ignore", FutureWarning)
            wrapped = DistributedDataParallel(module, broadcast_buffers=False)
        # It says of an axis of one entry that it is laid out otherwise.
        warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
        return wrapped
    finally:
        for parameter, before in needed.items():
            parameter.requires_grad_(before)


def part_ways(generator: torch.Generator, *key: int) -> None:
    """Gives the generator of each process but the first a state of its own, the same for the same key."""
    if rank():
        generator.manual_seed(int(np.random.SeedSequence([*key, rank()]).generate_state(1)[0]))

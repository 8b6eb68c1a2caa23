"""The cores of a CPU: an operation has one thread, and independent parts of the work are done side by side.

Most operations here are too small to be shared out (benchmarks/results/threads.md), and their sums would depend on how many
share them. Parts that are done side by side are each as they would be alone: the same seed gives the same model on any
number of cores.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

import torch

__all__ = ["one_thread", "side_by_side"]

Part = TypeVar("Part")
Result = TypeVar("Result")

# More at a time would hold more memory than they save time.
MOST_AT_A_TIME = 8
_CORES: ContextVar[int] = ContextVar("cores", default=1)


@contextmanager
def one_thread(device: torch.device) -> Iterator[None]:
    """Keeps torch to one thread on the CPU, unless the environment has OMP_WAIT_POLICY=passive.

    On a busy machine threads that wait for each other at every operation by spinning, as they do unless told otherwise, are
    tens of times slower than one (benchmarks/results/threads.md). That must be told before torch is loaded. The other
    threads that torch was given are left to :func:`side_by_side`, which has them wait for each other once for all.
    """
    threads = torch.get_num_threads()
    alone = device.type == "cpu" and os.environ.get("OMP_WAIT_POLICY", "").lower() != "passive"
    cores = _CORES.set(threads if alone else 1)
    try:
        if alone:
            torch.set_num_threads(1)
        yield
    finally:
        torch.set_num_threads(threads)
        _CORES.reset(cores)


def side_by_side(function: Callable[[Part], Result], parts: Sequence[Part]) -> list[Result]:
    """Returns the function's value of each part; inside :func:`one_thread`, on as many cores as it keeps idle.

    The function must neither draw random numbers nor change what another part reads.
    """
    workers, graph = min(_CORES.get(), len(parts), MOST_AT_A_TIME), torch.is_grad_enabled()
    if workers < 2:
        return [function(part) for part in parts]

    def alone(part: Part) -> Result:
        # Each thread has a say of its own whether gradients are wanted.
        with torch.set_grad_enabled(graph):
            return function(part)

    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(alone, parts))

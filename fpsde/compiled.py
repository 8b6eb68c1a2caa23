"""A loss and its gradient as compiled code, by torch.compile, where that pays within the run.

Whether it does is decided by the sizes of the run, not by a clock: so the same fit is compiled, or not, every time, and its
result stays the same bit for bit on one machine. On a GPU forward and backward pass are recorded as CUDA graphs too.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn

__all__ = ["AUTONOMOUS_PATH", "NETS", "PATH", "Compiled", "Gain", "differentiated", "pays"]

# Measured on the CPU (benchmarks/results/compiling.md): seconds to compile a step. They must be gained twice over, for
# machines differ.
SECONDS = 75.0
# Not measured on a GPU: what it takes to have one operation done. With next to no points it takes twice as long on the CPU.
LAUNCH = 1e-5
# The first call compiles, the second records the graphs, the third is the first that plays them.
TRIALS = 3


class Gain(NamedTuple):
    """What a compiled step gains."""

    saved: float
    """Seconds that it was measured to save at least on the CPU, for each unit of its size."""
    operations: int
    """Of a forward and backward pass as they are, whatever the size; a GPU has to be told each, or play one graph."""


# The size of a step of the path is its points times its components, that of the nets its collocation points times d.
PATH, AUTONOMOUS_PATH, NETS = Gain(6e-8, 470), Gain(6e-8, 110), Gain(2e-6, 490)


def pays(steps: int, size: int, gain: Gain, device: torch.device) -> bool:
    """Whether so many steps of one kind, each of this size, are worth compiling."""
    saved = gain.operations * LAUNCH if device.type == "cuda" else gain.saved * size
    return steps * saved > 2 * SECONDS


def differentiated(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a function that evaluates a loss with its parts, and leaves its gradient in the parameters."""

    def evaluate(*arguments: Any) -> Any:
        terms = forward(*arguments)
        terms.loss.backward()
        return terms

    return evaluate


class Compiled:
    """:func:`differentiated` of a module as compiled code for inputs of one shape.

    It is compiled when it is called first. If that fails, as without a compiler, a warning says so and the module is called
    as it is. Gradients must be None before a call: on a GPU their memory is that of the last call's.

    Arguments:
        module: its forward returns the loss and its parts, a named tuple.
        device: where it computes.

    Attributes:
        failed: whether it could not be compiled.
    """

    def __init__(self, module: nn.Module, device: torch.device) -> None:
        self.module, self.graphs = module, device.type == "cuda"
        self.plain = differentiated(module)
        mode = "reduce-overhead" if self.graphs else None
        self.fast = differentiated(torch.compile(module, dynamic=False, mode=mode))
        self.calls, self.failed = 0, False

    def __call__(self, *arguments: Any) -> Any:
        if self.failed:
            return self.plain(*arguments)
        self.calls += 1
        try:
            if self.graphs:
                torch.compiler.cudagraph_mark_step_begin()
            terms = self.fast(*arguments)
            # The next call writes where this one has left its results.
            return terms._make(part.detach().clone() for part in terms)
        except Exception as error:
            if self.calls > TRIALS:
                raise
            self.module.zero_grad(set_to_none=True)
            # Of many kinds; what is wrong with the step itself comes again from the module.
            terms = self.plain(*arguments)
            self.failed, said = True, " ".join(str(error).split())
            warnings.warn(f"the steps cannot be compiled ({type(error).__name__}: {said:.120}); the fit goes on without, "
                          "slower", RuntimeWarning, stacklevel=2)
            return terms

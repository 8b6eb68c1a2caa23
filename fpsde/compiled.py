"""A step as compiled code, by torch.compile, where that pays within the run.

Whether it does is decided by the sizes of the run, not by a clock: so the same fit is compiled, or not, every time, and its
result stays the same bit for bit on one machine.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

__all__ = ["compiled", "pays"]

# Measured (benchmarks/results/compiling.md): seconds to compile a step, and what it then saves for a point and component at
# least. It must be gained twice over, for machines differ.
SECONDS, SAVED = 75.0, 6e-8


def pays(steps: int, pairs: int, device: torch.device) -> bool:
    """Whether so many steps, each over so many pairs of point and component, are worth compiling.

    On a GPU, where it was not measured, they are not.
    """
    return device.type == "cpu" and steps * pairs * SAVED > 2 * SECONDS


def compiled(module: nn.Module) -> Callable[..., Any]:
    """Returns the forward of a module as compiled code for inputs of one shape.

    It is compiled when it is called first. If that fails, as without a compiler, a warning says so and the module is called
    as it is.
    """
    fast: Callable[..., Any] | None = torch.compile(module, dynamic=False)
    tried = False

    def forward(*arguments: Any) -> Any:
        nonlocal fast, tried
        if fast is None:
            return module(*arguments)
        if tried:
            return fast(*arguments)
        tried = True
        try:
            return fast(*arguments)
        except Exception as error:
            # Of many kinds; what is wrong with the step itself comes again from the module.
            result = module(*arguments)
            fast, said = None, " ".join(str(error).split())
            warnings.warn(f"the steps cannot be compiled ({type(error).__name__}: {said:.120}); the fit goes on without, "
                          "slower", RuntimeWarning, stacklevel=2)
            return result

    return forward

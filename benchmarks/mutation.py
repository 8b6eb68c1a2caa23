"""Do the tests notice? Small errors are put into a module one at a time, and the tests that are about it are run.

An error is another operator of arithmetic, comparison or logic, a number that is one larger, a minus left out, a condition
turned round, True for False, a loop that never runs, or a decorator left out. Words, annotations and messages of errors are
left as they are. Each error lives in a forked process, which is killed after some time; that counts as noticed. What nobody
noticed is listed, to be read.

    python benchmarks/mutation.py [--modules taylor,hollow,fokker_planck] [--most 150] [--seed 0] [-o FILE]
"""

from __future__ import annotations

import argparse
import ast
import gc
import importlib.abc
import importlib.machinery
import importlib.util
import os
import random
import signal
import sys
import time
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from types import CodeType, ModuleType
from typing import NamedTuple

# Loaded once, before the processes part; what is tested must not be.
import matplotlib.pyplot  # noqa: F401
import pytest
import safetensors.torch  # noqa: F401
import scipy.integrate
import scipy.interpolate
import scipy.optimize
import scipy.stats  # noqa: F401
import sklearn.cluster
import sklearn.utils.validation  # noqa: F401
import torch
import torch._decomp.decompositions_for_jvp
import torch.optim.swa_utils
import torchsde  # noqa: F401
import tqdm  # noqa: F401

ROOT = Path(__file__).resolve().parent.parent
TESTS = {
    "taylor": ["test_taylor.py", "test_precision.py::test_activations_where_they_saturate",
               "test_precision.py::test_the_small_side_of_the_positive_activations_has_all_digits"],
    "hollow": [*(f"test_hollow.py::{name}" for name in (
        "test_what_is_usual", "test_how_a_net_starts", "test_columns_times_readout_is_the_operator_applied_to_the_field")),
        "test_hollow.py", "test_precision.py::test_derivatives_of_a_deeper_net"],
    "fokker_planck": ["test_fokker_planck.py::test_the_loss_is_the_sum_of_its_parts",
                      "test_fokker_planck.py::test_influence_is_that_of_a_cauchy_likelihood", "test_fokker_planck.py"],
}
# What only repeats in more dimensions, and costs most.
LEFT_OUT = "not 33 and not test_high_orders and not test_modes_agree_in_float32"
PAIRS = [(ast.Add, ast.Sub), (ast.Mult, ast.Div), (ast.Lt, ast.LtE), (ast.Gt, ast.GtE), (ast.Eq, ast.NotEq),
         (ast.Is, ast.IsNot), (ast.In, ast.NotIn), (ast.And, ast.Or), (ast.BitAnd, ast.BitOr)]
OTHER: dict[type, type] = {ast.Pow: ast.Mult, ast.FloorDiv: ast.Div, ast.Mod: ast.Mult, ast.MatMult: ast.Mult,
                           **dict(PAIRS), **{b: a for a, b in PAIRS}}


class Mutant(NamedTuple):
    """A module with one error."""

    line: int
    change: str
    tree: ast.Module


def changes(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """The errors that one node can have, each with what stands in its place."""
    new = deepcopy(node)
    if isinstance(new, (ast.BinOp, ast.BoolOp, ast.AugAssign)):
        if type(new.op) in OTHER:
            new.op = OTHER[type(new.op)]()
            yield ast.unparse(new), new
    elif isinstance(new, ast.Compare):
        for k, op in enumerate(new.ops):
            if type(op) in OTHER:
                other = deepcopy(new)
                other.ops[k] = OTHER[type(op)]()
                yield ast.unparse(other), other
    elif isinstance(new, ast.UnaryOp) and isinstance(new.op, (ast.USub, ast.Not, ast.Invert)):
        yield ast.unparse(new.operand), new.operand
    elif isinstance(new, ast.Constant) and type(new.value) in (int, float, bool):
        new.value = not new.value if isinstance(new.value, bool) else new.value + 1
        yield ast.unparse(new), new
    elif isinstance(new, (ast.If, ast.IfExp, ast.While)):
        new.test = ast.UnaryOp(ast.Not(), new.test)
        yield f"if {ast.unparse(new.test)}", new
    elif isinstance(new, (ast.For, ast.comprehension)):
        new.iter = ast.Tuple([], ast.Load())
        yield f"for {ast.unparse(new.target)} in ()", new
    elif isinstance(new, ast.FunctionDef) and new.decorator_list:
        gone = ast.unparse(new.decorator_list.pop(0))
        if gone not in ("abstractmethod", "classmethod", "property", "contextmanager"):
            yield f"without @{gone}", new


def places(tree: ast.AST) -> Iterator[tuple[ast.AST, str, int | None]]:
    """Where the nodes that run hang: parent, field and place in the field."""
    for name, value in ast.iter_fields(tree):
        if name in ("annotation", "returns") or isinstance(tree, ast.Raise):
            continue
        for k, child in enumerate(value) if isinstance(value, list) else [(None, value)]:
            public = isinstance(child, ast.Assign) and ast.unparse(child.targets[0]) == "__all__"
            if isinstance(child, ast.AST) and not public:
                yield tree, name, k
                yield from places(child)


def mutants(source: str) -> list[Mutant]:
    """All modules with one error."""
    found, tree = [], ast.parse(source)
    for parent, name, k in list(places(tree)):
        holder = getattr(parent, name)
        node = holder if k is None else holder[k]
        if isinstance(node, ast.Constant) and isinstance(parent, ast.Subscript) and isinstance(parent.value, ast.Name) and (
                parent.value.id in ("Callable", "tuple", "list", "dict")):
            continue
        for change, new in changes(node):
            _put(parent, name, k, new)
            line = getattr(node, "lineno", getattr(parent, "lineno", getattr(getattr(node, "target", None), "lineno", 0)))
            found.append(Mutant(line, change, ast.fix_missing_locations(deepcopy(tree))))
            _put(parent, name, k, node)
    return found


def _put(parent: ast.AST, name: str, k: int | None, node: ast.AST) -> None:
    if k is None:
        setattr(parent, name, node)
    else:
        getattr(parent, name)[k] = node


class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports one module of the package from code that is given."""

    def __init__(self, name: str, code: CodeType) -> None:
        self.name, self.code = name, code

    def find_spec(self, name: str, *_: object) -> importlib.machinery.ModuleSpec | None:
        """Finds the module, and no other."""
        return importlib.util.spec_from_loader(name, self) if name == self.name else None

    def exec_module(self, module: ModuleType) -> None:
        """Runs the code."""
        module.__file__ = f"{self.name} with an error"
        exec(self.code, vars(module))


def survives(module: str, mutant: Mutant | None, seconds: float) -> bool:
    """Whether all tests pass with an error in the module, in a process of its own."""
    child = os.fork()
    if not child:
        try:
            if mutant is not None:
                sys.meta_path.insert(0, Finder(f"fpsde.{module}", compile(mutant.tree, module, "exec")))
            with open(os.devnull, "w") as null:
                os.dup2(null.fileno(), 1)
                os.dup2(null.fileno(), 2)
            tests = [str(ROOT / "tests" / name) for name in TESTS[module]]
            code = pytest.main(["-x", "-q", "-k", LEFT_OUT, *("-p", "no:cacheprovider", "-p", "no:hypothesispytest"),
                                *("-p", "no:unraisableexception"),
                                "--no-header", "--tb=no", "--assert=plain", *tests])
        except BaseException:
            code = 1
        os._exit(int(code))
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if (done := os.waitpid(child, os.WNOHANG))[0]:
            return os.waitstatus_to_exitcode(done[1]) == 0
        time.sleep(0.02)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False


def main() -> None:
    """Prints and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--modules", default=",".join(TESTS))
    parser.add_argument("--most", type=int, default=150, help="errors in a module, chosen at random if there are more")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-o", "--output", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    sys.path.insert(0, str(ROOT))
    sys.path.insert(1, str(ROOT / "tests"))
    # What the collector does not look at, a process need not copy.
    gc.freeze()
    assert not any(name.split(".")[0] == "fpsde" for name in sys.modules)
    lines, alive = [], []
    for module in arguments.modules.split(","):
        everything = mutants((ROOT / "fpsde" / f"{module}.py").read_text())
        chosen = random.Random(arguments.seed).sample(everything, min(arguments.most, len(everything)))
        begin = time.monotonic()
        if not survives(module, None, 600):
            raise SystemExit(f"{module}: the tests fail without any error")
        limit, left = 3 * (time.monotonic() - begin) + 10, []
        for k, mutant in enumerate(sorted(chosen, key=lambda m: m[:2])):
            if survives(module, mutant, limit):
                left.append(mutant)
                print(f"{module}:{mutant.line}: {mutant.change}", flush=True)
            if k % 25 == 24:
                print(f"{module}: {k + 1} of {len(chosen)}, {len(left)} not noticed", flush=True)
        lines.append(f"| {module} | {len(everything)} | {len(chosen)} | {len(chosen) - len(left)} | "
                     f"{100 * (1 - len(left) / len(chosen)):.1f} | {time.monotonic() - begin:.0f} |")
        print(lines[-1], flush=True)
        alive += [f"| {module} | {m.line} | `{m.change.splitlines()[0]}` | |" for m in left]
    text = "\n".join(["| module | errors | tried | noticed | % | s |", "|---|---|---|---|---|---|", *lines, "",
                      "Not noticed:", "", "| module | line | error | why |", "|---|---|---|---|", *alive])
    print(text)
    if arguments.output:
        arguments.output.write_text(text + "\n")


if __name__ == "__main__":
    main()

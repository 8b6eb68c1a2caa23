"""Errors against a known truth, and how tables show them and say where they come from."""

from __future__ import annotations

import argparse
import platform
import subprocess
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from systems import Array

__all__ = ["SHARED", "commit", "data_parser", "heading", "matches", "parse_with_data", "publish", "relative_error",
           "spread"]

SHARED = Path(__file__).resolve().parent.parent.parent / "shared" / "data"


def heading(title: str, command: str, packages: Sequence[str] = ("torch",)) -> list[str]:
    """The lines above a table: machine, versions, commit and command. Ask early: what runs is what is committed by then."""
    versions = ", ".join(f"{name} {version(name)}" for name in packages)
    return [f"# {title}", "", f"{platform.machine()}, {torch.get_num_threads()} CPU thread, Python "
            f"{platform.python_version()}, {versions}, commit {commit(Path(__file__).parent)}", "", f"`{command}`", ""]


def commit(folder: Path) -> str:
    """The commit that a folder is at, with a + if files of it have changed since."""
    head, changed = (subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, check=False).stdout.strip()
                     for words in (["rev-parse", "--short", "HEAD"], ["status", "--porcelain", "--untracked-files=no"]))
    return head + "+" * bool(changed)


def matches(name: str, only: str) -> bool:
    """Whether a name holds one of the parts that ; separates."""
    return any(part.strip() in name for part in only.split(";"))


def data_parser(description: str | None, name: str) -> argparse.ArgumentParser:
    """The command line of a benchmark on a file that lies beside the checkout unless named."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, nargs="?", default=SHARED / name)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("-o", "--output", type=Path)
    return parser


def parse_with_data(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The arguments, if the file is there."""
    arguments = parser.parse_args()
    if not arguments.data.is_file():
        parser.error(f"{arguments.data} is not there: name the file")
    return arguments


def publish(lines: Sequence[str], output: Path | None) -> None:
    """Prints a table and writes it, if a file is named."""
    print("\n".join(lines))
    if output:
        output.write_text("\n".join(lines) + "\n")


def relative_error(value: Array, truth: Array) -> float:
    """Root mean square of the difference over that of the truth, all coordinates together."""
    return float(np.sqrt(((value - truth) ** 2).sum() / (truth**2).sum()))


def spread(values: Sequence[float | None], factor: float = 100.0, digits: int = 1, short: bool = False) -> str:
    """Median of the values that are there, with least and largest, in % unless asked otherwise; short, a value alone."""
    there = factor * np.array([v for v in values if v is not None])
    if not len(there):
        return ""
    middle = f"{np.median(there):.{digits}f}"
    return middle if short and len(values) == 1 else f"{middle} ({there.min():.{digits}f} to {there.max():.{digits}f})"

"""Fits killed by SIGKILL at random moments and taken up again, until they finish.

Each life of a fit is a process of its own, which is killed after a random time, every second one not before it is inside a
save; states are saved at every step, or twice a second, so that kills cost work. After every kill all states in the folder
are read. In the end the model file is compared with that of a fit that was left alone and saved nothing: every weight, the
learning curves and the summary, bit for bit. Exit code 1 if a state was unreadable or a model differs.

    python benchmarks/kills.py [--kills 20] [--only time] [-o FILE]
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scores import heading, matches, publish
from systems import System, even, gaussian

from fpsde import FokkerPlanckSDE
from fpsde.checkpoints import saved_states
from fpsde.model_file import load_file
from fpsde.state_file import StateFileError, read_state, write_state

PULL = System("pull", lambda x: -x, even(np.array([0.7, 0.5])), gaussian(np.array([2.0, 1.0]), 0.4), 2.0, noise=(0.7, 0.5))
FITS = {
    "time, 2 paths": {"drift": "time", "n_components": 20},
    "autonomous": {"drift": "autonomous"},
    "autonomous, 2 members": {"drift": "autonomous", "diffusion": "constant", "n_members": 2},
}


@dataclass
class Tally:
    """What was seen of one kind of fit."""

    kills: int = 0
    inside: int = 0
    finished: int = 0
    different: int = 0
    states: int = 0
    unreadable: int = 0
    lives: list[int] = field(default_factory=list)


def born(settings: dict[str, Any], x: np.ndarray, t: np.ndarray, model: Path, folder: Path | None, seconds: float) -> int:
    """Starts a fit in a process of its own and returns its number."""
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        FokkerPlanckSDE(**settings).fit(x, t, checkpoint=folder, checkpoint_seconds=seconds).save(model)
        code = 0
    finally:
        os._exit(code)


def ended(process: int, seconds: float, saving: Path | None = None) -> bool:
    """Whether a process ended by itself, and well, within some time; else it is killed, if asked while it saves."""
    end = time.monotonic() + seconds
    while time.monotonic() < end or not (saving is None or half_written(saving)):
        found, status = os.waitpid(process, os.WNOHANG)
        if found:
            if status:
                raise SystemExit(f"a fit failed with status {status}")
            return True
        time.sleep(0.0002)
    os.kill(process, signal.SIGKILL)
    return not os.waitpid(process, 0)[1]


def half_written(folder: Path) -> bool:
    """Whether there is a state that has not got its name yet."""
    return folder.is_dir() and any(
        name.startswith(".state-") and "-000000." not in name for name in os.listdir(folder))


def look(folder: Path, tally: Tally) -> None:
    """Reads all states of a fit that was killed."""
    tally.inside += half_written(folder)
    for path in saved_states(folder):
        tally.states += 1
        try:
            read_state(path)
        except StateFileError as error:
            tally.unreadable += 1
            print(error, file=sys.stderr)


def same(path: Path, other: Path) -> bool:
    """Whether two model files hold the same, bit for bit."""
    (tensors, header), (others, expected) = load_file(path), load_file(other)
    return header == expected and tensors.keys() == others.keys() and all(
        torch.equal(tensors[name], others[name]) for name in tensors)


def measure(settings: dict[str, Any], seconds: float, kills: int, rng: np.random.Generator,
            quick: bool) -> tuple[Tally, str]:
    """Kills fits of one kind often enough, and tells the size of a state and the time that it takes to save."""
    x, t = PULL.snapshots(np.random.default_rng(0), 4, 60 if quick else 200)
    tally, settings = Tally(), {"n_components": 3, "hidden": (8,), "max_steps": 20 if quick else 60, "random_state": 0,
                                "device": "cpu", **settings}
    with tempfile.TemporaryDirectory() as name:
        here = Path(name)
        begin = time.monotonic()
        assert ended(born(settings, x, t, here / "alone", None, seconds), 1e6)
        alone = time.monotonic() - begin
        while tally.kills < kills:
            folder, before = here / f"states {tally.finished}", tally.kills
            while not ended(born(settings, x, t, here / "model", folder, seconds), rng.uniform(0.1, 0.8) * alone,
                            folder if tally.kills % 2 else None):
                tally.kills += 1
                look(folder, tally)
            tally.finished += 1
            tally.lives.append(tally.kills - before + 1)
            tally.different += not same(here / "model", here / "alone")
        last = saved_states(folder)[-1]
        state, begin = read_state(last), time.monotonic()
        for _ in range(10):
            write_state(last, state)
        return tally, f"{last.stat().st_size / 1e3:.0f} kB, {100 * (time.monotonic() - begin):.0f} ms"


def row(name: str, seconds: float, tally: Tally, cost: str) -> str:
    """A line of the table."""
    return (f"| {name} | {seconds:g} | {tally.kills} | {tally.inside} | {tally.finished} | {min(tally.lives)} to "
            f"{max(tally.lives)} | {tally.states} | {tally.unreadable} | {tally.different} | {cost} |")


def main() -> None:
    """Prints and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="of each kind of fit, at least")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="part of a fit's name, or several separated by ;")
    parser.add_argument("--quick", action="store_true", help="small fits that save all the time, of the first kind")
    parser.add_argument("-o", "--output", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rng, tallies = np.random.default_rng(arguments.seed), []
    lines = heading("Killed and taken up again",
                    f"python benchmarks/kills.py --kills {arguments.kills} --seed {arguments.seed}")
    lines += ["| fit | seconds between states | kills | of them inside a save | fits finished | lives of a fit | "
              "states read | unreadable | models that differ | a state |", "|---" * 10 + "|"]
    chosen = [name for name in FITS if matches(name, arguments.only)][:1 if arguments.quick else None]
    for name in chosen:
        for seconds in (0.0,) if arguments.quick else (0.0, 0.5):
            tally, cost = measure(FITS[name], seconds, arguments.kills, rng, arguments.quick)
            tallies.append(tally)
            lines.append(row(name, seconds, tally, cost))
            print(lines[-1], file=sys.stderr, flush=True)
    counted = ("kills", "inside", "unreadable", "different", "finished")
    kills, inside, unreadable, different, finished = (sum(getattr(tally, name) for tally in tallies) for name in counted)
    lines += ["", f"In all {kills} kills, {inside} of them inside a save; {unreadable} unreadable states; {different} of "
              f"{finished} models that differ."]
    publish(lines, arguments.output)
    if unreadable or different:
        raise SystemExit(1)


if __name__ == "__main__":
    main()

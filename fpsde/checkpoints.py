"""Fits that can be killed at any moment and taken up again.

A fit is a course of phases. Its state is what the present phase started from and, if that is a loop, where the loop is. A
phase that is taken up prepares itself again from what it started from, draws the same random numbers, and then goes on
where the loop was: so no more has to be kept than what changes, and the result is the same bit for bit.
"""

from __future__ import annotations

import errno
import os
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

from fpsde.files import FileError, check_writable
from fpsde.interruption import Interruption
from fpsde.ranks import agreed, asked_every, count, first, told_by_first
from fpsde.state_file import StateFileError, read_state, write_state
from fpsde.train import State, restoring

try:
    import fcntl
except ImportError:  # not on Windows, where two fits in one folder are not told apart
    fcntl = None  # type: ignore[assignment]

__all__ = ["CheckpointError", "Checkpoints", "Course", "saved_states"]

KEPT = 2
NAME, PATTERN = "state-{:06d}.safetensors", "state-*.safetensors"


class CheckpointError(ValueError):
    """A fit cannot be taken up from a folder, or not be saved to it; the message says why."""


class Course:
    """The phases of one fit, from where a saved state left off.

    Arguments:
        saved: the state, None to start at the beginning; of several processes, that of the first.
        keep: called where the fit can be left, with a function that returns its state, and with whether it is finished.
    """

    def __init__(self, saved: State | None = None,
                 keep: Callable[[Callable[[], State], bool], None] | None = None) -> None:
        self._saved, self._keep = saved, keep
        self._phase, self._start = 0, State()
        self.loop: State | None = None
        """Where the loop of the present phase is taken up; None if it starts."""

    def run(self, phases: Sequence[Callable[[], None]], take: Callable[[], State], put: Callable[[State], None]) -> None:
        """Runs the phases that are left.

        Arguments:
            phases: all phases, in order.
            take: returns what the fit holds between two phases.
            put: gives it back to the fit.
        """
        self._saved = told_by_first(lambda: self._saved)
        first = 0
        if self._saved is not None:
            with restoring():
                first, self.loop = int(self._saved["phase"]), self._saved["loop"]
                if not 0 <= first <= len(phases):
                    raise ValueError(f"phase {first} of {len(phases)}")
                put(self._saved["start"])
        for phase in range(first, len(phases)):
            self._begin(phase, take)
            phases[phase]()
            self.loop = None
        self._begin(len(phases), take, finished=True)

    def offer(self, loop: Callable[[], State]) -> None:
        """Tells that the loop of the present phase can be left here; `loop` returns its state."""
        if self._keep is not None:
            self._keep(lambda: self._state(loop()), False)

    def _begin(self, phase: int, take: Callable[[], State], finished: bool = False) -> None:
        if self._keep is not None:
            self._phase, self._start = phase, take()
            self._keep(lambda: self._state(self.loop), finished)

    def _state(self, loop: State | None) -> State:
        return {"phase": self._phase, "start": self._start, "loop": loop}


class Checkpoints:
    """The states of a fit in a folder, of which the last two are kept, and Ctrl-C and SIGTERM put off until one is saved.

    A state that cannot be saved, as on a full disk, is warned of once, and the fit goes on. Of several processes the first
    saves; all stop at the same step, whichever of them a signal came to.

    Arguments:
        folder: where the states lie; made if it is not there.
        fields: all that decides the fit, by name, to be compared.
        seed: of the fit, if there is no state yet; else that of the states is taken.
        seconds: between two states.

    Raises:
        CheckpointError: if the folder cannot be written to or is in use, if its states cannot be read, or if they are of
            another fit; it says what differs.
        StateError: if a state is not one of a fit at all.
    """

    def __init__(self, folder: str | Path, fields: Mapping[str, Any], seed: int, seconds: float) -> None:
        if not seconds >= 0:
            raise CheckpointError(f"the seconds between two checkpoints must be 0 or more, got {seconds!r}")
        self.folder, self.fields, self.seed, self.seconds = Path(folder), dict(fields), seed, seconds
        self._states: list[State] = []
        self._warned: set[str] = set()
        self._saved, self._number = -float("inf"), 0
        self._finished, self._offers = 0, 0
        """Members that need nothing to be kept any more."""
        self._interruption, self._held = Interruption(), ExitStack()

    def __enter__(self) -> Checkpoints:
        with ExitStack() as opened:
            self.seed, self._finished = told_by_first(lambda: self._open(opened))
            opened.enter_context(self._interruption)
            self._held = opened.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self._held.__exit__(kind, error, trace)

    def course(self, member: int) -> Course:
        """Returns the course of a member of an ensemble, in their order."""
        saved = self._states[member] if member < len(self._states) else None
        if member < self._finished:
            # It was finished long ago: what later ones have done is not to be forgotten for it.
            return Course(saved)

        def keep(take: Callable[[], State], finished: bool) -> None:
            if finished and first():
                self._states[member:] = [take()]
            number = self._signal()
            if number or (first() and time.monotonic() - self._saved >= self.seconds):
                save = partial(self._save, member, take)
                # The others wait for it, lest their end be that of all.
                told_by_first(save) if number else save()
                if number or count() == 1:
                    self._interruption.act(number)

        return Course(saved, keep)

    def finish(self) -> None:
        """Saves that all is done, so that to start again is to have the result at once."""
        if first():
            self._write(self._states)

    def _open(self, opened: ExitStack) -> tuple[int, int]:
        """Returns the seed, and how many members are finished."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            check_writable(self.folder / NAME.format(0))
            self._lock(opened)
            # What a save that was killed has left.
            for rest in self.folder.glob(f".{PATTERN}.*"):
                rest.unlink()
        except OSError as error:
            what = error.strerror or error
            raise CheckpointError(f"{self.folder}: no checkpoint can be written there ({what})") from error
        except FileError as error:
            raise CheckpointError(f"no checkpoint can be written: {error}") from error
        state = self._read()
        if state is not None:
            with restoring():
                fields, self.seed, self._states = dict(state["fields"]), int(state["seed"]), list(state["members"])
                if not 0 <= self.seed < 2**31:
                    raise ValueError(f"seed {self.seed}")
            self._compare(fields)
        return self.seed, len(self._states) - 1

    def _lock(self, opened: ExitStack) -> None:
        """Keeps a second fit out; the system lets go of the lock when the process ends, however it does."""
        if fcntl is None:
            return
        file = opened.enter_context((self.folder / "lock").open("a"))
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            # Some file systems know no locks.
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                raise CheckpointError(f"{self.folder}: another fit that runs saves its checkpoints there; name another "
                                      "folder, or wait") from error

    def _read(self) -> State | None:
        """The newest state that can be read."""
        paths = saved_states(self.folder)
        self._number = _number(paths[-1]) if paths else 0
        errors: list[StateFileError] = []
        for path in reversed(paths):
            try:
                state = read_state(path)
            except StateFileError as error:
                errors.append(error)
                continue
            if errors:
                warnings.warn(f"{errors[0]}; the fit goes on from the checkpoint before", RuntimeWarning, stacklevel=2)
            return state
        if errors:
            raise CheckpointError(f"{errors[0]}; remove the folder to start anew")
        return None

    def _compare(self, fields: Mapping[str, Any]) -> None:
        differ = [f"{name}={fields.get(name)!r}, not {self.fields.get(name)!r}" for name in {**fields, **self.fields}
                  if fields.get(name) != self.fields.get(name)]
        if differ:
            raise CheckpointError(f"{self.folder}: the checkpoint there is of another fit, with {'; '.join(differ)}; go on "
                                  "with the same, or name another folder")

    def _signal(self) -> int:
        """The signal that came to any of the processes, 0 if none did or if it is not asked for now."""
        number = self._interruption.pending or 0
        if count() == 1:
            return number
        self._offers += 1
        return agreed(number) if self._offers % asked_every() == 0 else 0

    def _save(self, member: int, take: Callable[[], State]) -> None:
        self._write([*self._states[:member], take()])

    def _write(self, members: list[State]) -> None:
        path = self.folder / NAME.format(self._number + 1)
        try:
            write_state(path, {"fields": self.fields, "seed": self.seed, "members": members})
            self._number += 1
            for old in saved_states(self.folder)[:-KEPT]:
                old.unlink(missing_ok=True)
        except (FileError, OSError) as error:
            cause = error.__cause__ if isinstance(error, FileError) else error
            what = os.strerror(cause.errno) if isinstance(cause, OSError) and cause.errno else str(error)
            if what not in self._warned:
                self._warned.add(what)
                warnings.warn(f"{self.folder}: a checkpoint cannot be written ({what}); the fit goes on, and the last one "
                              "written stays", RuntimeWarning, stacklevel=2)
        self._saved = time.monotonic()


def saved_states(folder: str | Path) -> list[Path]:
    """Returns the files of the states in a folder, the newest last."""
    return sorted(Path(folder).glob(PATTERN), key=_number)


def _number(path: Path) -> int:
    return int(path.stem.rpartition("-")[2])

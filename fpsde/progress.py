"""Progress of long work: a bar on a terminal, plain lines in a log, nothing when silent."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from types import TracebackType
from typing import TextIO

from tqdm import tqdm

__all__ = ["Progress"]

SECONDS_BETWEEN_LINES = 10.0
SECONDS_WORTH_A_LINE = 2.0


class Progress:
    """Shows how far a piece of work is and how long it will take.

    Arguments:
        label: what is being done.
        total: number of steps.
        silent: show nothing.
        stream: where to write, standard error if left out.

    Example:
        >>> with Progress("simulating", 100, silent=True) as progress:
        ...     progress.update(50, {"paths": 1000})
    """

    def __init__(self, label: str, total: int, silent: bool = False, stream: TextIO | None = None) -> None:
        self._label, self._total, self._silent = label, total, silent
        self._stream = sys.stderr if stream is None else stream
        # Of what is left, the time of the last steps tells most: those before may have been of another kind.
        self._last, self._last_done, self._resting = time.monotonic(), 0, False
        terminal = bool(getattr(self._stream, "isatty", lambda: False)())
        self._bar = tqdm(total=total, desc=label, file=self._stream, leave=True) if terminal and not silent else None

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.close()

    def update(self, done: int, values: Mapping[str, float] | None = None) -> None:
        """Shows that `done` steps are done, with some values beside."""
        if self._silent:
            return
        now = time.monotonic()
        if self._resting:
            self._last, self._last_done, self._resting = now, done, False
            if self._bar is not None:
                self._bar.unpause()
        if self._bar is not None:
            if values and done % 10 == 0:
                self._bar.set_postfix_str(_format(values), refresh=False)
            self._bar.update(done - self._bar.n)
            return
        if now - self._last < (SECONDS_BETWEEN_LINES if done < self._total else SECONDS_WORTH_A_LINE):
            return
        left = (now - self._last) / max(done - self._last_done, 1) * (self._total - done)
        self._last, self._last_done = now, done
        parts = [f"{self._label}: {done}/{self._total}", _format(values or {}), f"{left:.0f} s left"]
        print(" ".join(part for part in parts if part), file=self._stream, flush=True)

    def stage(self, done: int, text: str) -> None:
        """Says what goes on between two steps for a while; its time is no sign of how long the other steps take."""
        if self._silent:
            return
        if self._bar is not None:
            self._bar.set_postfix_str(text)
        elif time.monotonic() - self._last >= SECONDS_WORTH_A_LINE:
            print(f"{self._label}: {done}/{self._total} {text}", file=self._stream, flush=True)
        self._resting = True


def _format(values: Mapping[str, float]) -> str:
    return " ".join(f"{name} {value:.4g}" for name, value in values.items())

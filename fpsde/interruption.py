"""Ctrl-C and SIGTERM: put off until work can be left, and told in one sentence on the command line."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

import click

from fpsde import ranks

__all__ = ["Interruption", "told"]

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interruption:
    """Puts Ctrl-C and SIGTERM off while it is entered; a second one acts at once.

    Only the main thread is sent signals: elsewhere nothing is put off. A signal that is ignored stays so. Of several
    processes none acts at once: what is sent to all of them, torchrun sends them once more, and after a while it kills.

    Attributes:
        pending: the signal that came, None as long as there is none.
    """

    def __init__(self) -> None:
        self.pending: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            handlers = {number: signal.getsignal(number) for number in SIGNALS}
            self._before = {number: before for number, before in handlers.items() if before not in (None, signal.SIG_IGN)}
            for number in self._before:
                signal.signal(number, self._note)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self._give_back()
        if error is None:
            self.act()

    def act(self, number: int = 0) -> None:
        """Lets the signal that came, here or, with this number, to another process, do what it would have done."""
        number, self.pending = number or self.pending or 0, None
        if number:
            self._give_back()
            signal.raise_signal(number)

    def _note(self, number: int, frame: FrameType | None) -> None:
        again, self.pending = self.pending is not None, number
        if again and ranks.count() == 1:
            self.act()

    def _give_back(self) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)
        self._before = {}


class _Terminated(KeyboardInterrupt):
    """SIGTERM came."""


@contextmanager
def told(advice: Callable[[], str] = str) -> Iterator[None]:
    """Tells Ctrl-C and SIGTERM in a sentence, with the exit codes 130 and 143.

    Arguments:
        advice: gives what to say beside.
    """
    usual = (threading.current_thread() is threading.main_thread()
             and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL)
    if usual:
        signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    except KeyboardInterrupt as error:
        by, code = ("SIGTERM", 143) if isinstance(error, _Terminated) else ("Ctrl-C", 130)
        if ranks.first():
            click.echo(" ".join([f"Stopped by {by}.", advice()]).strip(), err=True)
        raise SystemExit(code) from None
    finally:
        if usual:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _terminate(number: int, frame: FrameType | None) -> None:
    raise _Terminated

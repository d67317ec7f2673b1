"""Whether the process was stopped (Ctrl-Z, SIGSTOP) and went on: what a clock counted meanwhile says nothing of the work."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_times = 0


def continued() -> int:
    """How often the process has gone on after a stop while somebody was :func:`heeding`."""
    return _times


@contextmanager
def heeding() -> Iterator[None]:
    """Count the times that the process goes on; only the main thread can, and only where the system has such a signal."""
    number = getattr(signal, "SIGCONT", None)
    if number is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.getsignal(number)

    def handle(got: int, frame: FrameType | None) -> None:
        global _times
        _times += 1
        if callable(previous):
            previous(got, frame)

    signal.signal(number, handle)
    try:
        yield
    finally:
        # None where something that is not Python has put a handler there.
        signal.signal(number, signal.SIG_DFL if previous is None else previous)

"""What a long piece of work says while it runs; everything goes to standard error."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Protocol, TextIO

from tqdm import tqdm


@dataclass(frozen=True)
class Console:
    """Lines and progress bars.

    Attributes:
        enabled: False says nothing but warnings.
    """

    enabled: bool = True

    def say(self, line: str) -> None:
        """One line of information."""
        if self.enabled:
            print(line, file=sys.stderr, flush=True)

    def warn(self, line: str) -> None:
        """One line that should not be missed."""
        print(f"warning: {line}", file=sys.stderr, flush=True)

    def progress(self, total: int, what: str, unit: str = "image") -> AbstractContextManager[Progress]:
        """A bar with an ETA."""
        return progress(total, what, unit=unit, enabled=self.enabled)


class Mute(Console):
    """Says nothing at all: what another process says already."""

    def __init__(self) -> None:
        super().__init__(enabled=False)

    def warn(self, line: str) -> None:
        """Nothing."""


def duration(seconds: float, *, rough: bool = False) -> str:
    """Seconds as a person says them: ``8 s``, ``2 min 40 s``, ``3 h 5 min``; ``rough`` for a guess: ``80 s``, ``3 min``, ``3.1 h``."""
    if rough:
        return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


# Nothing is shown for work shorter than this, in seconds.
DELAY = 2.0
# Time between two lines in a log, in seconds.
LOG_INTERVAL = 30.0


class Progress(Protocol):
    """What the working code sees."""

    def update(self, n: float | None = 1) -> object:
        """Say that ``n`` more units are done."""
        ...


@contextmanager
def progress(total: int, desc: str, *, unit: str = "image", enabled: bool = True, stream: TextIO | None = None) -> Iterator[Progress]:
    """Show how far a long piece of work is and how long it will still take.

    Args:
        total: Units of work.
        desc: What is being done, e.g. ``adapt``.
        unit: Name of one unit.
        enabled: False shows nothing.
        stream: Where to write; standard error by default.

    Yields:
        An object whose ``update(n)`` is called after every ``n`` units.
    """
    stream = sys.stderr if stream is None else stream
    if not enabled:
        yield _Silent()
    elif stream.isatty():
        with tqdm(total=total, desc=desc, unit=f" {unit}", file=stream, delay=DELAY, dynamic_ncols=True, leave=False) as bar:
            yield bar
    else:
        lines = _Lines(total, desc, unit, stream)
        yield lines
        lines.finish()


class _Silent:
    def update(self, n: float | None = 1) -> None:
        pass


class _Lines:
    """At most one line every :data:`LOG_INTERVAL` seconds, and one at the end of work that had any."""

    def __init__(self, total: int, desc: str, unit: str, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._total, self._desc, self._unit, self._stream, self._clock = total, desc, unit, stream, clock
        self._done = 0.0
        self._start = self._last = clock()

    def update(self, n: float | None = 1) -> None:
        self._done += n or 0
        now = self._clock()
        if now - self._last >= LOG_INTERVAL and self._done > 0:
            self._last = now
            left = (now - self._start) * max(self._total - self._done, 0) / self._done
            share = f"{100 * self._done / self._total:.0f} %, " if self._total else ""
            self._write(f"{self._done:.0f}/{self._total} {self._unit}s, {share}about {duration(left, rough=True)} left")

    def finish(self) -> None:
        if self._last > self._start:
            self._write(f"{self._done:.0f} {self._unit}s in {duration(self._clock() - self._start, rough=True)}")

    def _write(self, text: str) -> None:
        print(f"{self._desc}: {text}", file=self._stream, flush=True)

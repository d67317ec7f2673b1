"""What a long piece of work says while it runs; everything goes to standard error."""

from __future__ import annotations

import json
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Protocol, TextIO

from finelens.core.stopped import continued, heeding


@dataclass(frozen=True)
class Console:
    """Lines and progress bars.

    Attributes:
        enabled: False says nothing but warnings.
        verbose: Whether details are said too.
    """

    enabled: bool = True
    verbose: bool = False

    def say(self, line: str) -> None:
        """One line of information."""
        if self.enabled:
            print(line, file=sys.stderr, flush=True)

    def report(self, line: str, event: str, **fields: object) -> None:
        """One line for a person, an event of its own with ``fields`` for another program."""
        self.say(line)

    def detail(self, line: str) -> None:
        """One line for those who know what a method does inside."""
        if self.verbose:
            self.say(line)

    def warn(self, line: str) -> None:
        """One line that should not be missed."""
        print(f"warning: {line}", file=sys.stderr, flush=True)

    def answer(self, text: str, /, **fields: object) -> None:
        """What was asked for, on standard output: as a text for a person, as ``fields`` for another program."""
        if text:
            print(text, flush=True)

    def progress(self, total: int, what: str, unit: str = "image") -> AbstractContextManager[Progress]:
        """A bar with an ETA."""
        return progress(total, what, unit=unit, enabled=self.enabled)


class Mute(Console):
    """Says nothing at all: what another process says already."""

    def __init__(self) -> None:
        super().__init__(enabled=False)

    def warn(self, line: str) -> None:
        """Nothing."""

    def answer(self, text: str, /, **fields: object) -> None:
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
# When a log gets its first line about a piece of work, and the time between two, in seconds.
LOG_FIRST, LOG_INTERVAL = 10.0, 60.0
# Version of the fields of events ``result``: raised when one of them goes or changes its meaning.
RESULT_SCHEMA = 1
# Time between two events of one piece of work for another program, in seconds.
EVENT_INTERVAL = 1.0


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
        with heeding(), _bar(total, desc, unit, stream) as bar:
            yield bar
    else:
        lines = _Lines(total, desc, unit, stream)
        with heeding():
            yield lines
        lines.finish()


def _bar(total: int, desc: str, unit: str, stream: TextIO) -> Any:
    from tqdm import tqdm

    pace = _Pace(total, time.monotonic)

    class Bar(tqdm):  # type: ignore[misc]
        """Whole units, at our pace: tqdm's own is that of the last few updates."""

        def update(self, n: float | None = 1) -> bool | None:
            pace.update(n)
            shown: bool | None = super().update(_whole(pace.done) - self.n)
            return shown

        @property
        def format_dict(self) -> Any:
            left = pace.left(time.monotonic())
            return {**super().format_dict, "rate": (pace.total - pace.done) / left if left else None}

    return Bar(total=total, desc=desc, unit=f" {unit}", file=stream, delay=DELAY, dynamic_ncols=True, leave=False)


def _whole(done: float) -> int:
    """Units that are done, of a sum of parts of units."""
    return int(done + 1e-6)


class _Silent:
    def update(self, n: float | None = 1) -> None:
        pass


class _Pace:
    """How much is done, and how long the rest takes at the pace of the last minute, or of the last quarter of a longer time.

    The pace of the whole time would be wrong for hours where the first images came from the cache. After a stop of the process (``core.stopped``)
    the pace is that of what came since.
    """

    WINDOW, SHARE, STEP = 60.0, 0.25, 1.0

    def __init__(self, total: float, clock: Callable[[], float]) -> None:
        self.total, self.done, self._clock = total, 0.0, clock
        self.start = clock()
        self._marks = deque([(self.start, 0.0)])
        self._continued = continued()

    def update(self, n: float | None) -> float:
        """Count units; returns the time."""
        self.done += n or 0
        now = self._clock()
        if continued() != self._continued:
            self._continued = continued()
            self._marks = deque([(now, self.done)])
        # What is not counted before a first part is done took its time all the same.
        if self.done and now - self._marks[-1][0] >= self.STEP:
            self._marks.append((now, self.done))
        # The oldest mark that is kept is the last one before the window begins.
        begins = now - max(self.WINDOW, self.SHARE * (now - self.start))
        while len(self._marks) > 1 and self._marks[1][0] <= begins:
            self._marks.popleft()
        return now

    def left(self, now: float) -> float | None:
        """Seconds that the rest will take; None where nothing is known yet."""
        if continued() != self._continued:
            return None
        since, before = self._marks[0]
        rest = max(self.total - self.done, 0.0)
        return rest * (now - since) / (self.done - before) if self.done > before else None


class _Lines:
    """A line after :data:`LOG_FIRST` seconds, at most one every :data:`LOG_INTERVAL` then, and one at the end of work that had any."""

    def __init__(self, total: int, desc: str, unit: str, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._desc, self._unit, self._stream, self._clock = desc, unit, stream, clock
        self._pace = _Pace(total, clock)
        self._next = self._pace.start + LOG_FIRST
        self._any = False

    def update(self, n: float | None = 1) -> None:
        now = self._pace.update(n)
        pace = self._pace
        if now >= self._next:
            self._next, self._any = now + LOG_INTERVAL, True
            left = pace.left(now)
            share = f", {100 * pace.done / pace.total:.0f} %" if pace.total else ""
            rest = "" if left is None else f", about {duration(left, rough=True)} left"
            self._write(f"{_whole(pace.done)}/{pace.total} {self._unit}s{share}{rest}")

    def finish(self) -> None:
        if self._any:
            self._write(f"{_whole(self._pace.done)} {self._unit}s in {duration(self._clock() - self._pace.start, rough=True)}")

    def _write(self, text: str) -> None:
        print(f"{self._desc}: {text}", file=self._stream, flush=True)


class EventConsole(Console):
    """The same for another program: one JSON object a line on standard output, see docs/progress.md.

    Args:
        stream: Where to write; standard output by default.
        clock: Seconds.
    """

    def __init__(self, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(verbose=True)
        object.__setattr__(self, "_stream", stream)
        object.__setattr__(self, "_clock", clock)

    def say(self, line: str) -> None:
        """An event ``note``."""
        self.tell("note", text=line)

    def report(self, line: str, event: str, **fields: object) -> None:
        """The event."""
        self.tell(event, text=line, **fields)

    def warn(self, line: str) -> None:
        """An event ``warning``."""
        self.tell("warning", text=line)

    def answer(self, text: str, /, **fields: object) -> None:
        """An event ``result`` with the fields, or with the text where there are none."""
        self.tell("result", schema=RESULT_SCHEMA, **(fields or {"text": text}))

    def tell(self, event: str, **fields: object) -> None:
        """Write an event with its time."""
        document = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "event": event, **fields}
        # In ASCII: the other program need not know how this machine encodes what a terminal shows.
        print(json.dumps(document), file=vars(self)["_stream"] or sys.stdout, flush=True)

    @contextmanager
    def progress(self, total: int, what: str, unit: str = "image") -> Iterator[Progress]:
        """Events ``progress``, the first at once, the last at the end of what did not fail, others at least a second apart."""
        bar = _EventBar(self, total, what, unit, vars(self)["_clock"])
        bar.tell()
        with heeding():
            yield bar
        bar.tell()


class _EventBar:
    def __init__(self, console: EventConsole, total: int, what: str, unit: str, clock: Callable[[], float]) -> None:
        self._console, self._total, self._what, self._unit = console, total, what, unit
        self._pace = _Pace(total, clock)
        self._now = self._last = self._pace.start

    def update(self, n: float | None = 1) -> None:
        self._now = self._pace.update(n)
        if self._now - self._last >= EVENT_INTERVAL:
            self.tell()

    def tell(self) -> None:
        self._last, left = self._now, self._pace.left(self._now)
        self._console.tell(
            "progress",
            what=self._what,
            unit=self._unit,
            done=_whole(self._pace.done),
            total=self._total,
            seconds=round(self._now - self._pace.start, 1),
            left=None if left is None else round(left, 1),
        )

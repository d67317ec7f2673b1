"""Progress inside of groups of images, each read, looked at and answered before the next: a group of a slow model takes minutes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from finelens.core.console import Console, Progress
from finelens.core.stopped import continued


class Phases:
    """Counts parts of a group towards a bar of images, by the time that each of its phases took in the group before.

    In the first group nothing is counted before its second phase: how long that takes by itself is not known earlier.

    Args:
        bar: Counts images.
        clock: Seconds.
    """

    def __init__(self, bar: Progress, clock: Callable[[], float] = time.monotonic) -> None:
        self._bar, self._clock = bar, clock
        self._before: list[float] = []
        self._spans: list[float] = []
        self._count, self._counted = 0, 0.0

    @contextmanager
    def group(self, count: int) -> Iterator[None]:
        """A group of so many images, all of them counted at its end."""
        self._count, self._counted, self._spans = count, 0.0, []
        before = continued()
        yield
        self._bar.update(count - self._counted)
        # How long a phase took of which a stop of the process was a part is no measure for the next.
        if continued() == before:
            self._before = self._spans

    @contextmanager
    def phase(self, total: int) -> Iterator[Progress]:
        """The next phase of the group, in so many steps."""
        step = _Step(self, total, self._clock())
        yield step
        self._spans.append(self._clock() - step.start)

    @property
    def console(self) -> Console:
        """Says warnings alone; each piece of work whose progress it is told of is the next phase."""
        return _PhaseConsole(self)

    def tell(self, share: float, start: float) -> None:
        """Count what is done of the group: its earlier phases, and a share of the one that began at ``start``."""
        number, spent = len(self._spans), self._clock() - start
        if number < len(self._before):
            spans, done = self._before, sum(self._before[:number]) + share * self._before[number]
        else:
            spans = [*self._spans, spent / share if share and number else 0.0]
            done = sum(self._spans) + spent if spans[-1] else 0.0
        counted = self._count * min(done / sum(spans), 1.0) if sum(spans) > 0 else 0.0
        further = max(counted - self._counted, 0.0)
        self._counted += further
        self._bar.update(further)


class _Step:
    def __init__(self, phases: Phases, total: int, start: float) -> None:
        self._phases, self._total, self.start = phases, total, start
        self._done = 0.0

    def update(self, n: float | None = 1) -> None:
        self._done += n or 0
        self._phases.tell(min(self._done / self._total, 1.0) if self._total else 1.0, self.start)


class _PhaseConsole(Console):
    def __init__(self, phases: Phases) -> None:
        super().__init__(enabled=False)
        object.__setattr__(self, "_phases", phases)

    @contextmanager
    def progress(self, total: int, what: str, unit: str = "image") -> Iterator[Progress]:
        with vars(self)["_phases"].phase(total) as step:
            yield step

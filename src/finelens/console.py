"""What a long piece of work says while it runs; everything goes to standard error."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager
from dataclasses import dataclass

from finelens.progress import Progress, progress


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


def duration(seconds: float) -> str:
    """Seconds as a person says them: ``8 s``, ``2 min 40 s``, ``3 h 5 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"

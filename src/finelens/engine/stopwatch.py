"""Where the time goes, by stage."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from finelens.core.console import duration

# Stages in words; any other is a part of training. Shorter ones than this, in seconds, are not worth a word.
_WORDS = {
    "decode": "read the photographs",
    "encode": "look at the photographs",
    "second encoder": "look at the photographs with a second model",
    "support set": "look at the support set",
    "texts": "read the texts of the classes",
    "solve": "sort the photographs",
    "predict": "answer for all photographs",
    "map": "draw the map",
    "write": "write the files",
}
_LEAST = 0.5


class Stopwatch:
    """Adds up wall time by stage. Stages may nest; an inner stage's time is taken out of the outer one.

    Attributes:
        seconds: Wall time by stage.
        begun: Time at which it was made, of ``time.perf_counter``.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.begun = time.perf_counter()
        self._inner: list[float] = []

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Time the block."""
        self._inner.append(0.0)
        start = time.perf_counter()
        try:
            yield
        finally:
            spent = time.perf_counter() - start
            self.seconds[stage] = self.seconds.get(stage, 0.0) + spent - self._inner.pop()
            if self._inner:
                self._inner[-1] += spent


def in_words(seconds: Mapping[str, float], total: float) -> str | None:
    """Where the time of a run went, longest first, for a person; None where all went in a moment.

    Args:
        seconds: Of each stage.
        total: Of all, what lies between stages included.
    """
    spent: dict[str, float] = {}
    for stage, value in seconds.items():
        what = _WORDS.get(stage, "train")
        spent[what] = spent.get(what, 0.0) + value
    parts = [f"{duration(value)} to {what}" for what, value in sorted(spent.items(), key=lambda item: -item[1]) if value >= _LEAST]
    return f"{duration(total)}, of it {', '.join(parts)}" if parts else None

"""Which photographs are worth a look first: those most likely to be wrong, by what can be seen without labels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from finelens.reporting.record import RunRecord
from finelens.storage.predictions import PredictionRow


@dataclass(frozen=True)
class Look:
    """One photograph to look at.

    Attributes:
        row: Its prediction.
        why: Why it is worth a look, in a few words.
        speaks_for: Photographs that its answer speaks for; 1 where that is not known.
        drawn: Whether it is asked because the random order came to it, for the estimate of accuracy.
    """

    row: PredictionRow
    why: str
    speaks_for: float = 1.0
    drawn: bool = False

    @property
    def path(self) -> str:
        """The photograph, as in ``predictions.csv``."""
        return self.row.path

    @property
    def expected(self) -> str:
        """The class that the run gives it."""
        return self.row.label or ""


def looks(record: RunRecord, limit: int) -> list[Look]:
    """Photographs in the order of the expected value of a look, at most ``limit``.

    The value is the sum of two ranks: how little the classifier believes its own answer, and how little the nearest other photographs support it.
    docs/review.md has what this finds against random order and plain uncertainty. Exact copies of a photograph are shown once.
    """
    rows = record.predicted
    doubt = np.array([1 - (row.probability or 0.0) for row in rows])
    alone = np.array([1 - value for value in record.measured.support])
    seen: set[str] = set()
    found: list[Look] = []
    for i in np.argsort(-(ranks(doubt) + ranks(alone)), kind="stable").tolist():
        identity = record.measured.ids[i]
        if identity not in seen and len(found) < limit:
            seen.add(identity)
            found.append(Look(rows[i], reason(rows[i], record.measured.support[i])))
    return found


def ranks(values: np.ndarray) -> np.ndarray:
    """Ranks in [0, 1), equal values sharing their mean rank."""
    # Slow to import, and no part of a run.
    from scipy.stats import rankdata

    return np.asarray((rankdata(values) - 1) / len(values))


def reason(row: PredictionRow, support: float) -> str:
    """What speaks against a prediction, for the person who looks."""
    parts = []
    if len(row.top5) > 1 and row.margin is not None and row.margin < 0.2:
        parts.append(f"hardly surer than of {row.top5[1][0]}")
    if row.zero_shot_class is not None and row.zero_shot_class != row.label:
        parts.append(f"the unadapted model says {row.zero_shot_class}")
    if support < 0.5:
        parts.append("photographs that look like it are given other classes")
    return "; ".join(parts) or "among the least certain that are left"

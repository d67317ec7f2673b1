"""A photograph with its prediction, as every part of the page shows it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from finelens.reporting.thumbnails import Thumbnails
from finelens.storage.predictions import PredictionRow


@dataclass(frozen=True)
class ShownImage:
    """One figure.

    Attributes:
        uri: The picture; None where there is none.
        alt: What it is, for those who do not see it.
        path: File name.
        label: Predicted class.
        probability: Its probability.
        zero_shot: Zero-shot class, None where it is the same.
        note: Why it is shown, empty where the place says so.
    """

    uri: str | None
    alt: str
    path: str
    label: str
    probability: float
    zero_shot: str | None
    note: str = ""


def shown(row: PredictionRow, thumbnails: Thumbnails, note: str = "") -> ShownImage:
    """The figure of a row that has a prediction."""
    assert row.label is not None
    assert row.probability is not None
    other = row.zero_shot_class if row.zero_shot_class != row.label else None
    alt = f"{row.path}: {row.label}, {row.probability:.0%}" + (f"; unadapted model {other}" if other else "")
    return ShownImage(thumbnails.uri(row.path), alt, row.path, row.label, row.probability, other, note)


def shown_all(rows: Iterable[PredictionRow], thumbnails: Thumbnails) -> list[ShownImage]:
    """The figures of several rows."""
    return [shown(row, thumbnails) for row in rows]

"""What predictions say about themselves, without labels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from finelens.predictions import PredictionRow

# A class that takes this share of the images, and twice its zero-shot share, is a sign of collapse.
COLLAPSE_SHARE, COLLAPSE_GROWTH = 0.5, 2.0


def balance(rows: Sequence[PredictionRow], classes: Sequence[str]) -> str:
    """How many images changed class against zero-shot, and how many classes are never predicted; one line."""
    predicted = [row for row in rows if row.label is not None]
    changed = sum(row.label != row.zero_shot_class for row in predicted)
    unused = len(set(classes) - {row.label for row in predicted})
    unused_before = len(set(classes) - {row.zero_shot_class for row in predicted})
    return (
        f"{changed} of {len(predicted)} images changed class against zero-shot; "
        f"{unused} of {len(classes)} classes are never predicted (zero-shot: {unused_before})"
    )


def collapse_warning(rows: Sequence[PredictionRow], classes: Sequence[str]) -> str | None:
    """A warning where one class has taken over, else None. With two classes or fewer there is nothing to tell it by."""
    predicted = [row for row in rows if row.label is not None]
    if len(classes) < 3 or not predicted:
        return None
    name, count = Counter(row.label for row in predicted).most_common(1)[0]
    before = sum(row.zero_shot_class == name for row in predicted)
    if count < COLLAPSE_SHARE * len(predicted) or count < COLLAPSE_GROWTH * before:
        return None
    return (
        f"{count} of {len(predicted)} images went to class {name!r} (zero-shot: {before}): training has probably collapsed; "
        "prefer finelens zero-shot, or lower training.lr"
    )

"""What predictions say about themselves, without labels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from typing import TypeVar

from finelens.storage.predictions import PredictionRow

T = TypeVar("T", bound=Hashable)

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
    """A warning where one class has taken over the predictions, else None. With two classes or fewer there is nothing to tell it by."""
    predicted = [row for row in rows if row.label is not None]
    now, before = Counter(row.label for row in predicted), Counter(row.zero_shot_class for row in predicted)
    name = _taken_over_by(now, before, len(classes))
    if name is None:
        return None
    return (
        f"{now[name]} of {len(predicted)} images went to class {name!r} (zero-shot: {before[name]}): training has probably collapsed; "
        "prefer finelens zero-shot, or lower training.lr"
    )


def pseudo_label_warning(counts: Sequence[int], zero_shot: Sequence[int], classes: Sequence[str]) -> str | None:
    """The same for the pseudo-labels of an epoch, while there is still time to stop.

    Args:
        counts: Images trained towards each class, in class order, up to the last class seen.
        zero_shot: Images that the unadapted model gives each class.
        classes: Class names.
    """
    now, before = Counter(dict(enumerate(counts))), Counter(dict(enumerate(zero_shot)))
    found = _taken_over_by(now, before, len(classes))
    if found is None:
        return None
    return (
        f"{now[found]} of {now.total()} pseudo-labels are class {classes[found]!r} (zero-shot: {before[found]}): training is collapsing; "
        "stop it with Ctrl-C, and lower training.lr or prefer finelens zero-shot"
    )


def _taken_over_by(now: Counter[T], before: Counter[T], classes: int) -> T | None:
    if classes < 3 or not now.total():
        return None
    name, count = now.most_common(1)[0]
    took_over = count >= COLLAPSE_SHARE * now.total() and count >= COLLAPSE_GROWTH * before[name]
    return name if took_over else None

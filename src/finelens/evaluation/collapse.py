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
    """How many images changed class against zero-shot, and how many classes hold none; one line."""
    predicted = [row for row in rows if row.label is not None]
    changed = sum(row.label != row.zero_shot_class for row in predicted)
    unused = len(set(classes) - {row.label for row in predicted})
    none = sum(row.label is None and row.answered != "" for row in rows)
    without = f" ({none} more {'was' if none == 1 else 'were'} answered as none of the classes)" if none else ""
    empty = f"{unused} of {len(classes)} classes hold none" if unused else "no class is left empty"
    return f"{changed} of {len(predicted)} images got another class than from the unadapted model (zero-shot){without}; {empty}"


def collapse_warning(rows: Sequence[PredictionRow], classes: Sequence[str], *, trains: bool = True) -> str | None:
    """A warning where one class has taken over the predictions, else None. With two classes or fewer there is nothing to tell it by.

    Args:
        rows: Predictions.
        classes: C names.
        trains: Whether the method trains: what has collapsed, and what helps.
    """
    predicted = [row for row in rows if row.label is not None]
    now, before = Counter(row.label for row in predicted), Counter(row.zero_shot_class for row in predicted)
    remedy = "training has probably collapsed; prefer finelens zero-shot, or lower training.lr"
    if not trains:
        remedy = "the answers have probably collapsed; look whether the folder is like that, else prefer finelens zero-shot"
    return _warning(now, before, len(classes), "images went to class", remedy)


def pseudo_label_warning(counts: Sequence[int], zero_shot: Sequence[int], classes: Sequence[str]) -> str | None:
    """A warning where one class has taken over the pseudo-labels of an epoch, while there is still time to stop; else None.

    Args:
        counts: Images trained towards each class, in class order, up to the last class seen.
        zero_shot: Images that the unadapted model gives each class.
        classes: Class names.
    """
    now, before = (Counter(dict(zip(classes, images, strict=False))) for images in (counts, zero_shot))
    remedy = "training is collapsing; stop it with Ctrl-C, and lower training.lr or prefer finelens zero-shot"
    return _warning(now, before, len(classes), "pseudo-labels are class", remedy)


def _warning(now: Counter[T], before: Counter[T], classes: int, what: str, remedy: str) -> str | None:
    if classes < 3 or not now.total():
        return None
    name, count = now.most_common(1)[0]
    if count < COLLAPSE_SHARE * now.total() or count < COLLAPSE_GROWTH * before[name]:
        return None
    return f"{count} of {now.total()} {what} {name!r} (unadapted model: {before[name]}): {remedy}"

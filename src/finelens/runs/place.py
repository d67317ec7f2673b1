"""Where a run goes that was given no folder."""

from __future__ import annotations

import os
from datetime import date
from itertools import count
from pathlib import Path


def dated_folder(photos: Path, today: date | None = None) -> Path:
    """A folder that is not there yet, ``birds-run-2026-11-29`` or ``...-2``: beside the photographs, or where that is read-only in the working one.

    Args:
        photos: A folder of photographs, or a feature file.
        today: The date; by default that of the machine.
    """
    place = Path(os.path.abspath(photos))
    beside = place.parent if place.name and os.access(place.parent, os.W_OK) else Path()
    stem = place.stem if place.is_file() else place.name
    name = f"{stem}-run-{today or date.today():%Y-%m-%d}".lstrip("-")
    candidates = (beside / (name if number == 1 else f"{name}-{number}") for number in count(1))
    return next(path for path in candidates if not os.path.lexists(path))

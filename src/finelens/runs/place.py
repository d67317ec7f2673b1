"""Where a run goes that was given no folder, and where answers about other photographs may not go."""

from __future__ import annotations

import os
from datetime import date
from itertools import count
from pathlib import Path

from finelens.core.schemas import CONFIG_FILE, EVENTS_FILE, PREDICTIONS_FILE
from finelens.errors import UserError


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


def refuse_own_answers(target: Path) -> None:
    """Refuse to write answers about other photographs over those that a run is made of.

    Raises:
        UserError: The file is ``predictions.csv`` of a run.
    """
    if target.name == PREDICTIONS_FILE and all((target.parent / name).is_file() for name in (CONFIG_FILE, EVENTS_FILE)):
        raise UserError(f"{target} holds the answers of the run in {target.parent}, which its report and review rest on; choose another name")

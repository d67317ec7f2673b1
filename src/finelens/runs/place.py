"""Where a run goes, what may not be in its place, and how an earlier run makes room."""

from __future__ import annotations

import errno
import os
import shutil
from datetime import date
from itertools import count
from pathlib import Path

from finelens.core.schemas import CHECKPOINT_DIR, CONFIG_FILE, EVENTS_FILE, FAILURE_DIR, MODEL_DIR, PART_FILE, PREDICTIONS_FILE
from finelens.errors import UserError
from finelens.runs.config import is_run_document
from finelens.runs.paths import LOCK_FILE, OWN_ENTRIES
from finelens.storage.files import TEMPORARY_PREFIX, TEMPORARY_SUFFIX, read_json, sync_folder, write_error


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
        UserError: The file is ``predictions.csv`` of a run, or that of the part which the run's page is about.
    """
    if target.name in (PREDICTIONS_FILE, PART_FILE) and all((target.parent / name).is_file() for name in (CONFIG_FILE, EVENTS_FILE)):
        raise UserError(f"{target} holds the answers of the run in {target.parent}, which its report and review rest on; choose another name")


def refuse_among(path: Path, photos: Path) -> None:
    """Refuse a place among the photographs: the next look would take what is there for one, and so would the same command when it goes on.

    Raises:
        UserError: It lies there.
    """
    if Path(os.path.realpath(photos)) in Path(os.path.realpath(path)).parents:
        raise UserError(f"{path} lies inside the photographs {photos}, where it would be read as one; choose a place beside them")


def refuse_overlap(path: Path, photos: Path) -> None:
    """Refuse an output folder inside the photographs, which would be read as photographs.

    Raises:
        UserError: It does.
    """
    out, source = Path(os.path.realpath(path)), Path(os.path.realpath(photos))
    if out == source or source in out.parents:
        raise UserError(f"the output folder {path} lies inside the photographs {photos}; choose a folder beside them")


def _refuse_unwritable(path: Path) -> None:
    """Refuse a folder that cannot be made, as far as the nearest one above it says."""
    above = next((folder for folder in path.absolute().parents if os.path.lexists(folder)), None)
    if above is not None and not os.access(above, os.W_OK | os.X_OK):
        code = errno.EACCES if os.path.isdir(above) else errno.ENOTDIR
        raise write_error(path, OSError(code, os.strerror(code)))


def refuse_occupied(path: Path, overwrite: bool) -> None:
    """Refuse a folder whose content a new run must not mix with. What cannot even be looked at fails when the folder is made.

    Raises:
        UserError: It holds something else, or an earlier run that is not to be replaced; or no folder can be there.
    """
    if not os.path.exists(path):
        if os.path.islink(path):
            raise UserError(f"{path} is a link to nothing; remove it or choose another folder")
        _refuse_unwritable(path)
        return
    if not os.path.isdir(path):
        raise UserError(f"{path} is a file, and a run needs a folder; choose another path")
    try:
        entries = [name for name in os.listdir(path) if name != LOCK_FILE and not _is_temporary(name)]
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}; check its permissions") from error
    if not entries:
        return
    if not is_run(path):
        raise UserError(f"{path} is not empty and was not written by finelens; choose a new or empty folder (--overwrite removes only finelens runs)")
    if not overwrite:
        goes_on = "" if (path / PREDICTIONS_FILE).is_file() else f"finelens resume {path} goes on with it, "
        raise UserError(f"{path} already holds a finelens run; {goes_on}give another folder, or --overwrite to replace that run")


def is_run(path: Path) -> bool:
    """Whether finelens wrote a run into a folder, finished or not."""
    try:
        return is_run_document(read_json(path / CONFIG_FILE))
    except UserError:
        return False


def _is_temporary(name: str) -> bool:
    return name.startswith(TEMPORARY_PREFIX) and name.endswith(TEMPORARY_SUFFIX)


def remove_run(path: Path) -> None:
    """Remove what finelens wrote; anything else in the folder stays, and links are removed, never followed.

    Raises:
        UserError: Something cannot be removed.
    """
    remove_temporaries(path)
    for name in OWN_ENTRIES:
        entry = path / name
        try:
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink(missing_ok=True)
        except OSError as error:
            raise UserError(f"cannot remove {entry}: {error.strerror or error}; make it writable or choose another folder") from error
    sync_folder(path)


def remove_temporaries(path: Path) -> None:
    """Remove what killed writers left in the folder and its parts."""
    for folder in (path, path / MODEL_DIR, path / CHECKPOINT_DIR, path / FAILURE_DIR):
        for leftover in folder.glob(f"{TEMPORARY_PREFIX}*{TEMPORARY_SUFFIX}"):
            # A folder is of a ``finelens write`` into the run's.
            if leftover.is_dir() and not leftover.is_symlink():
                shutil.rmtree(leftover, ignore_errors=True)
            else:
                leftover.unlink(missing_ok=True)

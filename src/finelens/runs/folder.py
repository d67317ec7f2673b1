"""A run is a folder: its configuration, its events, its lock and the paths of what it produces."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

from finelens.core.beside import check_the_path
from finelens.core.console import Console
from finelens.core.schemas import (
    CARD_FILE,
    CHECKPOINT_DIR,
    CONFIG_FILE,
    EVALUATION_FILE,
    EVENTS,
    EVENTS_FILE,
    FAILURE_DIR,
    GIVEN_HINTS_FILE,
    GROUPS_FILE,
    HINTS_FILE,
    MAP_FILE,
    MODEL_DIR,
    PART_FILE,
    PREDICTIONS_FILE,
    RANKS_FILE,
    REPORT_FILE,
    REVIEW_FILE,
    SIGNALS_FILE,
    TAKEN_FILE,
    TAXONOMY_FILE,
    VERDICT_FILE,
)
from finelens.errors import UserError
from finelens.runs.config import RunConfig, from_json, is_run_document, to_json
from finelens.storage.files import NO_FOLLOW, TEMPORARY_PREFIX, TEMPORARY_SUFFIX, append, json_text, read_json, sync_folder, write_error, write_json
from finelens.storage.lock import Lock

LOCK_FILE = ".finelens.lock"
# Events that a checkpoint may rest on: on the disk before the checkpoint is.
DURABLE = ("classes", "epoch", "end")

# What ``--overwrite`` removes, in this order: the configuration goes last, so that a folder half emptied is still known as ours.
_OWN_ENTRIES = (
    CHECKPOINT_DIR,
    FAILURE_DIR,
    MODEL_DIR,
    PREDICTIONS_FILE,
    PART_FILE,
    RANKS_FILE,
    GROUPS_FILE,
    SIGNALS_FILE,
    MAP_FILE,
    VERDICT_FILE,
    EVALUATION_FILE,
    REPORT_FILE,
    CARD_FILE,
    REVIEW_FILE,
    GIVEN_HINTS_FILE,
    TAKEN_FILE,
    TAXONOMY_FILE,
    EVENTS_FILE,
    CONFIG_FILE,
)


class RunFolder:
    """The folder of one run. Use as a context manager: leaving the block gives up the lock.

    Made by :meth:`create` or :meth:`open`, never directly.

    Attributes:
        path: The folder.
        config: What the run is.
    """

    def __init__(self, path: Path, config: RunConfig, lock: Lock) -> None:
        self.path = path
        self.config = config
        self._lock = lock

    @staticmethod
    def check(path: Path | str, config: RunConfig, *, overwrite: bool = False) -> None:
        """Refuse what :meth:`create` would refuse, and change nothing; arguments as there."""
        RunFolder.check_place(path, config.photos, overwrite=overwrite)

    @staticmethod
    def check_place(path: Path | str, photos: Path | str, *, overwrite: bool = False) -> None:
        """The same, where only the photographs are known yet."""
        _refuse_overlap(Path(path), Path(photos))
        _refuse_occupied(Path(path), overwrite)

    @classmethod
    def create(cls, path: Path | str, config: RunConfig, *, overwrite: bool = False) -> RunFolder:
        """Start a new run in a folder that is new or empty.

        Args:
            path: The folder; parents are made.
            config: What the run is; written to ``config.json`` at once.
            overwrite: Whether an earlier finelens run in the folder is removed first. Files that finelens did not write are never removed.

        Raises:
            UserError: The folder is not empty, not writable, in use, or overlaps with the photographs.
        """
        path = Path(path)
        cls.check(path, config, overwrite=overwrite)
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise write_error(path, error) from error
        lock = Lock(path / LOCK_FILE)
        with lock.claimed():
            # Again, under the lock: another run may have come and gone since.
            _refuse_occupied(path, overwrite)
            _remove_run(path)
            write_json(path / CONFIG_FILE, to_json(config))
        return cls(path, config, lock)

    @classmethod
    def open(cls, path: Path | str, *, lock: bool = True, photos: Path | str | None = None) -> RunFolder:
        """Open an existing run.

        Args:
            path: The folder.
            lock: Whether to claim it for writing. A reader (report, evaluate) needs no claim and may look at a run in progress.
            photos: Where the run's photographs are now, if they have moved.

        Raises:
            UserError: Not the folder of a run, written by a newer finelens, or in use; or nothing is where the photographs are said to be.
        """
        path = Path(path)
        if not os.path.isfile(path / CONFIG_FILE):
            raise UserError(f"{path} is not the folder of a finelens run (no {CONFIG_FILE}); give the --out of an earlier run")
        config = from_json(read_json(path / CONFIG_FILE), str(path / CONFIG_FILE))
        if photos is not None:
            if not os.path.exists(photos):
                raise UserError(f"--photos {photos} does not exist; {check_the_path(photos)}")
            config = replace(config, photos=os.path.abspath(photos))
        claim = Lock(path / LOCK_FILE)
        if lock:
            claim.acquire()
            _remove_temporaries(path)
        return cls(path, config, claim)

    def say_gone(self, console: Console) -> None:
        """Warn where the photographs are not where they were, and a page shows none of them."""
        if not os.path.exists(self.config.photos):
            console.warn(f"{self.config.photos} does not exist any more, so the page shows no photographs; say where they are with --photos")

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Give up the lock. May be called twice."""
        self._lock.release()

    @property
    def config_path(self) -> Path:
        """``config.json``."""
        return self.path / CONFIG_FILE

    @property
    def events_path(self) -> Path:
        """``events.jsonl``."""
        return self.path / EVENTS_FILE

    @property
    def predictions_path(self) -> Path:
        """``predictions.csv``."""
        return self.path / PREDICTIONS_FILE

    @property
    def part_path(self) -> Path:
        """``predictions_part.csv``, of a run of very many photographs: those that signals and report are about."""
        return self.path / PART_FILE

    @property
    def measured_path(self) -> Path:
        """The predictions that signals and report are about."""
        return self.part_path if self.part_path.is_file() else self.predictions_path

    @property
    def model_dir(self) -> Path:
        """Folder of the adapted model."""
        return self.path / MODEL_DIR

    @property
    def checkpoint_dir(self) -> Path:
        """Folder of the last checkpoint."""
        return self.path / CHECKPOINT_DIR

    @property
    def failure_dir(self) -> Path:
        """Folder of what a step that went wrong left to look into."""
        return self.path / FAILURE_DIR

    @property
    def report_path(self) -> Path:
        """``report.html``."""
        return self.path / REPORT_FILE

    @property
    def signals_path(self) -> Path:
        """``signals.json``."""
        return self.path / SIGNALS_FILE

    @property
    def map_path(self) -> Path:
        """``map.safetensors``: where the photographs lie on the map of the report."""
        return self.path / MAP_FILE

    @property
    def verdict_path(self) -> Path:
        """``verdict.json``: whether to trust the run, for programs."""
        return self.path / VERDICT_FILE

    @property
    def evaluation_path(self) -> Path:
        """``evaluation.json``: what labels said, once there were any."""
        return self.path / EVALUATION_FILE

    @property
    def card_path(self) -> Path:
        """``MODEL_CARD.md``."""
        return self.path / CARD_FILE

    @property
    def review_path(self) -> Path:
        """``review.html``."""
        return self.path / REVIEW_FILE

    @property
    def hints_path(self) -> Path:
        """``hints.csv``: a person's work, which ``--overwrite`` leaves alone."""
        return self.path / HINTS_FILE

    @property
    def given_hints_path(self) -> Path:
        """``given_hints.csv``: the hints that the run was started with, whatever becomes of the user's file."""
        return self.path / GIVEN_HINTS_FILE

    @property
    def taken_path(self) -> Path:
        """``given_in.json``: the rows that the run was started with, whatever becomes of the file of ``--in``."""
        return self.path / TAKEN_FILE

    @property
    def taxonomy_path(self) -> Path:
        """``taxonomy.json``: ranks and further names of the classes, where their list was a table."""
        return self.path / TAXONOMY_FILE

    @property
    def ranks_path(self) -> Path:
        """``predictions_ranks.csv``: the answers by rank."""
        return self.path / RANKS_FILE

    @property
    def groups_path(self) -> Path:
        """``predictions_groups.csv``: answers of groups beside those of photographs."""
        return self.path / GROUPS_FILE

    def log(self, event: str, **fields: Any) -> int:
        """Append one line to ``events.jsonl``.

        Args:
            event: One of ``schemas.EVENTS``.
            fields: What the event says; numbers, texts, lists and mappings.

        Returns:
            Length of the file after the line, in bytes. A checkpoint stores the value that the last event before it returned; :meth:`resume` takes it
            back.

        Raises:
            UserError: The file cannot be written; no part of the line remains in it.
        """
        if event not in EVENTS:
            raise ValueError(f"unknown event {event!r}; known are {', '.join(EVENTS)}")
        if not self._lock.held:
            raise RuntimeError(f"{self.path} was opened for reading or is closed; open it with its lock to log")
        line = json_text({"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "event": event, **fields}) + "\n"
        return append(self.events_path, line.encode("utf-8", "backslashreplace"), durable=event in DURABLE)

    def resume(self, offset: int, **fields: Any) -> None:
        """Forget the events after a checkpoint and log that the run goes on from there.

        The run then repeats exactly the steps whose events were dropped, so the file ends equal to that of a run never interrupted, apart from
        times and ``resume`` lines.

        Args:
            offset: Length that :meth:`log` returned for the checkpoint; 0 without a checkpoint.
            fields: Further fields of the ``resume`` event.

        Raises:
            UserError: The file cannot be written.
        """
        try:
            size = _cut(self.events_path, offset)
        except OSError as error:
            raise write_error(self.events_path, error) from error
        if size < offset:
            # Edited by hand or cut by a crash of the machine: the weights are intact, so the run goes on and the gap is declared.
            self.log("warning", message=f"{EVENTS_FILE} is {offset - size} bytes shorter than at the checkpoint; events are missing above")
        self.log("resume", **fields)

    def events(self) -> Iterator[dict[str, Any]]:
        """Parsed lines of ``events.jsonl``, in order. A last line that is still being written is left out.

        Raises:
            UserError: A complete line is not an event, or the file cannot be read.
        """
        if not self.events_path.exists():
            return
        try:
            lines = self.events_path.read_bytes().splitlines(keepends=True)
        except OSError as error:
            raise UserError(f"cannot read {self.events_path}: {error.strerror or error}; check its permissions") from error
        for number, line in enumerate(lines, start=1):
            if number == len(lines) and not line.endswith(b"\n"):
                return
            yield _event(line, f"{self.events_path}, line {number}")


def _event(line: bytes, where: str) -> dict[str, Any]:
    try:
        event = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}, is damaged ({error}); delete that line") from error
    if not isinstance(event, dict) or not isinstance(event.get("event"), str):
        raise UserError(f"{where}, is damaged (it is no event); delete that line")
    return event


def _cut(path: Path, length: int) -> int:
    """Cut a file to at most ``length`` bytes; returns its size before, 0 where it is missing. A link is not followed."""
    if not os.path.lexists(path):
        return 0
    descriptor = os.open(path, os.O_WRONLY | NO_FOLLOW)
    try:
        size = os.fstat(descriptor).st_size
        if size > length:
            os.ftruncate(descriptor, length)
        return size
    finally:
        os.close(descriptor)


def _refuse_overlap(path: Path, photos: Path) -> None:
    """An output folder inside the photographs would be read as photographs; one around them could take them along when it is overwritten."""
    out, source = Path(os.path.realpath(path)), Path(os.path.realpath(photos))
    if out == source or source in out.parents:
        raise UserError(f"the output folder {path} lies inside the photographs {photos}; choose a folder beside them")


def refuse_elsewhere(photos: Path | str | None) -> None:
    """Refuse ``--photos`` where there is no run whose photographs could have moved."""
    if photos is not None:
        raise UserError("--photos says where the photographs of a run are now; without a run give their folder in the place of the run")


def _refuse_unwritable(path: Path) -> None:
    """Refuse a folder that cannot be made, as far as the nearest one above it says."""
    above = next((folder for folder in path.absolute().parents if os.path.lexists(folder)), None)
    if above is not None and not os.access(above, os.W_OK | os.X_OK):
        code = errno.EACCES if os.path.isdir(above) else errno.ENOTDIR
        raise write_error(path, OSError(code, os.strerror(code)))


def _refuse_occupied(path: Path, overwrite: bool) -> None:
    """Refuse a folder whose content a new run must not mix with. What cannot even be looked at fails when the folder is made."""
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


def _remove_run(path: Path) -> None:
    """Remove what finelens wrote; anything else in the folder stays, and links are removed, never followed."""
    _remove_temporaries(path)
    for name in _OWN_ENTRIES:
        entry = path / name
        try:
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink(missing_ok=True)
        except OSError as error:
            raise UserError(f"cannot remove {entry}: {error.strerror or error}; make it writable or choose another folder") from error
    sync_folder(path)


def _remove_temporaries(path: Path) -> None:
    """Remove what killed writers left in the folder and its parts."""
    for folder in (path, path / MODEL_DIR, path / CHECKPOINT_DIR, path / FAILURE_DIR):
        for leftover in folder.glob(f"{TEMPORARY_PREFIX}*{TEMPORARY_SUFFIX}"):
            leftover.unlink(missing_ok=True)

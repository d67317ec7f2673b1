"""A run is a folder: its configuration, its events, its lock and the paths of what it produces."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

from finelens.core.beside import check_the_path
from finelens.core.console import Console
from finelens.core.schemas import CONFIG_FILE, EVENTS_FILE, MODEL_CONFIG_FILE
from finelens.errors import UserError
from finelens.runs.config import RunConfig, from_json, to_json
from finelens.runs.event_log import add_event, cut_events, read_events
from finelens.runs.paths import LOCK_FILE, RunPaths
from finelens.runs.place import refuse_occupied, refuse_overlap, remove_run, remove_temporaries
from finelens.storage.files import read_json, write_error, write_json
from finelens.storage.lock import Lock


class RunFolder(RunPaths):
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
        refuse_overlap(Path(path), Path(photos))
        refuse_occupied(Path(path), overwrite)

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
            refuse_occupied(path, overwrite)
            remove_run(path)
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
            remove_temporaries(path)
        return cls(path, config, claim)

    def say_gone(self, console: Console) -> None:
        """Warn where the photographs are not where they were, and a page shows none of them."""
        if not os.path.exists(self.config.photos):
            console.warn(f"{self.config.photos} does not exist any more, so the page shows no photographs; say where they are with --photos")

    def need_photographs(self) -> None:
        """Refuse a run whose photographs are not where they were.

        Raises:
            UserError: They are not.
        """
        if not os.path.exists(self.config.photos):
            raise UserError(f"the run's photographs are not in {self.config.photos} any more; say where they are with --photos")

    def need_answers(self) -> None:
        """Refuse a finished run whose answers or model somebody has removed.

        Raises:
            UserError: One of them is gone.
        """
        for path in (self.predictions_path, self.model_dir / MODEL_CONFIG_FILE):
            if not path.is_file():
                raise UserError(
                    f"{path} is gone, though the run was finished; make it again with the options that finelens config {self.path} writes"
                )

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Give up the lock. May be called twice."""
        self._lock.release()

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
        if not self._lock.held:
            raise RuntimeError(f"{self.path} was opened for reading or is closed; open it with its lock to log")
        return add_event(self.events_path, event, fields)

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
        size = cut_events(self.events_path, offset)
        if size < offset:
            # Edited by hand or cut by a crash of the machine: the weights are intact, so the run goes on and the gap is declared.
            self.log("warning", message=f"{EVENTS_FILE} is {offset - size} bytes shorter than at the checkpoint; events are missing above")
        self.log("resume", **fields)

    def events(self) -> Iterator[dict[str, Any]]:
        """Parsed lines of ``events.jsonl``, in order. A last line that is still being written is left out.

        Raises:
            UserError: A complete line is not an event, or the file cannot be read.
        """
        return read_events(self.events_path)


def refuse_elsewhere(photos: Path | str | None) -> None:
    """Refuse ``--photos`` where there is no run whose photographs could have moved."""
    if photos is not None:
        raise UserError("--photos says where the photographs of a run are now; without a run give their folder in the place of the run")

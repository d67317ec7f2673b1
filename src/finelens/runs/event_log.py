"""The lines of a run's ``events.jsonl``: appended one by one, cut back to a checkpoint, read."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from finelens.core.schemas import EVENTS
from finelens.errors import UserError
from finelens.storage.files import NO_FOLLOW, append, json_text, write_error

# Events that a checkpoint may rest on: on the disk before the checkpoint is.
DURABLE = ("classes", "epoch", "end")


def add_event(path: Path, event: str, fields: dict[str, Any]) -> int:
    """Append one line; returns the length of the file after it, in bytes.

    Raises:
        UserError: The file cannot be written; no part of the line remains in it.
    """
    if event not in EVENTS:
        raise ValueError(f"unknown event {event!r}; known are {', '.join(EVENTS)}")
    line = json_text({"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "event": event, **fields}) + "\n"
    return append(path, line.encode("utf-8", "backslashreplace"), durable=event in DURABLE)


def cut_events(path: Path, length: int) -> int:
    """Cut the file to at most ``length`` bytes; returns its size before, 0 where it is missing. A link is not followed.

    Raises:
        UserError: The file cannot be written.
    """
    try:
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
    except OSError as error:
        raise write_error(path, error) from error


def read_events(path: Path) -> Iterator[dict[str, Any]]:
    """Parsed lines in order. A last line that is still being written is left out.

    Raises:
        UserError: A complete line is not an event, or the file cannot be read.
    """
    if not path.exists():
        return
    try:
        lines = path.read_bytes().splitlines(keepends=True)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}; check its permissions") from error
    for number, line in enumerate(lines, start=1):
        if number == len(lines) and not line.endswith(b"\n"):
            return
        yield _event(line, f"{path}, line {number}")


def _event(line: bytes, where: str) -> dict[str, Any]:
    try:
        event = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}, is damaged ({error}); delete that line") from error
    if not isinstance(event, dict) or not isinstance(event.get("event"), str):
        raise UserError(f"{where}, is damaged (it is no event); delete that line")
    return event

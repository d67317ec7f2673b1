"""Which photographs decoded well before: their pixels need not be made again to know that, and what to say of them."""

from __future__ import annotations

from pathlib import Path
from threading import Lock
from types import TracebackType

import torch
from torch import Tensor

from finelens.images.decode import DecodeLimits
from finelens.storage.cache import installed_versions
from finelens.storage.rows import RowCache

# Part of the key: raise it when other files count as readable, or other notes are made.
SCHEMA = 1
# Bytes of the notes of a photograph; one with more is decoded every time.
LONGEST = 256
# Beside Pillow, whose version is part of every key.
_READERS = ("pillow-heif", "pillow-jxl-plugin", "tifffile", "imagecodecs", "rawpy", "pydicom")
_NEXT = "\0"


def reader_versions() -> tuple[str, ...]:
    """Name and versions of what reads files beside Pillow: another one may give other pixels."""
    return installed_versions(_READERS)


class KnownPhotographs:
    """Contents that decoded under the same limits by the same libraries, and the notes that were made. Any number of threads may use one.

    Use as a context manager: leaving the block writes what is new.

    Args:
        limits: What was refused and reduced.
    """

    def __init__(self, limits: DecodeLimits) -> None:
        self._rows = RowCache(["photographs", str(SCHEMA), repr(limits), *reader_versions()])
        self._index, self._lock = self._rows.index(), Lock()

    def __enter__(self) -> KnownPhotographs:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._rows.close()

    def notes(self, sha256: str, path: Path) -> tuple[str, ...] | None:
        """The notes of a content under a name of that ending; None where it is not known to be readable."""
        row = self._index.get(_name(sha256, path))
        if row is None:
            return None
        text = bytes(row["notes"].numpy()).rstrip(_NEXT.encode()).decode()
        return tuple(text.split(_NEXT)) if text else ()

    def add(self, sha256: str, path: Path, notes: tuple[str, ...]) -> None:
        """Keep that a file decoded."""
        text = _NEXT.join(notes).encode()
        if len(text) > LONGEST:
            return
        with self._lock:
            self._rows.add([_name(sha256, path)], {"notes": _padded(text)[None]})


def _name(sha256: str, path: Path) -> str:
    # The ending of a name decides which reader is asked first.
    return f"{sha256} {path.suffix.lower()}"


def _padded(text: bytes) -> Tensor:
    return torch.frombuffer(bytearray(text.ljust(LONGEST, _NEXT.encode())), dtype=torch.uint8)  # (LONGEST,)

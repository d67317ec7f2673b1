"""Small pictures that earlier pages showed, kept by content: a photograph that is shown again needs no decoding."""

from __future__ import annotations

from types import TracebackType

import torch

from finelens.images.known import reader_versions
from finelens.storage.rows import RowCache

# Part of the key: raise it when the same photograph would give another picture.
SCHEMA = 1
# Bytes of a picture that is kept; noise of 128 pixels a side takes 11,000.
LARGEST = 12288
_LENGTH = 4


class KeptPictures:
    """JPEGs by the content of the photograph and what is shown of it. Use as a context manager: leaving the block writes what is new.

    Args:
        short_side: Short side at which originals are kept; it shows in the pictures.
    """

    def __init__(self, short_side: int) -> None:
        self._rows = RowCache(["pictures", str(SCHEMA), f"short side {short_side}", *reader_versions()])
        self._index = self._rows.index()

    def __enter__(self) -> KeptPictures:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._rows.close()

    def get(self, sample_id: str, kind: str) -> bytes | None:
        """The JPEG of a content; None where it is not kept. The kind says what else decides it: form, size, and the ending of the file's name."""
        row = self._index.get(_name(sample_id, kind))
        if row is None:
            return None
        data = row["jpeg"].numpy().tobytes()
        return data[_LENGTH : _LENGTH + int.from_bytes(data[:_LENGTH], "little")]

    def add(self, sample_id: str, kind: str, picture: bytes) -> None:
        """Keep a JPEG."""
        if len(picture) <= LARGEST:
            data = (len(picture).to_bytes(_LENGTH, "little") + picture).ljust(_LENGTH + LARGEST, b"\0")
            self._rows.add([_name(sample_id, kind)], {"jpeg": torch.frombuffer(bytearray(data), dtype=torch.uint8)[None]})  # (1, 4 + LARGEST)


def _name(sample_id: str, kind: str) -> str:
    # Copies show the same.
    return f"{sample_id.partition('-')[0]} {kind}"

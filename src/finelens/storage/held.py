"""Rows of numbers that are needed again at the end of a command, in one file without a name."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from finelens.storage.files import write_error


class HeldRows:
    """Rows of one width and type, added some at a time and read again by position.

    Args:
        folder: Where the file is made, which goes with the process; None keeps the rows in memory.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._file: Any = None
        self._parts: list[np.ndarray] = []
        self._count, self._type = 0, np.dtype(np.float64)
        self._shape: tuple[int, ...] = (0,)

    def __len__(self) -> int:
        return self._count

    def add(self, rows: np.ndarray) -> None:
        """Hold rows (n, D).

        Raises:
            UserError: The file cannot be written.
        """
        self._count, self._shape, self._type = self._count + len(rows), rows.shape[1:], rows.dtype
        if self._folder is None:
            self._parts.append(rows)
            return
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile(dir=self._folder, prefix="finelens-rows-")  # noqa: SIM115 - lives as long as this
            # Rows may have been read meanwhile.
            self._file.seek(0, os.SEEK_END)
            self._file.write(np.ascontiguousarray(rows).data)
        except OSError as error:
            raise write_error(self._folder / "finelens-rows", error) from error

    def at(self, places: np.ndarray) -> np.ndarray:
        """Rows (n, D) at positions (n,)."""
        if self._folder is None and self._parts:
            self._parts = [np.concatenate(self._parts)]
            return np.asarray(self._parts[0][places])
        found = np.empty((len(places), *self._shape), self._type)
        size, number = found[:1].nbytes, found[:1].size
        # Neighbours are read at once.
        for run in np.split(np.arange(len(places)), np.flatnonzero(np.diff(places) != 1) + 1) if len(places) else ():
            self._file.seek(int(places[run[0]]) * size)
            found[run] = np.frombuffer(self._file.read(len(run) * size), self._type, len(run) * number).reshape(-1, *self._shape)
        return found

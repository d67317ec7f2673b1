"""Decoded pixels in memory up to a budget, and beyond it in one memory-mapped file without a name."""

from __future__ import annotations

import mmap
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from finelens.storage.files import write_error


class PixelBuffer:
    """Where decoded pixels go: memory up to a budget, then one unnamed file."""

    def __init__(self, budget: int, spill_dir: Path | None):
        self._left = budget
        self._dir = spill_dir
        self._file: Any = None
        self._offset = 0
        self._places: list[Tensor | Callable[[], Tensor] | tuple[int, tuple[int, ...]]] = []

    def add(self, pixels: Tensor | Callable[[], Tensor]) -> int:
        """Keep (3, H, W), or what makes it when it is asked for and takes no room until then; returns its number."""
        if not isinstance(pixels, Tensor):
            self._places.append(pixels)
            return len(self._places) - 1
        self._left -= pixels.numel()
        self._places.append(pixels if self._left >= 0 or self._dir is None else self._spill(pixels))
        return len(self._places) - 1

    def _spill(self, pixels: Tensor) -> tuple[int, tuple[int, ...]]:
        rows = pixels.permute(1, 2, 0).contiguous()  # (H, W, 3)
        place = (self._offset, tuple(rows.shape))
        assert self._dir is not None
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile(dir=self._dir, prefix="finelens-pixels-")  # noqa: SIM115 - lives as long as the mapping
            self._file.write(rows.numpy().data)
        except OSError as error:
            raise write_error(self._dir / "finelens-pixels", error) from error
        self._offset += rows.numel()
        return place

    def finish(self) -> list[Tensor | Callable[[], Tensor]]:
        """All images by number; those in the file as views of its mapping, (3, H, W)."""
        buffer = self._map()
        return [_view(buffer, *p) if isinstance(p, tuple) else p for p in self._places]

    def _map(self) -> mmap.mmap | None:
        if self._file is None:
            return None
        try:
            self._file.flush()
        except OSError as error:
            raise write_error(Path(str(self._dir)) / "finelens-pixels", error) from error
        # Copy-on-write, because tensors have no read-only flag and a shared mapping would let a stray write reach the file.
        buffer = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_COPY)
        self._file.close()
        return buffer


def _view(buffer: mmap.mmap | None, offset: int, shape: tuple[int, ...]) -> Tensor:
    assert buffer is not None
    count = int(np.prod(shape))
    return torch.frombuffer(buffer, dtype=torch.uint8, count=count, offset=offset).view(shape).permute(2, 0, 1)  # (3, H, W)

"""A column of numbers that come group by group."""

from __future__ import annotations

from array import array

import numpy as np
from numpy.typing import ArrayLike


class Column:
    """Numbers in one block that grows. A list of small arrays would lie between the large ones that come and go, and hold their memory."""

    def __init__(self) -> None:
        self._all = array("d")

    def __len__(self) -> int:
        return len(self._all)

    def add(self, numbers: ArrayLike) -> None:
        """Put further numbers (N,) behind."""
        self._all.frombytes(np.asarray(numbers, np.float64).tobytes())

    @property
    def numbers(self) -> np.ndarray:
        """All of them, float64; a copy."""
        return np.array(self._all)

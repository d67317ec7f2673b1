"""What keeps labels from methods: labels that cannot be read while a method runs, and images that hold nothing else.

A method in the same process can always find a way around. What stands here makes every ordinary way an error that ends up in the results, and makes
a way around it visible as what it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

import numpy as np
from numpy.typing import ArrayLike
from torch import Tensor

from finelens.feature_store.store import FeatureStore
from finelens.protocol import ImageStore

LABEL_NAMES = frozenset({"label", "labels", "target", "targets", "truth", "y", "class_to_idx", "samples", "imgs", "records", "source", "files"})


class RuleBroken(Exception):
    """A method did what the benchmark forbids. Its row says so and has no number."""


_running = 0


@contextmanager
def method_runs() -> Iterator[None]:
    """While the block runs, every :class:`Labels` of the process is sealed, in all its threads."""
    global _running
    _running += 1
    try:
        yield
    finally:
        _running -= 1


class Labels:
    """True classes of the images of a part, for splits before a method runs and for scores after it.

    Args:
        values: Class indices (N,); -1 where the class is not known. Where photographs may have several classes, which they have: (N, C) of 0 and 1.
    """

    def __init__(self, values: ArrayLike) -> None:
        self.__values = np.array(values, dtype=np.int64)

    def read(self) -> np.ndarray:
        """A copy of the labels, (N,) or (N, C), int64.

        Raises:
            RuleBroken: A method is running.
        """
        if _running:
            raise RuleBroken("labels were read while a method ran")
        return self.__values.copy()

    @property
    def several(self) -> bool:
        """Whether photographs may have several classes."""
        return self.__values.ndim == 2

    def __len__(self) -> int:
        return len(self.__values)

    def __getitem__(self, index: Any) -> Any:
        return self.read()[index]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self.read(), dtype=dtype)

    def __repr__(self) -> str:
        return f"Labels({len(self)})"

    def __reduce__(self) -> NoReturn:
        raise RuleBroken("labels cannot be copied")


class UnlabelledImages:
    """Some images of a store, and nothing about them but pixels and content hashes: what a method is given.

    Args:
        store: All images of a part.
        rows: Which of them.
        sealed: Whether looking at them raises until :meth:`open`: test images are there before a method is asked about them.
    """

    def __init__(self, store: ImageStore, rows: Sequence[int] | np.ndarray, *, sealed: bool = False) -> None:
        self._store = store
        self._rows = [int(row) for row in rows]
        self._sealed = sealed

    def open(self) -> None:
        """From now on the images may be looked at."""
        self._sealed = False

    @property
    def ids(self) -> list[str]:
        """Sample ids, in the order of the rows."""
        return [self._store.ids[row] for row in self._rows]

    def only(self, index: int) -> UnlabelledImages:
        """One of the images."""
        return UnlabelledImages(self._store, [self._rows[index]], sealed=self._sealed)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Tensor:
        """The image, (3, H, W) uint8.

        Raises:
            RuleBroken: They are sealed.
        """
        if self._sealed:
            raise RuleBroken("test images were looked at before they were asked about")
        return self._store[self._rows[index]]

    def __getattr__(self, name: str) -> NoReturn:
        _refuse_labels(name)
        raise AttributeError(f"images have no attribute {name!r}")


class UnlabelledFeatures(FeatureStore):
    """Features in the place of images, and nothing about them but content hashes."""

    def __getattr__(self, name: str) -> NoReturn:
        _refuse_labels(name)
        raise AttributeError(f"images have no attribute {name!r}")


def _refuse_labels(name: str) -> None:
    if name in LABEL_NAMES:
        raise RuleBroken(f"a method asked its images for {name!r}")

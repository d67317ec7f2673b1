"""A data set whose test photographs are corrupted on purpose."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from PIL import Image

from finelens.bench.sets.data import DataSet, Part
from finelens.errors import UserError
from finelens.images.corruptions import SIDE, Corruption, parse_corruption
from finelens.images.decode import DecodeLimits, Failure
from finelens.images.store import decode_item

# Between the name of a set and a corruption.
AT = "@"


class CorruptedImages:
    """Images of a part, corrupted as they are asked for. What cannot be read stays as it is.

    Args:
        part: The part.
        corruption: What is done to them.
    """

    def __init__(self, part: Part, corruption: Corruption) -> None:
        self._images, self._corruption = part.images, corruption
        self.names = part.names()
        self._limits = DecodeLimits(short_side=SIDE)

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int, /) -> Any:
        item = self._images[index]
        found = decode_item(index, item, self._limits)
        if isinstance(found, Failure):
            return item
        return Image.fromarray(self._corruption.apply(found.pixels.permute(1, 2, 0).numpy(), found.sha256))


def split_corruption(text: str) -> tuple[str, Corruption | None]:
    """A data set as the user names it, and the corruption behind an ``@``; None where what stands behind one is none."""
    name, _, last = text.rpartition(AT)
    if not name or ":" not in last:
        return text, None
    try:
        return name, parse_corruption(last)
    except UserError:
        return text, None


def corrupted(read: Callable[[], DataSet], corruption: Corruption) -> Callable[[], DataSet]:
    """How to read a data set with corrupted test photographs; the training part stays clean."""

    def reading() -> DataSet:
        data = read()
        return replace(data, test=Part(CorruptedImages(data.test, corruption), data.test.labels))

    return reading

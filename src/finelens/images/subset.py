"""A part of a store of images."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from finelens.protocol import ImageStore


class StoreSubset:
    """The images of a store at some positions, in ascending order.

    Attributes:
        ids: Their sample ids.

    Args:
        store: The whole.
        positions: Ascending.
    """

    def __init__(self, store: ImageStore, positions: Sequence[int]) -> None:
        self._store = store
        self._positions = list(positions)
        self.ids = [store.ids[i] for i in self._positions]

    def __len__(self) -> int:
        return len(self._positions)

    def __getitem__(self, index: int) -> Tensor:
        """The image, (3, H, W) uint8."""
        return self._store[self._positions[index]]


def part_of(store: ImageStore, rows: slice) -> StoreSubset:
    """Neighbouring images of a store."""
    return StoreSubset(store, range(len(store))[rows])

"""Images: what became of each input, and where the decoded ones are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True)
class ImageRecord:
    """What became of one input.

    Attributes:
        name: Path relative to the folder, or ``[i]`` for the i-th item in memory.
        status: One of ``schemas.STATUSES``.
        reason: Why there is no image; for ``ok`` the notes of the conversion, empty when there are none.
        sample_id: Identity by content; None unless ``ok``.
        index: Position in the store; None unless ``ok``.
    """

    name: str
    status: str
    reason: str = ""
    sample_id: str | None = None
    index: int | None = None


class ImageStore(Protocol):
    """Decoded originals without labels, ordered by sample id."""

    @property
    def ids(self) -> Sequence[str]:
        """Sample ids, sorted: functions of the images' content."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Tensor:
        """The image, (3, H, W) uint8, short side capped."""
        ...


class Loaded(Protocol):
    """Images that a method can be fitted to: one record per input, and the good ones in a store."""

    @property
    def store(self) -> ImageStore:
        """The good ones, ordered by sample id."""
        ...

    @property
    def records(self) -> list[ImageRecord]:
        """One per input, in its order."""
        ...

    @property
    def by_content(self) -> bool:
        """Whether sample ids are hashes of the photographs' bytes."""
        ...

    @property
    def pictures(self) -> dict[str, int]:
        """Positions of the images that can be shown, by name."""
        ...

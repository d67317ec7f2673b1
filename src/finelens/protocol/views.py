"""Views of images: which a method needs, and those of one step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor


@dataclass(frozen=True)
class ViewPlan:
    """Which views of an image a method needs at each step."""

    weak: bool = True
    strong: bool = True
    crops: int = 0
    centre: bool = False


@dataclass(frozen=True)
class InferenceViews:
    """Views of an image that an answer needs besides the centre view. They are a function of the image alone.

    Attributes:
        count: Views per image, M.
        kind: ``crops``: squares with sides from ``low`` to ``high`` of the short side; ``resized``: random resized crops with areas from ``low`` to
            ``high`` of the image, flipped half of the time.
        low: Smallest size.
        high: Largest.
    """

    count: int
    kind: Literal["crops", "resized"] = "crops"
    low: float = 0.5
    high: float = 0.9


@dataclass(frozen=True)
class Batch:
    """Views of one step, uint8 on the host until the engine moves them.

    Attributes:
        index: Positions of the images in the store, (B,), int64.
        weak: (B, 3, S, S) or None.
        strong: (B, 3, S, S) or None.
        crops: (B, M, 3, S, S) or None.
        centre: The view that predictions use, (B, 3, S, S) or None.
    """

    index: Tensor
    weak: Tensor | None = None
    strong: Tensor | None = None
    crops: Tensor | None = None
    centre: Tensor | None = None

"""Boxes around parts of photographs: each is a row of its own, cut out of the upright picture."""

from __future__ import annotations

import math
from dataclasses import astuple, dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Box:
    """A part of a photograph as it is shown, in shares of its width and height.

    Attributes:
        x: Left edge, 0 to 1.
        y: Upper edge, 0 to 1.
        width: Share of the width.
        height: Share of the height.
    """

    x: float
    y: float
    width: float
    height: float

    @classmethod
    def clipped(cls, x: float, y: float, width: float, height: float) -> Box | None:
        """The part of a box that lies inside the photograph; None where there is none, or a number is not finite."""
        if not all(map(math.isfinite, (x, y, width, height))):
            return None
        left, top, right, bottom = max(0.0, x), max(0.0, y), min(1.0, x + width), min(1.0, y + height)
        return cls(left, top, right - left, bottom - top) if right > left and bottom > top else None

    @property
    def values(self) -> tuple[float, float, float, float]:
        """``x, y, width, height``."""
        return (self.x, self.y, self.width, self.height)

    @property
    def identity(self) -> bytes:
        """What tells two boxes of equal photographs apart."""
        return repr(astuple(self)).encode()

    def cut(self, pixels: Tensor) -> Tensor:
        """The box out of pixels (3, H, W), every pixel that it touches; at least one."""
        height, width = pixels.shape[1:]
        top, bottom = _edges(self.y, self.height, height)
        left, right = _edges(self.x, self.width, width)
        return pixels[:, top:bottom, left:right]  # (3, h, w)


def _edges(start: float, share: float, size: int) -> tuple[int, int]:
    # A share that was a whole number of pixels stays one.
    first = min(size - 1, math.floor(start * size + 1e-6))
    return first, max(first + 1, min(size, math.ceil((start + share) * size - 1e-6)))

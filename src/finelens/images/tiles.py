"""A photograph cut into a grid of tiles that overlap, each a box as those of a detector are."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from finelens.errors import UserError
from finelens.images.boxes import Box
from finelens.images.discover import ImageFile, display_name

# Share of a tile that its neighbour shows too: what lies on a seam is whole in one of them if it is no larger than that.
OVERLAP = 0.25
# A tile of a finer grid shows a few pixels of most photographs.
MOST = 10
_FORM = re.compile(r"(\d{1,2})(?:x(\d{1,2}))?(?::(0?\.\d+|0))?")


@dataclass(frozen=True)
class Grid:
    """Tiles of equal size, as shares of a photograph's sides.

    Attributes:
        columns: Tiles in a row.
        rows: Tiles in a column.
        overlap: Share of a tile's side that its neighbour shows too, below 1.
    """

    columns: int
    rows: int
    overlap: float = OVERLAP

    @classmethod
    def parse(cls, text: str) -> Grid:
        """Read ``3``, ``3x2`` (columns by rows) or either with the overlap, ``3x2:0.5``.

        Raises:
            UserError: It is none of them, one tile only, or too many.
        """
        found = _FORM.fullmatch(text.strip())
        columns, rows = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
        if found is None or not 1 <= min(columns, rows) <= max(columns, rows) <= MOST or columns * rows == 1:
            raise UserError(
                f"--tiles {text}: expected a grid such as 3 (three by three), 3x2 (three columns, two rows) or 3x2:0.5 (each overlaps half of the "
                f"next), two tiles at least and {MOST} at most on a side"
            )
        return cls(columns, rows, OVERLAP if found[3] is None else float(found[3]))

    @property
    def boxes(self) -> tuple[Box, ...]:
        """The tiles, row by row from the upper left."""
        across, down = _spans(self.columns, self.overlap), _spans(self.rows, self.overlap)
        return tuple(Box(x, y, width, height) for y, height in down for x, width in across)

    def of(self, files: Sequence[ImageFile]) -> tuple[ImageFile, ...]:
        """Each photograph and, behind it, its tiles, called ``a.jpg#1`` and so on.

        Raises:
            UserError: A tile would be called as another photograph is.
        """
        boxes = self.boxes
        names = {file.name for file in files}
        cut = [(file, [replace(file, name=f"{file.name}#{number}", box=box) for number, box in enumerate(boxes, start=1)]) for file in files]
        for _, tiles in cut:
            for tile in tiles:
                if tile.name in names:
                    raise UserError(f"--tiles: a tile and a photograph are both called {display_name(tile.name)}; rename the photograph")
        return tuple(own for file, tiles in cut for own in (file, *tiles))


def _spans(count: int, overlap: float) -> list[tuple[float, float]]:
    """Start and length of tiles along a side: the first begins at 0, the last ends at 1, neighbours share ``overlap`` of their length."""
    length = 1 / (count - (count - 1) * overlap)
    return [((1 - length) * k / max(1, count - 1), length) for k in range(count)]

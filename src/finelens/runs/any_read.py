"""Whether a command has read anything at all. It imports no tensor library."""

from __future__ import annotations

from pathlib import Path

from finelens.errors import UserError
from finelens.images.tiles import Grid
from finelens.storage.predictions import each_prediction


def check_any_read(path: Path, tiles: str | None = None) -> None:
    """Refuse to call a command done of whose files not one could be read.

    Args:
        path: A table of predictions.
        tiles: The grid of tiles, whose rows stand behind their photograph's.

    Raises:
        UserError: There are rows, and each says why it has no answer.
    """
    rows = 0
    for row in each_prediction(path):
        if row.status == "ok":
            return
        rows += 1
    if rows:
        files = rows if tiles is None else rows // (1 + len(Grid.parse(tiles).boxes))
        raise UserError(f"none of the {files} files is an image that can be read; the column reason of {path} says why")

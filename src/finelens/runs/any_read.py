"""Whether a command has read anything at all. It imports no tensor library."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from pathlib import Path

from finelens.errors import UserError
from finelens.images.tiles import Grid
from finelens.storage.growing import PART
from finelens.storage.predictions import each_prediction


def nothing_read(paths: Sequence[Path]) -> int:
    """How many rows tables of predictions have where each says why it has no answer; 0 where one has an answer.

    Raises:
        UserError: A file cannot be read, or is no such table.
    """
    rows = 0
    for row in chain.from_iterable(map(each_prediction, paths)):
        if row.status == "ok":
            return 0
        rows += 1
    return rows


def check_any_read(path: Path, tiles: str | None = None) -> None:
    """Refuse to call a command done of whose files not one could be read.

    Args:
        path: A table of predictions.
        tiles: The grid of tiles, whose rows stand behind their photograph's.

    Raises:
        UserError: There are rows, and each says why it has no answer.
    """
    if rows := nothing_read([path]):
        files = rows if tiles is None else rows // (1 + len(Grid.parse(tiles).boxes))
        raise UserError(f"none of the {files} files is an image that can be read; the column reason of {path} says why")


def check_any_part_read(parts: Sequence[Path]) -> None:
    """:func:`check_any_read` of parts that processes write beside one another: the process whose part is whole last speaks for all.

    A process that ended with a mistake because its own part is unreadable would take those down that still work.

    Args:
        parts: All parts, that of this process among them.

    Raises:
        UserError: All parts are whole, there are rows, and each says why it has no answer.
    """
    written = all(path.is_file() and not path.with_name(path.name + PART).exists() for path in parts)
    if written and (rows := nothing_read(parts)):
        raise UserError(f"none of the {rows} files is an image that can be read; the column reason of {parts[0]} and the other parts says why")

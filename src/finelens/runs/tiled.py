"""Which classes the tiles of a photograph show, beside the answers of the tiles."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from finelens.classes.text_files import counted
from finelens.core.schemas import PROBABLY_NONE, TILE_COLUMNS
from finelens.images.boxes import Box
from finelens.images.tiles import Grid
from finelens.storage.cells import csv_text, escape_cell
from finelens.storage.predictions import PredictionRow

# A tile names its class where that is likelier than all others together.
FLOOR = 0.5
_WHOLE = Box(0.0, 0.0, 1.0, 1.0)


@dataclass(frozen=True)
class Shown:
    """A class that a photograph shows.

    Attributes:
        label: The class.
        count: Views (the tiles, and the whole photograph) that name it.
        best: The view that is surest of it, as its place in (whole, tile 1, tile 2, ...).
        probability: Of the class there.
    """

    label: str
    count: int
    best: int
    probability: float


@dataclass(frozen=True)
class TilesFile:
    """``OUT_tiles.csv``, and what to say of it.

    Attributes:
        text: The file.
        lines: For the terminal.
    """

    text: str
    lines: tuple[str, ...]


def shown(views: Sequence[PredictionRow], floor: float = FLOOR) -> list[Shown]:
    """Classes that the views of one photograph name, the surest first. What probably belongs to none of the classes names none.

    Args:
        views: Answers about the whole photograph and its tiles.
        floor: Least probability with which a view names its class.
    """
    found: dict[str, list[tuple[float, int]]] = {}
    for place, row in enumerate(views):
        if row.label is not None and row.probability is not None and row.probability >= floor and not _refused(row):
            found.setdefault(row.label, []).append((-row.probability, place))
    best = [Shown(label, len(own), min(own)[1], -min(own)[0]) for label, own in found.items()]
    return sorted(best, key=lambda own: (-own.probability, own.best))


def tiles_file(rows: Sequence[PredictionRow], grid: Grid, floor: float) -> TilesFile:
    """Lines of ``OUT_tiles.csv``: one for each class that a photograph shows, one without a class for a photograph that shows none.

    Args:
        rows: Answers about each photograph and, behind it, its tiles, as :meth:`finelens.images.tiles.Grid.of` puts them.
        grid: The tiles.
        floor: See :func:`shown`.
    """
    boxes = (_WHOLE, *grid.boxes)
    photographs = [rows[start : start + len(boxes)] for start in range(0, len(rows), len(boxes))]
    classes = [shown(views, floor) for views in photographs]
    text = csv_text([TILE_COLUMNS, *(line for views, own in zip(photographs, classes, strict=True) for line in _lines(views, own, boxes))])
    # What cannot be read shows nothing that could be counted.
    seen = [(own, views) for own, views in zip(classes, photographs, strict=True) if any(row.status == "ok" for row in views)]
    several, none = sum(len(own) > 1 for own, _ in seen), sum(not own for own, _ in seen)
    what, lost = counted(len(photographs), "photograph", "photographs"), len(photographs) - len(seen)
    first = f"{what} in {len(boxes) - 1} tiles each: with several classes {several}, with none {none}" + (f", not readable {lost}" if lost else "")
    if any(row.status == "ok" for row in rows) and all(row.none_of_these is None for row in rows):
        return TilesFile(text, (first, "whether a tile belongs to none of the classes was not asked: only --tile-floor keeps a tile from naming one"))
    tiles = [row for _, views in seen for row in views[1:] if row.status == "ok"]
    refused = sum(map(_refused, tiles))
    return TilesFile(text, (first, f"tiles that probably belong to none of the classes, and name none: {refused} of {len(tiles)}"))


def _lines(views: Sequence[PredictionRow], classes: Sequence[Shown], boxes: Sequence[Box]) -> Iterator[list[str]]:
    whole = views[0]
    read, refused = sum(row.status == "ok" for row in views), sum(map(_refused, views))
    end = [str(read), str(refused), whole.status]
    for own in classes:
        place = [f"{edge:.4g}" for edge in boxes[own.best].values]
        names = [escape_cell(text) for text in (whole.path, own.label, views[own.best].path)]
        yield [*names[:2], repr(own.probability), str(own.count), names[2], *place, *end]
    if not classes:
        yield [escape_cell(whole.path), *[""] * (len(TILE_COLUMNS) - 1 - len(end)), *end]


def _refused(row: PredictionRow) -> bool:
    return row.none_of_these is not None and row.none_of_these > PROBABLY_NONE

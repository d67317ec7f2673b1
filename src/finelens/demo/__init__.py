"""The demonstration set: photographs by others under free terms, a list of classes, and labels kept apart for measuring only.

``ATTRIBUTION.md`` in this folder names author, terms and origin of every photograph.
"""

from __future__ import annotations

import csv
from pathlib import Path

__all__ = ["classes_file", "descriptions_file", "labels_file", "object_boxes", "photos_dir"]

_HERE = Path(__file__).resolve().parent


def photos_dir() -> Path:
    """Folder of the photographs, ``0001.jpg`` and so on; no name tells a class."""
    return _HERE / "photos"


def classes_file() -> Path:
    """Class names, one a line."""
    return _HERE / "classes.txt"


def descriptions_file() -> Path:
    """JSON object: class name to a list of sentences that say what the class looks like."""
    return _HERE / "descriptions.json"


def labels_file() -> Path:
    """CSV with the columns ``path`` (relative to :func:`photos_dir`) and ``label``. For measuring; no method reads it."""
    return _HERE / "labels.csv"


def object_boxes() -> dict[str, list[tuple[float, float, float, float]]]:
    """Where the object is in 60 of the photographs: left, top, right and bottom as shares of width and height, one box or more a photograph.

    Drawn by hand and as rough as that, for measuring where a method looks; no method reads them.
    """
    boxes: dict[str, list[tuple[float, float, float, float]]] = {}
    with (_HERE / "boxes.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            box = (float(row["left"]), float(row["top"]), float(row["right"]), float(row["bottom"]))
            boxes.setdefault(row["path"], []).append(box)
    return boxes

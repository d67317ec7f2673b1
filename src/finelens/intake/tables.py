"""Tables with a ``file_name``: pybioclip's predictions, metadata of a Hugging Face image folder. Their classes give names; they are no hints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from finelens.intake.contents import Contents, Said, distinct, text

PYBIOCLIP, IMAGEFOLDER = "pybioclip", "imagefolder"
_LABELS = ("label", "class", "class_name", "category")


def pybioclip(rows: Sequence[Mapping[str, str]]) -> Contents:
    """The photographs of pybioclip's ``predict``; with ranks a class is called by its common name, or else its species."""
    found = Contents(PYBIOCLIP, said=[Said((name,)) for name in distinct(row["file_name"] for row in rows)])
    found.classes = distinct(next((row[column] for column in ("classification", "common_name", "species") if row.get(column)), "") for row in rows)
    return found


def imagefolder(rows: Sequence[Mapping[str, Any]], folder: str) -> Contents:
    """The photographs of ``metadata.csv`` or ``metadata.jsonl``; numbers in its label column are no names.

    Args:
        rows: Lines of the file.
        folder: Path of the file's folder, which names count from.
    """
    found = Contents(IMAGEFOLDER)
    labels = [next((text(row[column]) for column in _LABELS if column in row), "") for row in rows]
    found.classes = [] if all(label.isdecimal() or not label for label in labels) else distinct(labels)
    for row in rows:
        name = text(row.get("file_name"))
        found.said.append(Said(tuple(distinct((name, f"{folder}/{name}" if folder else "")))))
        if "objects" in row:
            found.left.add("boxes of column objects, whose photographs have no size in the file", name)
    return found

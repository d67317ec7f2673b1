"""Image folders with a folder for each part, as Hugging Face's ``imagefolder`` has them: classes from folders or from a table beside the images."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from finelens.bench.sets.common import TESTS, listed_part
from finelens.bench.sets.data import DataSet, counted_out, folder_set, read_folder
from finelens.bench.sets.lists import entries
from finelens.classes.names import check_names, match, read_class_file
from finelens.errors import UserError
from finelens.images.discover import visible_files

METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
# Columns that may hold the class, the best first.
LABELS = ("label", "labels", "class", "category")
Rows = list[tuple[str, str]]


def test_folder(folder: Path) -> str | None:
    """Name of the folder with the test images: ``test``, or ``validation`` where there is none."""
    return next((name for name in TESTS if (folder / name).is_dir()), None)


def read_image_folder(folder: Path) -> DataSet:
    """A data set from ``train/`` and ``test/`` (or ``validation/``): classes from ``metadata`` tables with a label column, else from class folders.

    A table lies in the part's folder or above both; its ``file_name`` is relative to where it lies. Labels are class names, or numbers into
    ``classes.txt``, which also gives the order of the classes.

    Raises:
        UserError: A part is missing, a table does not fit, or a label is no class.
    """
    test = test_folder(folder) or "test"
    tables = {part: rows for part in ("train", test) if (rows := _labelled(folder, part)) is not None}
    if len(tables) < 2:
        if tables:
            raise UserError(f"{folder}: only {', '.join(tables)} has a metadata table with labels; give both parts one, or none")
        return read_folder(folder, test)
    labels = {label for rows in tables.values() for _, label in rows}
    names = _class_names(folder, labels)
    # A number is one of a class, unless a class is called so.
    index = {str(i): i for i in range(len(names))} | {label: names.index(name) for label, name in match(labels, names).items()}
    parts, left_out = [], list[str]()
    for part, rows in tables.items():
        unknown = next((label for _, label in rows if label not in index), None)
        if unknown is not None:
            raise UserError(f"{folder / part}: label {unknown!r} of its metadata is not in {folder / 'classes.txt'}")
        parts.append(listed_part(folder, [(path, index[label]) for path, label in rows], f"metadata of {folder / part}"))
        listed = {*parts[-1].names()} | {f"{part}/{name}" for name in METADATA}
        unlisted = [name for file in visible_files(folder / part) if (name := f"{part}/{file.name}") not in listed]
        left_out += counted_out(f"files of {part} that its metadata does not list", unlisted)
    split = f"train and {test} folders, classes from metadata"
    return folder_set(folder, names, *parts, layout="imagefolder", split=split, left_out=tuple(left_out))


def _labelled(folder: Path, part: str) -> Rows | None:
    """Path below the folder and label of each image of a part; None without a table that has labels."""
    for place in (folder / part, folder):
        for file in METADATA:
            if (place / file).is_file():
                table = entries(place / file)
                column = next((name for name in LABELS if table and isinstance(table[0], Mapping) and name in table[0]), None)
                if column is None:
                    continue
                prefix = PurePosixPath(part) if place != folder else PurePosixPath()
                rows = [_row(entry, column, place / file, number, prefix) for number, entry in enumerate(table, start=1)]
                return [(path, label) for path, label in rows if PurePosixPath(path).parts[0] == part]
    return None


def _row(entry: Any, column: str, file: Path, number: int, prefix: PurePosixPath) -> tuple[str, str]:
    name, label = (entry.get("file_name"), entry.get(column)) if isinstance(entry, Mapping) else (None, None)
    label = str(label) if type(label) is int else label
    if not (isinstance(name, str) and name and isinstance(label, str) and label):
        raise UserError(f"{file}, row {number}: expected a file under file_name and a class under {column}, got {entry!r}")
    return str(prefix / name), label


def _class_names(folder: Path, labels: set[str]) -> list[str]:
    if (folder / "classes.txt").is_file():
        return read_class_file(folder / "classes.txt")
    if all(label.isascii() and label.isdigit() for label in labels):
        raise UserError(f"{folder}: the labels of its metadata are numbers; put classes.txt there, one class name a line in the order of the numbers")
    return check_names(sorted(labels), source=f"labels of the metadata of {folder}")

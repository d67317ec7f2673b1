"""Parts of data sets that all layouts share."""

from __future__ import annotations

import csv
import io
import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from finelens.bench.sets.data import DataSet, Part, counted_out
from finelens.bench.sets.sealed import Labels
from finelens.classes.names import check_names
from finelens.classes.text_files import read_utf8
from finelens.errors import UserError
from finelens.images.discover import FoundFiles, ImageFile, discover, display_name

# What a test part may be called, the best first: many sets call it otherwise.
TESTS = ("test", "validation", "val", "valid")


def listed_part(root: Path, rows: Sequence[tuple[str, int]], where: str) -> Part:
    """A part from paths and classes.

    Args:
        root: Folder that the paths start from.
        rows: Path and class of each image.
        where: What listed them, for messages.

    Raises:
        UserError: There is no row, a path leaves the folder, is listed twice, or does not exist.
    """
    if not rows:
        raise UserError(f"{where} lists no image; give a line for each")
    images = []
    for path, _ in rows:
        if os.path.isabs(path) or ".." in Path(path).parts:
            raise UserError(f"{where}: {path!r} leaves {root}; paths are relative to that folder")
        images.append(ImageFile(os.path.abspath(root / path), display_name(path)))
    counts = Counter(image.path for image in images)
    if twice := [image.name for image in images if counts[image.path] > 1]:
        raise UserError(f"{where} lists an image twice, {twice[0]}; keep one line of each")
    missing = [image.name for image in images if not image.path.is_file()]
    if missing:
        raise UserError(f"{where}: {len(missing)} of {len(images)} images are not in {root}, first {missing[0]}; unpack the images there")
    return Part(images, Labels(np.array([label for _, label in rows])))


def labels_of(parts: Sequence[Sequence[Sequence[int]]], count: int) -> list[Labels]:
    """Labels of the parts of one set; as soon as one photograph of it has several classes, all have a set of classes.

    Args:
        parts: For each part the classes of each image, at least one.
        count: Number of classes.
    """
    if all(len(set(own)) == 1 for part in parts for own in part):
        return [Labels(np.array([own[0] for own in part], dtype=np.int64)) for part in parts]
    found = []
    for part in parts:
        sets = np.zeros((len(part), count), dtype=np.int64)
        for row, own in zip(sets, part, strict=True):
            row[list(own)] = 1
        found.append(Labels(sets))
    return found


def text_lines(path: Path) -> list[str]:
    """Lines of a text file that hold something.

    Raises:
        UserError: The file cannot be read.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error
    return [line.strip() for line in lines if line.strip()]


def readable(name: str) -> str:
    """A folder's or file's class name in words."""
    return " ".join(name.replace("_", " ").split())


def spoken(name: str) -> str:
    """A class name in small words: ``BareLand`` and ``bare_land`` are "bare land"."""
    return re.sub("(?<=[a-z])(?=[A-Z])", " ", readable(name)).lower()


def folder_part(root: Path, folders: Sequence[str]) -> tuple[Part, tuple[str, ...]]:
    """A part with a folder for each class; files outside of these folders, such as notes, are no part of it but in the line beside it.

    Args:
        root: Holds the folders.
        folders: Their names, in the order of the classes.

    Raises:
        UserError: There is no file.
    """
    index = {name: i for i, name in enumerate(folders)}
    found = discover(root)
    images = FoundFiles((image for image in found if image.name.partition("/")[0] in index), found.remarks)
    outside = [image.name for image in found if image.name.partition("/")[0] not in index]
    part = Part(images, Labels(np.array([index[image.name.partition("/")[0]] for image in images])))
    return part, counted_out(f"files of {root.name} in no class folder", outside)


def finish(
    name: str,
    images: Path,
    names: Sequence[str],
    train: list[tuple[str, int]],
    test: list[tuple[str, int]],
    split: str,
    templates: tuple[str, ...] | None,
) -> DataSet:
    """A data set in its authors' layout.

    Args:
        name: Name of the set.
        images: Folder that paths start from.
        names: Class names.
        train: Path and class of each training image.
        test: Of each test image.
        split: What the split rests on.
        templates: Prompts of the set.

    Raises:
        UserError: Names or classes do not fit, or images are missing.
    """
    checked = check_names(names, source=f"class names of {name}")
    parts = [listed_part(images, rows, f"{name}, {part} part") for part, rows in (("training", train), ("test", test))]
    outside = next((label for _, label in [*train, *test] if not 0 <= label < len(checked)), None)
    if outside is not None:
        raise UserError(f"{name}: an image has class {outside + 1}, but there are {len(checked)} classes")
    counts = f"{split} ({len(train)} train, {len(test)} test)"
    return DataSet(name, tuple(checked), parts[0], parts[1], layout="authors", split=counts, templates=templates)


def mat_variable(path: Path, name: str) -> Any:
    """A variable of a MATLAB file, version 5.

    Raises:
        UserError: The file cannot be read or holds no such variable.
    """
    from scipy.io import loadmat

    try:
        found = loadmat(path, squeeze_me=True, variable_names=[name])
    except Exception as error:  # a damaged file fails in many ways
        raise UserError(f"cannot read {path}: {error or type(error).__name__}; unpack it again") from error
    if name not in found:
        raise UserError(f"{path} holds no {name}; take the file of the data set's authors")
    return np.atleast_1d(found[name])


def read_table(path: Path, delimiter: str, columns: Sequence[str]) -> list[dict[str, str]]:
    """Rows of a table with a head.

    Args:
        path: The file.
        delimiter: What stands between cells.
        columns: Columns that every row must fill.

    Raises:
        UserError: The file cannot be read, or a row lacks a column.
    """
    rows = list(csv.DictReader(io.StringIO(read_utf8(path, "table"), newline=""), delimiter=delimiter, quoting=csv.QUOTE_NONE))
    for number, row in enumerate(rows, start=2):
        if any(not (row.get(column) or "").strip() for column in columns):
            raise UserError(f"{path}, line {number}: expected a table with {' and '.join(columns)} in its head and a value under each")
    return rows

"""Image lists: ``train`` and ``test`` as CSV, JSON lines or Parquet with the columns ``path`` and ``label``."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from finelens.bench.sets.common import listed_part
from finelens.bench.sets.data import DataSet, folder_set
from finelens.classes.names import check_names, match, read_class_file
from finelens.classes.text_files import read_utf8, split_lines
from finelens.errors import UserError

SUFFIXES = (".csv", ".jsonl", ".parquet")


def list_files(folder: Path) -> tuple[Path, Path] | None:
    """The lists of a folder, if it has both."""
    found = [next((folder / f"{part}{suffix}" for suffix in SUFFIXES if (folder / f"{part}{suffix}").is_file()), None) for part in ("train", "test")]
    return None if found[0] is None or found[1] is None else (found[0], found[1])


def read_lists(folder: Path) -> DataSet:
    """A data set from two lists. ``classes.txt`` gives the classes and their order, else the labels of both lists do, sorted.

    Raises:
        UserError: A list cannot be read, a label is no class, or images are missing.
    """
    files = list_files(folder)
    if files is None:
        raise UserError(f"{folder}: there are no train and test lists ({', '.join(SUFFIXES)})")
    rows = [_rows(file) for file in files]
    if (folder / "classes.txt").is_file():
        names = read_class_file(folder / "classes.txt")
    else:
        names = check_names(sorted({label for part in rows for _, label in part}), source=f"labels of {files[0].name} and {files[1].name}")
    known = match({label for part in rows for _, label in part}, names)
    index = {name: i for i, name in enumerate(names)}
    parts = []
    for file, part in zip(files, rows, strict=True):
        unknown = next((label for _, label in part if label not in known), None)
        if unknown is not None:
            raise UserError(f"{file}: label {unknown!r} is not in {folder / 'classes.txt'}")
        parts.append(listed_part(folder, [(path, index[known[label]]) for path, label in part], str(file)))
    return folder_set(folder, names, *parts, layout="list", split=f"{files[0].name} and {files[1].name}")


def entries(file: Path) -> Sequence[Any]:
    """Rows of a table, as mappings from columns to values where the file is what its name says.

    Args:
        file: CSV, JSON lines or Parquet.

    Raises:
        UserError: The file cannot be read.
    """
    if file.suffix == ".parquet":
        return _parquet(file)
    if file.suffix == ".jsonl":
        return _json_lines(file)
    return list(csv.DictReader(io.StringIO(read_utf8(file, "image list"), newline="")))


def _rows(file: Path) -> list[tuple[str, str]]:
    rows = []
    for number, entry in enumerate(entries(file), start=1):
        values = [entry.get(column) for column in ("path", "label")] if isinstance(entry, Mapping) else [None, None]
        if not all(isinstance(value, str) and value for value in values):
            raise UserError(f"{file}, row {number}: expected texts under path and label, got {entry!r}")
        rows.append((str(values[0]), str(values[1])))
    return rows


def _json_lines(file: Path) -> list[Any]:
    entries = []
    for number, line in enumerate(split_lines(read_utf8(file, "image list")), start=1):
        try:
            entries += [json.loads(line)] if line.strip() else []
        except ValueError as error:
            raise UserError(f"{file}, line {number}: not JSON ({error})") from error
    return entries


def _parquet(file: Path) -> list[Any]:
    try:
        import pyarrow.parquet as parquet
    except ImportError:
        raise UserError(f"{file}: Parquet needs pyarrow (pip install pyarrow); or write the list as CSV") from None
    try:
        rows: list[Any] = parquet.read_table(file).to_pylist()
    except (OSError, KeyError, ValueError) as error:
        raise UserError(f"{file} is not a Parquet table ({error}); write it again, or as CSV") from error
    return rows

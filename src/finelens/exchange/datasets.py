"""Forms that are folders of photographs: FiftyOne's, Hugging Face's, and one sub-folder for each class."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Container, Sequence
from itertools import chain, count
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from finelens.errors import UserError
from finelens.exchange.answers import Answers, below
from finelens.exchange.tables import csv_text
from finelens.storage.cells import escape_cell
from finelens.storage.files import write_json, write_text
from finelens.storage.predictions import PredictionRow

How = Literal["copy", "hardlink", "link"]
UNSURE, NONE = "_no_answer", "_none_of_these"
NOT_READ = "_not_read.csv"
# Without it ``datasets`` takes a folder or a file with a word such as "train" or "test" in its name for a split, and leaves out all others.
IMAGEFOLDER_CARD = """---
configs:
- config_name: default
  data_files: "**"
---
"""
# What Windows refuses or drops in the name of a folder.
_UNSAFE = re.compile(r'[<>:"/\\|?*\x00-\x1f]|[. ]+$')
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)


def write_fiftyone(answers: Answers, out: Path, how: How) -> None:
    """FiftyOneImageClassificationDataset: ``data/`` and ``labels.json`` with the class and its confidence."""
    targets: dict[str, Any] = {}
    for row in answers.read:
        name = _free_name(row.path, targets)
        _place(answers, row, below(out / "data", name), how)
        label = answers.label(row)
        targets[_without_suffix(name)] = None if label is None else {"label": label, "confidence": row.probability}
    write_json(out / "labels.json", {"classes": list(answers.classes), "labels": targets})
    _say_not_read(answers, out)


def write_imagefolder(answers: Answers, out: Path, how: How) -> None:
    """An image folder of Hugging Face ``datasets``: the photographs, ``metadata.csv`` with ``file_name``, ``label``, ``probability``, and a card.

    The card makes ``load_dataset(out)`` read all photographs, whatever they are called.
    """
    rows = []
    for row in answers.read:
        _place(answers, row, below(out, row.path), how)
        rows.append((row.path, answers.label(row), row.probability))
    write_text(out / "metadata.csv", csv_text(("file_name", "label", "probability"), rows))
    write_text(out / "README.md", IMAGEFOLDER_CARD)
    _say_not_read(answers, out)


def write_folders(answers: Answers, out: Path, how: How) -> None:
    """A sub-folder for each class, below it the photographs with the paths that they had.

    Those without an answer are in ``_no_answer``, those of which a person said that no class fits in ``_none_of_these``, with ``none_apart`` those of
    which it is probable as well, and files that could not be read are listed in ``_not_read.csv``.
    """
    names = folder_names(answers.classes)
    for row in answers.read:
        label = answers.label(row)
        folder = names[label] if label is not None else NONE if row.answered or (answers.none_apart and answers.of_none(row)) else UNSURE
        _place(answers, row, below(out / folder, row.path), how)
    _say_not_read(answers, out)


def folder_names(classes: Sequence[str]) -> dict[str, str]:
    """A folder name for each class that every system takes, no two alike where case does not count.

    Args:
        classes: Distinct names.
    """
    taken = {UNSURE, NONE}
    names: dict[str, str] = {}
    for name in classes:
        safe = _UNSAFE.sub("_", name).lstrip("_.") or "_"
        safe = f"{safe}_" if _RESERVED.fullmatch(safe) else safe
        free = next(own for own in (safe, *(f"{safe}_{number}" for number in range(2, len(names) + 3))) if own.casefold() not in taken)
        taken.add(free.casefold())
        names[name] = free
    return names


def _place(answers: Answers, row: PredictionRow, target: Path, how: How) -> None:
    source = answers.files.get(row.path)
    if source is None:
        raise UserError(f"{row.path} is not in {answers.photos} any more; give the folder where the photographs are with --photos")
    put: dict[str, Callable[[Path, Path], object]] = {"copy": shutil.copy2, "hardlink": os.link, "link": os.symlink}
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        put[how](source.resolve() if how != "copy" else source, target)
    except OSError as error:
        remedy = "a hard link cannot cross disks: take --how copy" if how == "hardlink" else "check space and permissions"
        raise UserError(f"cannot write {target}: {error.strerror or error}; {remedy}") from error


def _free_name(path: str, keys: Container[str]) -> str:
    """What a file is called whose key, its name without the ending, is one's alone: of two that differ in their endings the second keeps it whole."""
    whole, end = _without_suffix(path), PurePosixPath(path).suffix
    candidates = chain((path, f"{path}{end}"), (f"{whole}_{number}{end}" for number in count(2)))
    return next(name for name in candidates if _without_suffix(name) not in keys)


def _without_suffix(path: str) -> str:
    return str(PurePosixPath(path).with_suffix(""))


def _say_not_read(answers: Answers, out: Path) -> None:
    rows = [(row.path, row.status, row.reason) for row in answers.rows if row.status != "ok"]
    if rows:
        # This one is for a person, who will open it in a spreadsheet.
        write_text(out / NOT_READ, csv_text(("path", "status", "reason"), [map(escape_cell, row) for row in rows]))

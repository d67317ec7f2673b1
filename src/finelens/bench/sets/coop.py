"""Splits in the form that CoOp published: ``{"train": [[path, label, class name], ...], "val": ..., "test": ...}``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from finelens.bench.sets.common import listed_part, readable
from finelens.bench.sets.data import DataSet
from finelens.classes.names import check_names
from finelens.errors import UserError
from finelens.storage.files import read_json


def read_coop(name: str, split_file: Path, images: Path, templates: tuple[str, ...] | None = None) -> DataSet:
    """A data set from a split file. Training part is ``train``; ``val`` is left out, as tables on these splits leave it out.

    Args:
        name: Name of the set.
        split_file: The JSON file; its class names are the set's, underscores read as spaces.
        images: Folder that its paths start from.
        templates: Prompts of the set.

    Raises:
        UserError: The file is malformed, or images are missing.
    """
    document = read_json(split_file)
    if not isinstance(document, dict) or not {"train", "test"} <= set(document):
        raise UserError(f'{split_file}: expected {{"train": [[path, label, class], ...], "test": ...}}')
    parts = {part: _rows(document[part], f"{split_file}, {part}") for part in ("train", "val", "test") if part in document}
    names = _class_names([row for rows in parts.values() for row in rows], split_file)
    counts = ", ".join(f"{len(rows)} {part}" for part, rows in parts.items())
    descriptions = split_file.parent / "descriptions.json"
    return DataSet(
        name=name,
        class_names=tuple(names),
        train=listed_part(images, [(path, label) for path, label, _ in parts["train"]], f"{split_file}, train"),
        test=listed_part(images, [(path, label) for path, label, _ in parts["test"]], f"{split_file}, test"),
        layout="coop",
        split=f"{split_file.name} ({counts})",
        templates=templates,
        descriptions=descriptions if descriptions.is_file() else None,
    )


def _rows(entries: Any, where: str) -> list[tuple[str, int, str]]:
    if not isinstance(entries, list):
        raise UserError(f"{where}: expected a list of [path, label, class]")
    rows = []
    for number, entry in enumerate(entries):
        fits = isinstance(entry, list) and len(entry) == 3 and isinstance(entry[0], str) and type(entry[1]) is int and isinstance(entry[2], str)
        if not fits or entry[1] < 0:
            raise UserError(f"{where}, entry {number}: expected [path, label, class], got {entry!r}")
        rows.append((entry[0], entry[1], entry[2]))
    return rows


def _class_names(rows: Sequence[tuple[str, int, str]], split_file: Path) -> list[str]:
    names: dict[int, str] = {}
    for _, label, name in rows:
        if names.setdefault(label, name) != name:
            raise UserError(f"{split_file}: label {label} is both {names[label]!r} and {name!r}")
    if sorted(names) != list(range(len(names))):
        raise UserError(f"{split_file}: labels are not 0 to {len(names) - 1}")
    return check_names([readable(names[label]) for label in range(len(names))], source=str(split_file))

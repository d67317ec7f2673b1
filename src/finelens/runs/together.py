"""Which photographs of a run belong together, and the answers of their groups beside their own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path, PurePosixPath

import numpy as np

from finelens.classes.file_names import FileNames
from finelens.classes.hand_tables import MARKED, read_table
from finelens.classes.text_files import counted, quote
from finelens.core.schemas import GROUP_COLUMNS
from finelens.errors import UserError
from finelens.evaluation.together import group_probabilities, members, near_copies
from finelens.images.discover import ImageFile
from finelens.images.header import time_taken
from finelens.runs.group_by import FOLDER, TIME, GroupBy
from finelens.runs.photo_source import PhotoSource
from finelens.runs.predict import Predictions
from finelens.runs.source import Source
from finelens.storage.cache import spill_folder
from finelens.storage.cells import csv_text, escape_cell, unescape_cell
from finelens.storage.held import HeldRows
from finelens.storage.predictions import PredictionRow, each_prediction

_WHAT = "groups file"
_MOST = 5


def groups_by(by: GroupBy, names: Sequence[str], files: Sequence[ImageFile]) -> list[str]:
    """Name of the group of each row; a row that belongs to no other is a group of its own name.

    Args:
        by: The rule.
        names: Names of the rows.
        files: The same rows as files.

    Raises:
        UserError: The file of groups cannot be read, or names none of the rows.
    """
    if by.kind == FOLDER:
        return [PurePosixPath(name).parent.as_posix() if "/" in name else name for name in names]
    if by.kind == TIME:
        return _bursts(names, files, by.seconds)
    assert by.file is not None
    return _of_file(by.file, names)


def _bursts(names: Sequence[str], files: Sequence[ImageFile], seconds: float) -> list[str]:
    """Photographs of one folder of which each follows another within so many seconds of the camera's clock."""
    taken = {place: time_taken(Path(place)) for place in dict.fromkeys(file.place for file in files)}
    groups = {file.name: file.name for file in files}
    timed: list[tuple[str, datetime, str]] = []
    for file in files:
        if (moment := taken.get(file.place)) is not None:
            timed.append((PurePosixPath(file.name).parent.as_posix(), moment, file.name))
    before: tuple[str, datetime, str] | None = None
    for own in sorted(timed):
        if before is not None and own[0] == before[0] and (own[1] - before[1]).total_seconds() <= seconds:
            groups[own[2]] = groups[before[2]]
        before = own
    return [groups.get(name, name) for name in names]


def _of_file(path: Path, names: Sequence[str]) -> list[str]:
    where = f"{_WHAT} {quote(str(path))}"
    header, rows = read_table(path, _WHAT, ("path", "group"))
    known, groups, missing = FileNames(names), dict(zip(names, names, strict=True)), 0
    if not {"path", "group"} <= set(header):
        raise UserError(f"{where} lacks a column path or group; its first line must be path,group, {MARKED}")
    for _, cells in rows:
        row = dict(zip(header, cells, strict=False))
        found, group = known.find(row.get("path", "")), row.get("group", "").strip()
        missing += len(found) != 1
        if len(found) == 1 and group:
            groups[found[0]] = unescape_cell(group)
    if missing and all(group == name for name, group in groups.items()):
        raise UserError(f"{where} names none of the photographs; give paths relative to PHOTOS, as in predictions.csv")
    return [groups[name] for name in names]


@dataclass(frozen=True)
class Together:
    """Groups of a run's photographs.

    Attributes:
        text: ``predictions_groups.csv``.
        lines: What there is, for the terminal.
    """

    text: str
    lines: tuple[str, ...]


class Gathered:
    """What groups of new photographs need of all of them, added some at a time. Memory does not grow by it: probabilities and looks lie in a file
    without a name, and of one group at a time they are read again.

    Args:
        by: Which photographs belong together.
        source: The photographs.
    """

    def __init__(self, by: GroupBy, source: Source) -> None:
        self._by, self._files = by, source.files if isinstance(source, PhotoSource) else []
        self._index: list[int | None] = []
        self._probabilities, self._looks = HeldRows(spill_folder()), HeldRows(spill_folder())

    def add(self, part: Predictions, probabilities: np.ndarray) -> None:
        """Some photographs more.

        Args:
            part: What the model said.
            probabilities: Of classes by position, (N, C).
        """
        before = len(self._probabilities)
        self._index += [None if record.index is None else record.index + before for record in part.records]
        if len(probabilities):
            self._probabilities.add(probabilities)
            self._looks.add(part.looks.numpy())

    def answers(self, classes: Sequence[str], predictions: Path) -> Together:
        """Answers of the groups of all that was added.

        Args:
            classes: C names.
            predictions: The file of their rows, in the order in which they were added.

        Raises:
            UserError: The file of groups cannot be read, or names none of the photographs.
        """
        names = {name: name for name in classes}
        # Of what a row holds a group needs little.
        rows = [
            PredictionRow(row.path, names.get(row.label or "", row.label), row.probability, status=row.status, answered=row.answered)
            for row in each_prediction(predictions)
        ]
        groups = groups_by(self._by, [row.path for row in rows], self._files)
        return _together(rows, groups, self._index, classes, self._probabilities.at, self._looks.at)


def together(
    rows: Sequence[PredictionRow],
    groups: Sequence[str],
    index: Sequence[int | None],
    classes: Sequence[str],
    probabilities: np.ndarray,
    looks: np.ndarray,
) -> Together:
    """Answers of groups beside those of photographs. What a person said of one of a group is the group's answer, if nobody said otherwise.

    Args:
        rows: Predictions.
        groups: Name of each row's group.
        index: Position of each row's image; None where it could not be read.
        classes: C names.
        probabilities: Of classes by position, (N, C).
        looks: Unit-norm features by position, (N, E).
    """
    return _together(rows, groups, index, classes, probabilities.__getitem__, looks.__getitem__)


def _together(
    rows: Sequence[PredictionRow],
    groups: Sequence[str],
    index: Sequence[int | None],
    classes: Sequence[str],
    probabilities: Callable[[np.ndarray], np.ndarray],
    looks: Callable[[np.ndarray], np.ndarray],
) -> Together:
    """As :func:`together`, of one group at a time: rows (n, C) and (n, E) by their positions (n,)."""
    read = [i for i, place in enumerate(index) if place is not None]
    own = [groups[i] for i in read]
    said, answers = _said(rows, groups), dict[str, tuple[str, float, int]]()
    copy = np.arange(len(rows))
    for inside in members(own):
        group, lines = own[inside[0]], np.array([read[k] for k in inside])
        places = np.array([index[i] for i in lines])
        names = [group] * len(lines)
        copies = near_copies(looks(places).astype(np.float32, copy=False), names)
        p = group_probabilities(probabilities(places), names, copies)[0]
        best = int(p.argmax())
        answers[group] = (said[group], 1.0, len(lines)) if group in said else (classes[best], float(p[best]), len(lines))
        copy[lines] = lines[copies]
    readable = set(read)
    return Together(
        csv_text([GROUP_COLUMNS, *(_line(i, row, groups[i], copy[i], rows, answers if i in readable else {}) for i, row in enumerate(rows))]),
        _lines(answers, int((copy != np.arange(len(rows))).sum())),
    )


def _line(
    i: int, row: PredictionRow, group: str, copy: int, rows: Sequence[PredictionRow], answers: Mapping[str, tuple[str, float, int]]
) -> list[str]:
    """The cells of a row; those about its group are empty where it could not be read."""
    cells = ("", "", "", "")
    if group in answers:
        label, sure, size = answers[group]
        cells = str(size), rows[copy].path if copy != i else "", label, f"{sure:.6g}"
    texts = (row.path, group, *cells, row.label or "", "" if row.probability is None else f"{row.probability:.6g}", row.status)
    return [escape_cell(text) for text in texts]


def _said(rows: Sequence[PredictionRow], groups: Sequence[str]) -> dict[str, str]:
    """Groups of which people named photographs, all by one name."""
    found: dict[str, set[str]] = {}
    for row, group in zip(rows, groups, strict=True):
        if row.answered and row.label is not None:
            found.setdefault(group, set()).add(row.label)
    return {group: labels.pop() for group, labels in found.items() if len(labels) == 1}


def _lines(answers: Mapping[str, tuple[str, float, int]], repeated: int) -> tuple[str, ...]:
    several = [size for _, _, size in answers.values() if size > 1]
    most = ", ".join(f"{label} {count}" for label, count in Counter(label for label, _, _ in answers.values()).most_common(_MOST))
    return (
        f"groups: {counted(sum(several), 'photograph', 'photographs')} in {counted(len(several), 'group', 'groups')} of two and more, "
        f"{counted(repeated, 'near-copy', 'near-copies')} counted once",
        f"classes by {counted(len(answers), 'group', 'groups')}: {most}",
    )

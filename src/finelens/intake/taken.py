"""A file of another tool held against the photographs: the rows of a run, with the boxes among them, kept in its folder."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from finelens.classes.file_names import FileNames, leaves
from finelens.classes.names import match, normalise
from finelens.classes.text_files import quote
from finelens.errors import UserError
from finelens.images.boxes import Box
from finelens.images.discover import ImageFile, discover, display_name, visible_files
from finelens.intake.contents import Contents, Leavings, Said
from finelens.intake.recognise import CONFIDENCE, read_contents
from finelens.storage.files import read_saved, write_json

_WHOLE = Box(0.0, 0.0, 1.0, 1.0)
_NOWHERE = ".finelens-nowhere"


@dataclass(frozen=True, slots=True)
class Row:
    """One thing to classify: a photograph, or a box in it.

    Attributes:
        file: Path relative to PHOTOS; as the file wrote it, where there is no such photograph.
        listed: What the file calls the photograph.
        number: Which box of it, as the file counts them, from 1; 0 for the whole photograph.
        box: The box; None for the whole photograph.
    """

    file: str
    listed: str
    number: int = 0
    box: Box | None = None

    @property
    def name(self) -> str:
        """What the row is called in every table: ``a.jpg``, or ``a.jpg#1`` for a box."""
        return f"{self.file}#{self.number}" if self.number else self.file


@dataclass(frozen=True)
class Taken:
    """What a run takes from a file of another tool.

    Attributes:
        form: Name of its form.
        rows: What is to be classified, in the order of the file.
        classes: Class names that it holds; empty where it holds none.
        hints: Class names that people gave, by name of the row.
        remarks: What was read and what was left out; lines for the terminal.
    """

    form: str
    rows: tuple[Row, ...]
    classes: tuple[str, ...] = ()
    hints: Mapping[str, str] | None = None
    remarks: tuple[str, ...] = ()

    def images(self, photos: Path) -> tuple[ImageFile, ...]:
        """The rows as files to read; a photograph that is not there (any more) becomes a row that says so."""
        places = {file.name: file.place for file in visible_files(photos)} if photos.is_dir() else {}
        return tuple(
            ImageFile(places.get(row.file) or _elsewhere(photos, row.file), row.name, None if row.box == _WHOLE else row.box) for row in self.rows
        )

    def save(self, path: Path) -> None:
        """Write it into a run folder."""
        rows = [[row.file, row.listed, row.number, None if row.box is None else list(row.box.values)] for row in self.rows]
        write_json(path, {"form": self.form, "rows": rows, "classes": list(self.classes), "hints": dict(self.hints or {})})


def saved(path: Path) -> Taken | None:
    """What :meth:`Taken.save` wrote; None where there is nothing.

    Raises:
        UserError: The file is damaged.
    """
    return read_saved(path, _of_document)


def _of_document(document: Any) -> Taken:
    rows = tuple(Row(file, listed, number, None if box is None else Box(*box)) for file, listed, number, box in document["rows"])
    return Taken(document["form"], rows, tuple(document["classes"]), document["hints"] or None)


def take(file: Path, photos: Path, confidence: float = CONFIDENCE) -> Taken:
    """Read a file of another tool about a folder of photographs.

    Args:
        file: The file, see :func:`finelens.intake.recognise.read_contents`.
        photos: The folder. Its photographs that the file does not name are left out; those that it lacks are rows that say so.
        confidence: Boxes of a detector that are less sure are left out.

    Raises:
        UserError: It is of no form that is known, none of the photographs is there, or nothing of them is to be classified.
    """
    if not 0 <= confidence <= 1:
        raise UserError(f"--box-confidence is between 0 and 1, got {confidence:g}")
    contents = read_contents(file, photos, confidence)
    where = display_name(file)
    left = contents.left.lines()
    if not contents.said:
        raise UserError(f"{where} ({contents.form}) holds nothing to classify" + "".join(f"; {line}" for line in left))
    places = _Places([file.name for file in discover(photos)], photos, [*contents.passed, *(said.names for said in contents.said)])
    rows, hints, more = _rows(contents, places)
    if not places.found:
        raise UserError(
            f"{where} ({contents.form}) names no photograph that is in {display_name(photos)} (its first is {quote(contents.said[0].names[0])}); "
            "give the folder that its paths count from"
        )
    unnamed = sorted(set(places.names) - places.found)
    if unnamed:
        more.append(f"left out: {len(unnamed)} photographs that the file does not name (first {unnamed[0]})")
    boxes = sum(row.number > 0 for row in rows)
    what = f"{boxes} boxes" if boxes == len(rows) else f"{len(rows)} photographs" if not boxes else f"{len(rows)} rows, {boxes} of them boxes"
    files = f" in {len({row.file for row in rows})} photographs" if boxes else ""
    first = f"{where}: {contents.form}, {what}{files}, {len(contents.classes)} class names, {len(hints)} answers of people"
    return Taken(contents.form, tuple(rows), tuple(_once(contents.classes)), hints or None, (first, *left, *more))


class _Places:
    """Photographs of a folder by what a file calls them: as it stands, in another spelling, or by a last name that is one's alone on both sides."""

    def __init__(self, names: Sequence[str], photos: Path, listed: Iterable[tuple[str, ...]]) -> None:
        self.names, self.found = names, set[str]()
        self._files = FileNames(names, photos)
        self._bases = _alone(names)
        called = list(dict.fromkeys(listed))
        self._listed = set(_alone({texts[0] for texts in called}).values())
        self._known: dict[tuple[str, ...], str | None] = {}
        for texts in called:
            self.of(texts)

    def of(self, texts: tuple[str, ...]) -> str | None:
        """The photograph; None where there is none."""
        if texts not in self._known:
            self._known[texts] = name = self._look(texts)
            self.found |= set() if name is None else {name}
        return self._known[texts]

    def _look(self, texts: tuple[str, ...]) -> str | None:
        for own in texts:
            hits = self._files.find(own)
            if len(hits) == 1:
                return hits[0]
        if texts[0] not in self._listed:
            return None
        return next((self._bases[base] for base in map(_base, texts) if base in self._bases), None)


def _rows(contents: Contents, places: _Places) -> tuple[list[Row], dict[str, str], list[str]]:
    """Rows, answers of people by name of the row, and what was left out here."""
    rows: dict[str, Row] = {}
    answers: dict[str, set[str]] = {}
    left = Leavings()
    for said in contents.said:
        row = _row(said, places)
        if places.of(said.names) is None and row.name not in rows:
            left.add("rows whose photograph is not in the folder; they are kept as vanished", row.name)
        if row.name in rows and (said.number or rows[row.name].box != row.box):
            raise UserError(f"two boxes or photographs are both called {quote(row.name)}; rename the photograph")
        rows.setdefault(row.name, row)
        if said.label:
            answers.setdefault(row.name, set()).add(normalise(said.label))
    spelled = {normalise(said.label): said.label for said in reversed(contents.said) if said.label}
    for name, labels in answers.items():
        if len(labels) > 1:
            left.add("answers of people that contradict one another", name)
    hints = {name: spelled[min(labels)] for name, labels in answers.items() if len(labels) == 1}
    known = match(hints.values(), contents.classes)
    repeated = len(contents.said) - len(rows)
    more = [line.removeprefix("left out: ") if "vanished" in line else line for line in left.lines()]
    if repeated:
        more.append(f"{repeated} lines of the file are about photographs that it names before")
    return list(rows.values()), {name: known.get(label, label) for name, label in hints.items()}, more


def _row(said: Said, places: _Places) -> Row:
    return Row(places.of(said.names) or shown(said.names[0]), shown(said.names[0]), said.number, said.box)


def shown(text: str) -> str:
    """A foreign path as one line of valid text."""
    return display_name(text.encode("utf-8", "replace").decode("utf-8").replace("\0", "\N{REPLACEMENT CHARACTER}"))


def _elsewhere(photos: Path, name: str) -> str:
    """Where a photograph would lie that was not found. A path that leaves the folder leads nowhere."""
    return os.path.abspath(photos / (_NOWHERE if leaves(name) else name))


def _alone(names: Iterable[str]) -> dict[str, str]:
    """Names by their last part, where no other has the same."""
    names = list(names)
    counts = Counter(map(_base, names))
    return {_base(name): name for name in names if counts[_base(name)] == 1}


def _base(name: str) -> str:
    return PurePosixPath(name.replace("\\", "/")).name


def _once(names: Iterable[str]) -> list[str]:
    """Names in the spelling that comes first."""
    spelled: dict[str, str] = {}
    for name in names:
        spelled.setdefault(normalise(name), name)
    return list(spelled.values())

"""Labels that a person gives on purpose for a few of the target images. They are an input of the run like the class list, never read from folders."""

from __future__ import annotations

import csv
import difflib
import hashlib
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from finelens.classes.hand_tables import read_table
from finelens.classes.labels import NONE_WORDS, UNANSWERED, Told, answer_rows, is_unsure, read_labels
from finelens.classes.names import check_names, match, normalise
from finelens.classes.taxonomy import read_class_list
from finelens.classes.text_files import counted, faults, quote
from finelens.core.options import nearest
from finelens.core.schemas import HOW_COLUMNS, LABEL_COLUMNS, TOLD_COLUMNS
from finelens.errors import UserError
from finelens.protocol import Hints, ImageRecord
from finelens.storage.cells import escape_cell, for_spreadsheets, unescape_cell

NONE_OF_THESE = -1
# In the column ``source``: answered as one of a group that was named at one look.
GROUP = "group"
# A name as near as this to one of the list is a slip of the pen and no new class; a ratio of difflib.
SLIP = 0.85


class How(NamedTuple):
    """How an answer was given; empty where nobody wrote it down.

    Attributes:
        source: ``photo``, ``group`` or ``file``.
        who: The person.
        group: Of one of a group the path of the photograph that the group was around, its middle.
    """

    source: str = ""
    who: str = ""
    group: str = ""

    def look(self, path: str) -> str | None:
        """The look at which the photograph ``path`` was named, by the path of its first; None for one of a group that nobody wrote down."""
        return self.group or (None if self.source == GROUP else path)

    def tests(self, path: str) -> bool:
        """Whether the answer tests the model: photographs of a group are like its middle, which is the one that was chosen."""
        return self.look(path) == path


def with_new_names(path: Path | Told, class_names: Sequence[str]) -> list[str]:
    """The class list and, after it, the names that only a hints file has, sorted.

    Args:
        path: The file.
        class_names: The list; it may be empty.

    Raises:
        UserError: The file cannot be read, or a name is as good as one of the list, says that somebody is unsure, or is no usable name.
    """
    found = {label: line for line, _, label in reversed(answer_rows(path, class_names)) if label}
    known = match(found, class_names)
    new = [label for label in found if label not in known]
    if told := unsure_labels(path, {label: found[label] for label in new}):
        raise UserError(told)
    slips = sorted((found[label], label, near) for label in new if (near := slip_of(label, class_names)))
    if slips:
        told = faults([f"line {line}: {quote(label)} is not in the class list; did you mean {quote(near)}?" for line, label, near in slips])
        raise UserError(
            f"hints file {quote(str(path))}, {told}{'' if told.endswith('?') else '.'} Correct what is misspelt, here or in the class list; a class "
            "of its own with so near a name is added there by hand"
        )
    # One spelling of each, in an order that does not hang on that of the lines.
    unlike = {normalise(label): label for label in sorted(new, reverse=True)}
    names = [unlike[form] for form in sorted(unlike)]
    if names:
        names = check_names(names, source=f"hints file {quote(str(path))}", places=[f"line {found[name]}" for name in names])
    return [*class_names, *names]


def unsure_labels(path: Path | Told, found: Mapping[str, int]) -> str | None:
    """What to say of labels of a hints file that say somebody is unsure; None where there are none.

    Args:
        path: The file.
        found: Line of each label that is no name of the list.
    """
    unsure = sorted((line, label) for label, line in found.items() if is_unsure(label))
    if not unsure:
        return None
    told = faults([f"line {line}: {quote(label)} is no name of a class" for line, label in unsure])
    remedy = f"write {UNANSWERED} for a photograph that is not answered, and {NONE_WORDS[0]} for one of no class"
    return f"hints file {quote(str(path))}, {told}; {remedy}"


def names_of_run(classes: Path | Sequence[str] | None, hints: Path | Told | None) -> tuple[list[str], list[str]]:
    """Names of the classes of a run, first those of its list, and of these the ones that only its hints have.

    Args:
        classes: The class file, or names that were read elsewhere.
        hints: The hints file, or answers that were read elsewhere.

    Raises:
        UserError: A file cannot be read, or none names a class.
    """
    listed = read_class_list(classes)[0] if isinstance(classes, Path) else check_names(classes) if classes else []
    names = listed if hints is None else with_new_names(hints, listed)
    if not names:
        raise UserError(f"hints file {quote(str(hints))} names no class, and there is no class list; give --classes FILE, or answers with names")
    return names, names[len(listed) :]


def slip_of(label: str, class_names: Sequence[str]) -> str | None:
    """The class that a name which is not in the list probably means; None for a name of its own."""
    forms = {normalise(name): name for name in class_names}
    near = difflib.get_close_matches(normalise(label), forms, n=1, cutoff=SLIP)
    return forms[near[0]] if near else None


def read_hint_labels(
    path: Path | Told, photos: Path, class_names: Sequence[str], names: Sequence[str] | None = None, left_out: list[str] | None = None
) -> dict[str, int]:
    """Class, or -1 for none of them, by file name: all that can be checked before an image is read.

    Args:
        path: As for :func:`read_hints`.
        photos: As for :func:`read_hints`.
        class_names: C names.
        names: Names that a feature file stored; None for a folder.
        left_out: As for :func:`read_hints`.

    Raises:
        UserError: The file cannot be read, names no file that exists or a class that does not, or contradicts itself.
    """
    told = [] if left_out is None else left_out
    return read_labels(photos, path, class_names, none_label=NONE_OF_THESE, names=names, what="hints file", left_out=told)


def read_hints(
    path: Path | Told,
    photos: Path,
    records: Sequence[ImageRecord],
    class_names: Sequence[str],
    left_out: list[str] | None = None,
    *,
    listed: bool = False,
) -> Hints:
    """Read a hints file.

    Args:
        path: CSV file with the columns ``path`` (relative to ``photos``) and ``label``; an empty label says "none of these classes".
        photos: Folder of the target photographs, or the feature file.
        records: What became of each file.
        class_names: C names.
        left_out: Takes a line for each hint about a file that does not exist or could not be read.
        listed: Whether the records are other rows than the files of the folder.

    Raises:
        UserError: The file cannot be read, names a class that does not exist, contradicts itself, or none of its files exists and could be read.
    """
    told = [] if left_out is None else left_out
    labels = read_hint_labels(path, photos, class_names, None if photos.is_dir() and not listed else [record.name for record in records], told)
    positions = {record.name: record.index for record in records}
    unread = [name for name in labels if positions.get(name) is None]
    told += [f"{quote(name)} is not an image that can be read" for name in unread]
    if len(unread) == len(labels):
        raise UserError(f"hints file {quote(str(path))}: none of its {len(labels)} files is an image that can be read (first: {quote(unread[0])})")
    how = {} if isinstance(path, Told) else how_given(path) or {}
    looks = {index: how.get(plain(name), How()).look(plain(name)) or name for name in labels if (index := positions.get(name)) is not None}
    return _hints({index: label for name, label in labels.items() if (index := positions.get(name)) is not None}, looks)


def how_given(path: Path) -> dict[str, How] | None:
    """How answers were given, by path, from the columns ``source``, ``by`` and ``group`` of a hints file; None where the file is gone.

    Whatever writes answers again writes these columns again: of a group one photograph tests the model.
    """
    try:
        header, rows = read_table(path, "hints file", LABEL_COLUMNS)
    except UserError:
        return None
    cells = [{column: unescape_cell(cell) for column, cell in zip(header, row, strict=False)} for _, row in rows]
    told = [[row.get(column, "") for column in ("path", *HOW_COLUMNS)] for row in cells]
    found = {plain(name): How(source, who, plain(group) if group else "") for name, source, who, group in told if name}
    return {name: how for name, how in found.items() if any(how)}


def plain(path: str) -> str:
    """A path of a hints file as image records spell it."""
    return PurePosixPath(path).as_posix()


def no_tests(path: Path) -> set[str] | None:
    """Photographs whose answer tests no model, being given to a whole group that was around another one; None where the file is gone."""
    told = how_given(path)
    return None if told is None else {name for name, how in told.items() if not how.tests(name)}


def looks_of_answers(paths: Iterable[str], told: Mapping[str, How]) -> set[str]:
    """The looks at which photographs were named; those of a group that nobody wrote down are none."""
    return {look for path in paths if (look := told.get(plain(path), How()).look(plain(path))) is not None}


def hints_by_position(given: Mapping[int, str], records: Sequence[ImageRecord], class_names: Sequence[str]) -> Hints:
    """Hints for images that come from Python.

    Args:
        given: Class names by position in the input; the empty name says "none of these classes".
        records: One per input, in its order.
        class_names: C names.

    Raises:
        UserError: A position or name that does not exist, or an image that could not be read.
    """
    found: dict[int, int] = {}
    for position, name in given.items():
        if not 0 <= position < len(records):
            raise UserError(f"hints: there is no image at position {position}; there are {len(records)}")
        index = records[position].index
        if index is None:
            raise UserError(f"hints: image {position} could not be read ({records[position].reason}); leave it out")
        if name and name not in class_names:
            near = nearest(name, class_names, normalise)
            raise UserError(f"hints: unknown class {quote(name)} at position {position}" + (f"; did you mean {quote(near)}?" if near else ""))
        found[index] = class_names.index(name) if name else NONE_OF_THESE
    return _hints(found)


def _hints(labels: Mapping[int, int], looks: Mapping[int, str] | None = None) -> Hints:
    import torch

    order = sorted(labels)
    index, label = (torch.tensor(values, dtype=torch.int64) for values in (order, [labels[i] for i in order]))
    if looks is None or len(set(looks.values())) == len(order):
        return Hints(index, label)
    number = {look: i for i, look in enumerate(dict.fromkeys(looks[i] for i in order))}
    return Hints(index, label, torch.tensor([number[looks[i]] for i in order], dtype=torch.int64))


def describe_hints(hints: Hints, class_names: Sequence[str]) -> str:
    """How many images and classes the hints cover; one line."""
    known = hints.label[hints.label >= 0]
    none = len(hints.label) - len(known)
    split = f" ({len(known)} with a class, {none} as none of the classes)" if none else ""
    return f"hints: {counted(len(hints.index), 'image', 'images')}{split}, {len(known.unique())} of {len(class_names)} classes"


def hints_digest(hints: Hints) -> str:
    """Hash of positions and labels; the positions follow from the images' content."""
    return hashlib.sha256(f"{hints.index.tolist()} {hints.label.tolist()}".encode()).hexdigest()


def given_hints(hints: Hints, records: Sequence[ImageRecord], class_names: Sequence[str], told: Mapping[str, How] | None = None) -> str:
    """A hints file that says what the run was given, about the images that could be read; ``told`` as for :func:`hints_csv`."""
    return hints_csv(hints_by_name(hints, records, class_names), told or None)


def hints_by_name(hints: Hints, records: Sequence[ImageRecord], class_names: Sequence[str]) -> dict[str, str]:
    """Class names by name of the image, the empty name for "none of these"."""
    names = {record.index: record.name for record in records}
    pairs = zip(hints.index.tolist(), hints.label.tolist(), strict=True)
    return {names[index]: class_names[label] if label >= 0 else "" for index, label in pairs}


def hints_csv(hints: Mapping[str, str], told: Mapping[str, How] | None = None) -> str:
    """The content of a hints file: class names by path, the empty name for "none of these".

    Args:
        hints: The names.
        told: How each was given, for three columns more.
    """
    file = io.StringIO(newline="")
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(LABEL_COLUMNS if told is None else TOLD_COLUMNS)
    for path, label in hints.items():
        writer.writerow(map(escape_cell, (path, label, *(() if told is None else told.get(plain(path), How())))))
    return for_spreadsheets(file.getvalue())

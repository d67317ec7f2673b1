"""True classes of test images, from the folders they lie in or from a CSV file. Only ``evaluate`` reads labels."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from finelens.classes.file_names import FileNames, leaves
from finelens.classes.hand_tables import MARKED, read_table
from finelens.classes.names import classes_of_folders, match, normalise
from finelens.classes.names import folder_classes as find_folder_classes
from finelens.classes.text_files import counted, faults, listing, quote
from finelens.core.options import nearest
from finelens.core.schemas import LABEL_COLUMNS, WHY_COLUMN
from finelens.errors import UserError
from finelens.images.discover import visible_files
from finelens.images.signatures import promises_image
from finelens.storage.cells import unescape_cell

FOLDERS = "folders"
# In a file of answers: "none of these classes" in words, and what stands for an answer that is still to be given.
NONE_WORDS = ("none", "none of these", "none of the classes", "none of these classes")
UNANSWERED = "?"
# What people write who cannot say: no name of a class unless the list has it. Without apostrophes.
_UNSURE = {"dont know", "do not know", "i dont know", "i do not know", "unknown", "unsure", "not sure", "im not sure", "unclear", "no idea", "idk"}

FolderClasses = Callable[..., Mapping[str, str]]


@dataclass(frozen=True)
class Told:
    """Labels that stand in no CSV file but were read from a file of another tool.

    Attributes:
        where: That file.
        labels: Class names by path.
    """

    where: str
    labels: Mapping[str, str]

    def __str__(self) -> str:
        return self.where


class LeftOut(list[str]):
    """What could not be used of labels, a line each.

    Attributes:
        photographs: Files called like images in folders of no class, by folder, and under the empty name those that lie in none.
        folders: How many of the lines, the first ones, are about folders of no class.
    """

    def __init__(self) -> None:
        super().__init__()
        self.photographs: dict[str, int] = {}
        self.folders = 0

    def lines(self, purpose: str) -> list[str]:
        """How much is left out of a purpose, for warnings."""
        inside = {folder: count for folder, count in self.photographs.items() if folder}
        said = []
        if self.folders:
            held, of = counted(sum(inside.values()), "photograph", "photographs"), counted(self.folders, "folder", "folders")
            named = listing([f"{quote(folder)} {count}" for folder, count in inside.items()])
            said.append(f"{held} in {of} of no class left out of {purpose}" + (f": {named}" if named else ""))
        if loose := self.photographs.get(""):
            said.append(f"{counted(loose, 'photograph', 'photographs')} in no folder left out of {purpose}")
        if labels := self[self.folders :]:
            said.append(f"{counted(len(labels), 'label is', 'labels are')} left out of {purpose}, the first because: {labels[0]}")
        return said


class UnknownLabelError(UserError):
    """A label that is no class."""


def read_labels(
    test_dir: Path | str,
    labels: Path | str | Told,
    class_names: Sequence[str],
    *,
    folder_classes: FolderClasses = find_folder_classes,
    none_label: int | None = None,
    names: Sequence[str] | None = None,
    what: str = "labels file",
    left_out: list[str] | None = None,
    strangers: int | None = None,
) -> dict[str, int]:
    """Read the true class of the files below a folder.

    Args:
        test_dir: Folder TEST.
        labels: ``folders``, where the first folder below TEST names the class, or the path of a CSV file with the columns ``path`` (relative to TEST)
            and ``label``.
        class_names: C names; labels and folders are matched to them by name, whatever the order.
        folder_classes: Rule that gives the class name of each folder below TEST.
        names: Paths that a feature file ``test_dir`` stored; None for a folder.
        none_label: What an empty label in a CSV file stands for, or one of ``NONE_WORDS`` that is no class; rows with ``UNANSWERED`` are passed over.
            None refuses all of these.
        what: What messages call the CSV file.
        left_out: Takes a line for each file that does not exist and each folder of no class; None refuses the first.
        strangers: As ``none_label``, and what every other label and every folder of no class stands for as well.

    Returns:
        Path relative to TEST, spelled as image records spell it (``images.discover.display_name``) -> class index in [0, C). With ``folders`` every
        file is included, image or not.

    Raises:
        UserError: TEST or the labels file cannot be read, or names a class or file that does not exist, contradicts itself, or leaves TEST.
    """
    test_dir, file = Path(test_dir), labels if isinstance(labels, Told) else Path(labels)
    none_label = none_label if strangers is None else strangers
    # Folders of no class are no fault then.
    doubts = left_out if strangers is None else []
    if names is not None:
        files = {name: PurePosixPath(name).parts[0] if "/" in name else "" for name in names}
        if str(labels) == FOLDERS:
            folders = classes_of_folders(test_dir, sorted({folder for folder in files.values() if folder}), class_names, left_out=doubts)
            return _from_folders(test_dir, files, folders, class_names, strangers, left_out)
        return _from_csv(test_dir, files, file, class_names, none_label, what, left_out, strangers)
    if not os.path.isdir(test_dir):
        raise UserError(f"test folder {quote(str(test_dir))} is not a folder; check the path")
    if str(labels) == FOLDERS:
        told = {} if doubts is None else {"left_out": doubts}
        return _from_folders(test_dir, _files(test_dir), folder_classes(test_dir, class_names, **told), class_names, strangers, left_out)
    return _from_csv(test_dir, _files(test_dir), file, class_names, none_label, what, left_out, strangers)


def _from_folders(
    test_dir: Path,
    files: Mapping[str, str],
    folders: Mapping[str, str],
    class_names: Sequence[str],
    strangers: int | None,
    left_out: list[str] | None,
) -> dict[str, int]:
    index = {name: i for i, name in enumerate(class_names)}
    result = {path: index[folders[folder]] for path, folder in files.items() if folder in folders}
    if strangers is not None:
        result |= {path: strangers for path, folder in files.items() if folder and folder not in folders}
    if not result:
        raise UserError(f"the class folders of {quote(str(test_dir))} hold no files; put the test images in them")
    if isinstance(left_out, LeftOut):
        # A list of classes or a note among the folders is no photograph; a feature file names nothing else.
        unmatched = ((path, folder) for path, folder in files.items() if path not in result)
        images = (folder for path, folder in unmatched if promises_image(Path(path)) or not test_dir.is_dir())
        left_out.photographs, left_out.folders = dict(sorted(Counter(images).items())), len(left_out)
    return result


def _files(test_dir: Path) -> dict[str, str]:
    """Every file below a folder: name as the table of predictions spells it -> first folder on the way, empty for a file at the top."""
    return {file.name: file.name.partition("/")[0] if "/" in file.name else "" for file in visible_files(test_dir)}


def _from_csv(
    test_dir: Path,
    files: Mapping[str, str],
    labels: Path | Told,
    class_names: Sequence[str],
    none_label: int | None,
    what: str,
    left_out: list[str] | None,
    strangers: int | None = None,
) -> dict[str, int]:
    rows = read_rows(labels, what) if none_label is None else answer_rows(labels, class_names, what)
    named = f"{what} {quote(str(labels))}"
    known = match({label for _, _, label in rows}, class_names)
    positions = {name: i for i, name in enumerate(class_names)}
    index = {label: positions[name] for label, name in known.items()} | ({} if none_label is None else {"": none_label})
    unknown = {label: line for line, _, label in reversed(rows) if label not in index}
    if strangers is not None:
        index |= dict.fromkeys(unknown, strangers)
    elif unknown:
        raise UnknownLabelError(_unknown_labels(named, unknown, class_names))
    result: dict[str, int] = {}
    lines: dict[str, int] = {}
    names, missing, contradictions = FileNames(files, test_dir), [], []
    for line, cell, label in rows:
        path = _find(names, test_dir, cell, f"{named}, line {line}")
        if path is None:
            missing.append(f"{named}, line {line}: there is no file {quote(cell)} in {quote(str(test_dir))}; give paths relative to that folder")
            continue
        target = index[label]
        if result.setdefault(path, target) != target:
            other = f"{_label_of(result[path], class_names)} in line {lines[path]}"
            contradictions.append(f"line {line}: {quote(path)} is {quote(label)} here but {other}")
        lines.setdefault(path, line)
    if contradictions:
        raise UserError(f"{named}, {faults(contradictions)}; keep one of the two")
    if missing and (left_out is None or not result):
        raise UserError(missing[0])
    if left_out is not None:
        left_out += missing
    return result


def _label_of(target: int, class_names: Sequence[str]) -> str:
    return quote(class_names[target]) if target in range(len(class_names)) else "none of the classes"


def none_words(class_names: Iterable[str]) -> set[str]:
    """Normal forms of what says "none of these classes" among these names: one of ``NONE_WORDS`` that is a class means that class."""
    return set(NONE_WORDS) - {normalise(name) for name in class_names}


def is_unsure(label: str) -> bool:
    """Whether a label says that somebody could not answer: question marks, or words like ``don't know``."""
    form = re.sub(r"['\u2019`\u00b4]", "", normalise(label)).rstrip("?.! ")
    return form in _UNSURE or (not form and UNANSWERED in label)


def answer_rows(labels: Path | Told, class_names: Sequence[str], kind: str = "hints file") -> list[tuple[int, str, str]]:
    """Line number, path and label of each answer in a file; the label is empty for "none of these classes".

    Args:
        labels: The file.
        class_names: Names of classes; one of ``NONE_WORDS`` among them is a class.
        kind: What messages call the file.

    Raises:
        UserError: The file cannot be read, or holds no answer.
    """
    none = none_words(class_names)
    rows = [(line, path, "" if normalise(label) in none else label) for line, path, label in read_rows(labels, kind) if label != UNANSWERED]
    if not rows:
        raise UserError(f"{kind} {quote(str(labels))}: every label is still {UNANSWERED}; write names in their place")
    return rows


def read_rows(labels: Path | Told, kind: str) -> list[tuple[int, str, str]]:
    """Line number, path and label of each row; rows of a sheet of questions that nobody has answered are passed over.

    Args:
        labels: A CSV file with the columns ``path`` and ``label``.
        kind: What messages call it.

    Raises:
        UserError: It cannot be read, or is no such file.
    """
    if isinstance(labels, Told):
        return [(number, path, label) for number, (path, label) in enumerate(labels.labels.items(), start=1)]
    what = f"{kind} {quote(str(labels))}"
    header, table = read_table(labels, kind, LABEL_COLUMNS)
    missing = [column for column in LABEL_COLUMNS if column not in header]
    if missing:
        found = listing([quote(cell) for cell in header]) or "nothing"
        raise UserError(f"{what} lacks the column {missing[0]}; its first line must be {','.join(LABEL_COLUMNS)}, {MARKED}, found {found}")
    path_at, label_at = (header.index(column) for column in LABEL_COLUMNS)
    torn = [f"line {line}: expected {len(header)} cells, got {len(cells)}" for line, cells in table if len(cells) != len(header)]
    if torn:
        raise UserError(f"{what}, {faults(torn)}; quote cells that hold commas")
    told = [(line, cells[path_at], unescape_cell(cells[label_at].strip())) for line, cells in table]
    rows = [row for row in told if row[2] or WHY_COLUMN not in header]
    if not rows and WHY_COLUMN in header:
        raise UserError(f"{what}: no photograph has a name yet; write them into the column {LABEL_COLUMNS[1]}")
    if not rows:
        raise UserError(f"{what} has no rows; add one {','.join(LABEL_COLUMNS)} line for each image")
    return rows


def _find(files: FileNames, test_dir: Path, cell: str, where: str) -> str | None:
    """The file that a cell names, relative to TEST, written by hand or copied from predictions.csv; None where there is no such file."""
    found = files.find(cell)
    if len(found) > 1:
        raise UserError(f"{where}: {quote(cell)} may be any of {listing([quote(name) for name in found])}; write the path as the file system has it")
    if not found and leaves(cell):
        raise UserError(f"{where}: {quote(cell)} leaves the folder of the images; give paths relative to {quote(str(test_dir))}")
    return found[0] if found else None


def _unknown_labels(named: str, unknown: Mapping[str, int], class_names: Sequence[str]) -> str:
    """What to say of labels that are no class, by the line where each stands first."""
    near = {label: nearest(label, class_names, normalise) for label in unknown}
    ordered = sorted(unknown, key=lambda label: unknown[label])
    told = [
        f"line {unknown[label]}: unknown label {quote(label)}" + (f"; did you mean {quote(own)}?" if (own := near[label]) else "")
        for label in ordered
    ]
    listed = "" if all(near.values()) else f"; classes are: {listing([quote(name) for name in class_names])}"
    return f"{named}, {faults(told)}{listed}"

"""ELEVATER's data sets as its tools keep them: index files over zip archives, COCO's form of them, and tables with images in base64.

A folder holds an index a part and is read as it is: ``train.txt`` and ``test.txt`` with a line ``ARCHIVE.zip@PATH LABEL`` an image and
``labels.txt`` or ``labelmap.txt``; ``train.json`` and ``test.json`` with ``images``, ``annotations`` and ``categories``; or ``train.tsv`` and
``test.tsv`` with the columns identity, ``[{"class": NAME}]`` and the image. A validation part is in neither part. An image may have several classes:
labels with commas between them, several annotations, several classes in the cell.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from finelens.bench.sets.common import labels_of, listed_part
from finelens.bench.sets.data import DataSet, Part, folder_set
from finelens.bench.sets.sealed import Labels
from finelens.classes.names import check_names, match, read_class_file
from finelens.errors import UserError
from finelens.images.archived import ArchiveImages, TableImages
from finelens.images.indices import ENDINGS, IN_ARCHIVE
from finelens.intake.elevater import cells, file_name, index_rows
from finelens.storage.files import read_json

NAME_FILES = ("labels.txt", "labelmap.txt", "classes.txt")


@dataclass(frozen=True)
class Indices:
    """Index files of a folder.

    Attributes:
        test: Of the test part.
        train: Of the training part, of the same kind; None without one.
        names: File of class names; None where the index has them.
    """

    test: Path
    train: Path | None
    names: Path | None


def index_files(folder: Path) -> Indices | None:
    """The index files of a folder; None where it is no such set."""
    names = next((folder / name for name in NAME_FILES if (folder / name).is_file()), None)
    tests = [folder / f"test{ending}" for ending in ENDINGS if (folder / f"test{ending}").is_file()]
    # A list of numbers says nothing without the names.
    test = next((path for path in tests if names is not None or path.suffix != ".txt"), None)
    if test is None:
        return None
    trains = (folder / f"train{ending}" for ending in ENDINGS)
    return Indices(test, next((path for path in trains if path.is_file() and path.suffix == test.suffix), None), names)


def read_elevater(folder: Path) -> DataSet:
    """A data set from its index files; without one of training images it has no training part.

    Raises:
        UserError: An index cannot be read, a label is no class, or an archive or image is missing.
    """
    found = index_files(folder)
    if found is None:
        raise UserError(f"{folder}: there is no index of the test part (test.txt with labels.txt, test.json, or test.tsv)")
    read = {".txt": _listed, ".json": _coco, ".tsv": _tabled}[found.test.suffix]
    names, parts = read(folder, [path for path in (found.train, found.test) if path is not None], found.names)
    nothing = np.zeros((0, len(names)) if parts[-1].labels.several else 0, dtype=np.int64)
    train = Part([], Labels(nothing)) if found.train is None else parts[0]
    split = found.test.name if found.train is None else f"{found.train.name} and {found.test.name}"
    return folder_set(folder, names, train, parts[-1], layout="elevater", split=split)


def _listed(folder: Path, indices: Sequence[Path], file: Path | None) -> tuple[list[str], list[Part]]:
    """Parts from lines ``PATH LABEL``."""
    assert file is not None
    names = read_class_file(file)
    parts = []
    for index in indices:
        rows = index_rows(index)
        parts.append([(path, [_number(label, len(names), f"{index}, line {n}") for label in told.split(",")]) for n, path, told in rows])
    return names, _parts(folder, indices, parts, len(names))


def _number(label: str, count: int, where: str) -> int:
    if not (label.isascii() and label.isdigit() and int(label) < count):
        raise UserError(f"{where}: {label!r} is none of the labels 0 to {count - 1}")
    return int(label)


def _coco(folder: Path, indices: Sequence[Path], file: Path | None) -> tuple[list[str], list[Part]]:
    """Parts from documents in COCO's form; both have the same categories."""
    names: list[str] = []
    parts: list[list[tuple[str, list[int]]]] = []
    for index in indices:
        document = read_json(index)
        try:
            categories = sorted((int(entry["id"]), str(entry["name"])) for entry in document["categories"])
            place = {number: i for i, (number, _) in enumerate(categories)}
            labels: dict[int, list[int]] = {}
            for entry in document["annotations"]:
                labels.setdefault(int(entry["image_id"]), []).append(place[int(entry["category_id"])])
            parts.append([(file_name(entry), labels[int(entry["id"])]) for entry in document["images"]])
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{index}: expected images, annotations and categories as COCO has them, each image with a category ({error})") from error
        own = check_names([name for _, name in categories], source=f"categories of {index}")
        if names and own != names:
            raise UserError(f"{index}: its categories are not those of {indices[0]}; take both from one version of the set")
        names = own
    return names, _parts(folder, indices, parts, len(names))


def _tabled(folder: Path, indices: Sequence[Path], file: Path | None) -> tuple[list[str], list[Part]]:
    """Parts from tables of images."""
    tables = [list(cells(index)) for index in indices]
    for index, rows in zip(indices, tables, strict=True):
        if (row := next((number for number, (told, *_) in enumerate(rows, start=1) if not told), None)) is not None:
            raise UserError(f"{index}: image {row} has no class; leave such images out")
    labels = {label for rows in tables for told, *_ in rows for label in told}
    names = read_class_file(file) if file is not None else check_names(sorted(labels), source=f"classes of {indices[-1]}")
    known = match(labels, names)
    unknown = next((label for label in labels if label not in known), None)
    if unknown is not None:
        raise UserError(f"{indices[-1]}: class {unknown!r} is not in {file}")
    place = {label: names.index(name) for label, name in known.items()}
    own = labels_of([[[place[label] for label in told] for told, *_ in rows] for rows in tables], len(names))
    return names, [
        Part(TableImages(index, [(start, size) for _, start, size in rows]), truth) for index, rows, truth in zip(indices, tables, own, strict=True)
    ]


def _parts(folder: Path, indices: Sequence[Path], rows: Sequence[Sequence[tuple[str, list[int]]]], count: int) -> list[Part]:
    """Parts from paths and classes of each image."""
    labels = labels_of([[own for _, own in part] for part in rows], count)
    return [_part(folder, [path for path, _ in part], truth, index) for part, truth, index in zip(rows, labels, indices, strict=True)]


def _part(folder: Path, paths: Sequence[str], labels: Labels, index: Path) -> Part:
    """A part from paths, in archives or not, and labels."""
    packed = [IN_ARCHIVE in path for path in paths]
    if not packed or not all(packed):
        if any(packed):
            raise UserError(f"{index}: some of its images are in archives and some are not; put all of them into archives, or none")
        return replace(listed_part(folder, [(path, 0) for path in paths], str(index)), labels=labels)
    return Part(ArchiveImages(folder, paths, str(index)), labels)

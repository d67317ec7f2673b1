"""ELEVATER's data sets as its tools keep them: index files over zip archives, COCO's form of them, and tables with images in base64.

A folder holds an index a part and is read as it is: ``train.txt`` and ``test.txt`` with a line ``ARCHIVE.zip@PATH LABEL`` an image and
``labels.txt`` or ``labelmap.txt``; ``train.json`` and ``test.json`` with ``images``, ``annotations`` and ``categories``; or ``train.tsv`` and
``test.tsv`` with the columns identity, ``[{"class": NAME}]`` and the image. A validation part is in neither part. An image may have several classes:
labels with commas between them, several annotations, several classes in the cell.
"""

from __future__ import annotations

import base64
import binascii
import json
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from finelens.bench.sets.common import labels_of, listed_part
from finelens.bench.sets.data import DataSet, Part, folder_set
from finelens.bench.sets.sealed import Labels
from finelens.classes.names import check_names, match, read_class_file
from finelens.classes.text_files import read_lines
from finelens.errors import UserError
from finelens.images.decode import DecodeLimits
from finelens.images.discover import display_name
from finelens.images.store import EncodedImage
from finelens.images.tar_shards import FREE_BYTES, MOST_GROWTH
from finelens.storage.files import read_json

# What an index may be called, ``PART`` for train or test.
ENDINGS = (".txt", "_images.txt", "_ic.txt", ".json", "_meta.json", "_coco.json", ".tsv")
NAME_FILES = ("labels.txt", "labelmap.txt", "classes.txt")
IN_ARCHIVE = ".zip@"


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
        rows: list[tuple[str, list[int]]] = []
        for number, line in read_lines(index, "image index"):
            path, _, told = line.rpartition(" ")
            rows.append((path.strip(), [_number(label, len(names), f"{index}, line {number}") for label in told.split(",")]))
        parts.append(rows)
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
            parts.append([(_file_name(entry), labels[int(entry["id"])]) for entry in document["images"]])
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{index}: expected images, annotations and categories as COCO has them, each image with a category ({error})") from error
        own = check_names([name for _, name in categories], source=f"categories of {index}")
        if names and own != names:
            raise UserError(f"{index}: its categories are not those of {indices[0]}; take both from one version of the set")
        names = own
    return names, _parts(folder, indices, parts, len(names))


def _file_name(entry: Any) -> str:
    """Path of an image; its archive may stand beside it."""
    archive = entry.get("zip_file")
    return f"{archive}@{entry['file_name']}" if archive else str(entry["file_name"])


def _tabled(folder: Path, indices: Sequence[Path], file: Path | None) -> tuple[list[str], list[Part]]:
    """Parts from tables of images."""
    tables = [list(_cells(index)) for index in indices]
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


def _cells(table: Path) -> Iterator[tuple[list[str], int, int]]:
    """Classes of each row of a table, and where its image stands in the file: first byte and length."""
    most = 2 * DecodeLimits().max_bytes
    with table.open("rb") as stream:
        number = position = 0
        while line := stream.readline(most):
            number, start = number + 1, position
            position += len(line)
            if not line.strip():
                continue
            cells = line.rstrip(b"\r\n").split(b"\t")
            try:
                told = [str(entry["class"]) for entry in json.loads(cells[1])]
                image = cells[2]
            except (ValueError, KeyError, TypeError, IndexError, RecursionError) as error:
                raise UserError(f'{table}, row {number}: expected an identity, [{{"class": NAME}}] and an image in base64 ({error})') from error
            if not told:
                raise UserError(f"{table}, row {number}: no class; leave such images out")
            yield told, start + len(cells[0]) + len(cells[1]) + 2, len(image)


class TableImages:
    """Images in base64 at places in a table, read when asked for.

    Args:
        table: The file.
        places: First byte and length of each.
    """

    def __init__(self, table: Path, places: Sequence[tuple[int, int]]) -> None:
        self._table, self._places = table, list(places)
        self.names = [f"{table.name}[{i}].jpg" for i in range(len(places))]

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int, /) -> EncodedImage:
        """The image's bytes; none where the cell is no base64, which makes it an image that cannot be read."""
        start, size = self._places[index]
        with self._table.open("rb") as stream:
            stream.seek(start)
            cell = stream.read(size)
        try:
            return EncodedImage(base64.b64decode(cell, validate=True), self.names[index])
        except binascii.Error:
            return EncodedImage(b"", self.names[index])


class ArchiveImages:
    """Images in zip archives, read when asked for; nothing is unpacked.

    Args:
        folder: Holds the archives.
        paths: ``ARCHIVE.zip@PATH`` of each.
        where: What listed them, for messages.

    Raises:
        UserError: An archive is missing or damaged, or has no such member.
    """

    def __init__(self, folder: Path, paths: Sequence[str], where: str) -> None:
        self.names = [display_name(path) for path in paths]
        self._places: list[tuple[Path, str]] = []
        self._open: tuple[Path, zipfile.ZipFile] | None = None
        members: dict[str, set[str]] = {}
        for path in paths:
            start, _, member = path.partition(IN_ARCHIVE)
            archive = f"{start}.zip"
            if Path(archive).name != archive:
                raise UserError(f"{where}: archive {display_name(archive)} is not in {folder} itself")
            if archive not in members:
                members[archive] = set(self._archive(folder / archive).namelist())
            if member not in members[archive]:
                raise UserError(f"{where}: {folder / archive} has no {display_name(member)}; download it again")
            self._places.append((folder / archive, member))

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int, /) -> EncodedImage:
        """The image's bytes; one that no decoder would take is cut."""
        path, member = self._places[index]
        try:
            archive = self._archive(path)
            info = archive.getinfo(member)
            if info.file_size > FREE_BYTES + MOST_GROWTH * info.compress_size:
                raise UserError(
                    f"{path}: {display_name(member)} unpacks to more than {MOST_GROWTH} times its size; this is no archive of photographs"
                )
            with archive.open(info) as stream:
                return EncodedImage(stream.read(DecodeLimits().max_bytes + 1), self.names[index])
        except (zipfile.BadZipFile, RuntimeError, NotImplementedError, OSError, EOFError) as error:
            raise UserError(f"cannot read {display_name(member)} in {path}: {error}; download it again") from error

    def _archive(self, path: Path) -> zipfile.ZipFile:
        """An archive; the one that was asked last stays open."""
        if self._open is None or self._open[0] != path:
            try:
                self._open = path, zipfile.ZipFile(path)
            except (OSError, zipfile.BadZipFile) as error:
                raise UserError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}; put the set's archives there, packed") from error
        return self._open[1]


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

"""ELEVATER's lists of photographs: index files over zip archives, COCO's form of them, and tables with images in base64.

A file is a part of a data set. Its rows are read here with the labels as they stand; :func:`listed_images` gives the photographs without them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from finelens.classes.text_files import read_lines
from finelens.errors import UserError
from finelens.images.archived import ArchiveImages, TableImages
from finelens.images.decode import DecodeLimits
from finelens.images.discover import display_name
from finelens.images.indices import IN_ARCHIVE, is_index
from finelens.images.shards import ShardImages
from finelens.storage.files import read_json


def index_rows(index: Path) -> list[tuple[int, str, str]]:
    """Line, path and label of each image of an index file of lines ``PATH LABEL``.

    Raises:
        UserError: It cannot be read.
    """
    rows = []
    for number, line in read_lines(index, "image index"):
        path, _, label = line.rpartition(" ")
        rows.append((number, path.strip(), label))
    return rows


def file_name(entry: Any) -> str:
    """Path of an image of a document in COCO's form; its archive may stand beside it."""
    archive = entry.get("zip_file")
    return f"{archive}@{entry['file_name']}" if archive else str(entry["file_name"])


def cells(table: Path) -> Iterator[tuple[list[str], int, int]]:
    """Classes of each row of a table, and where its image stands in the file: first byte and length.

    Raises:
        UserError: A row is of another form.
    """
    most = 2 * DecodeLimits().max_bytes
    with table.open("rb") as stream:
        number = position = 0
        while line := stream.readline(most):
            number, start = number + 1, position
            position += len(line)
            if not line.strip():
                continue
            own = line.rstrip(b"\r\n").split(b"\t")
            try:
                told = [str(entry["class"]) for entry in json.loads(own[1])]
                image = own[2]
            except (ValueError, KeyError, TypeError, IndexError, RecursionError) as error:
                raise UserError(f'{table}, row {number}: expected an identity, [{{"class": NAME}}] and an image in base64 ({error})') from error
            yield told, start + len(own[0]) + len(own[1]) + 2, len(image)


def listed_images(path: Path) -> ShardImages | None:
    """The photographs that an index file names, without their labels; None for any other path.

    Raises:
        UserError: It cannot be read, lists no photograph, or an archive is missing.
    """
    if not is_index(path):
        return None
    if path.suffix.lower() == ".tsv":
        return _some(path, TableImages(path, [(start, size) for _, start, size in cells(path)]))
    if path.suffix.lower() == ".txt":
        paths = [own for _, own, _ in index_rows(path)]
    else:
        document = read_json(path)
        try:
            paths = [file_name(entry) for entry in document["images"]]
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path}: expected images with a file_name each, as COCO has them ({error})") from error
    loose = next((own for own in paths if IN_ARCHIVE not in own), None)
    if loose is not None:
        raise UserError(
            f"{path}: {display_name(loose)} is in no archive (ARCHIVE.zip@PATH), and others are; "
            "put all of them into archives, or unpack them into a folder and give that"
        )
    return _some(path, ArchiveImages(path.parent, paths, str(path)))


def _some(path: Path, found: ShardImages) -> ShardImages:
    if not len(found):
        raise UserError(f"no photographs in {display_name(path)}: it lists none")
    return found

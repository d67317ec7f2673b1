"""WebDataset shards: tar files, plain or compressed with gzip, whose members of one sample share a name up to its first dot. Nothing is unpacked."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from finelens.bench.sets.data import DataSet, Part, folder_set
from finelens.bench.sets.sealed import Labels
from finelens.bench.sets.tar_shards import GZIP, OTHERS, PLAIN, Archives, members
from finelens.classes.names import check_names, match, read_class_file
from finelens.errors import UserError
from finelens.images.store import EncodedImage

IMAGES = ("jpg", "jpeg", "png", "webp")
LABELS = ("cls", "json")
NAME_FILES = ("classes.txt", "classnames.txt")
# A label is a number or a name; whatever is larger is none.
MOST_LABEL_BYTES = 1 << 20


@dataclass(frozen=True)
class Member:
    """A file in a shard.

    Attributes:
        name: Its name.
        start: First byte of its content, as it is without compression.
        size: Bytes of its content.
        content: The content of a label, as far as it may be one.
    """

    name: str
    start: int
    size: int
    content: bytes


class Pictures:
    """Images at places in shards, read when asked for.

    Args:
        places: Shard and member of each image.
    """

    def __init__(self, places: Sequence[tuple[Path, Member]]) -> None:
        self._places, self._archives = list(places), Archives()
        self.names = [f"{shard.name}/{member.name}" for shard, member in places]

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int, /) -> EncodedImage:
        """The image's bytes."""
        shard, member = self._places[index]
        return EncodedImage(self._archives.read(shard, member.start, member.size), self.names[index])


def shards_of(folder: Path, part: str) -> list[Path]:
    """Shards of ``train`` or ``test``: ``PART*.tar`` in the folder, or ``PART/*.tar``; with the endings of compressed ones as well."""
    return _shards(folder, part) or _shards(folder / part, "")


def _shards(folder: Path, start: str) -> list[Path]:
    found = folder.iterdir() if folder.is_dir() else iter(())
    return sorted(path for path in found if path.name.startswith(start) and path.name.endswith((*PLAIN, *GZIP, *OTHERS)) and path.is_file())


def read_webdataset(folder: Path) -> DataSet:
    """A data set from shards of ``train`` and ``test``; without training shards it has no training part.

    A sample is an image with a label: ``.cls`` holds a class number or name, ``.json`` one under ``label`` or ``cls``.

    Raises:
        UserError: A shard is damaged or of another compression, a sample is not whole, or a label is no class.
    """
    file = next((folder / name for name in NAME_FILES if (folder / name).is_file()), None)
    if file is None:
        raise UserError(f"{folder}: put classes.txt there, one class name a line in the order of the labels")
    names = check_names(read_class_file(file), source=str(file))
    shards = {part: shards_of(folder, part) for part in ("train", "test")}
    if not shards["test"]:
        raise UserError(f"{folder}: there are no test shards (test*.tar or test/*.tar, or the same with .tar.gz)")
    parts = [_part(shards[part], names) for part in ("train", "test")]
    return folder_set(folder, names, *parts, layout="webdataset", split=f"{len(shards['train'])} train and {len(shards['test'])} test shards")


def _part(shards: Sequence[Path], names: Sequence[str]) -> Part:
    places: list[tuple[Path, Member]] = []
    labels: list[int] = []
    for shard in shards:
        for key, found in _samples(shard).items():
            image = next((found[kind] for kind in IMAGES if kind in found), None)
            label = next(((kind, found[kind].content) for kind in LABELS if kind in found), None)
            if image is None or label is None:
                raise UserError(f"{shard}: sample {key} has no {'image (' + ', '.join(IMAGES) + ')' if image is None else 'label (cls, json)'}")
            places.append((shard, image))
            labels.append(_label(f"{shard}: sample {key}", *label, names))
    return Part(Pictures(places), Labels(np.array(labels, dtype=np.int64)))


def _samples(shard: Path) -> dict[str, dict[str, Member]]:
    """Members by sample and kind."""
    if shard.name.endswith(OTHERS):
        raise UserError(f"{shard}: of compressed shards only .tar.gz is read; decompress it, for example zstd -d, xz -d or bzip2 -d")
    samples: dict[str, dict[str, Member]] = {}
    for name, start, size, content in members(shard, LABELS, MOST_LABEL_BYTES):
        folder, slash, base = name.rpartition("/")
        stem, _, kind = base.partition(".")
        if not stem:
            continue
        own = samples.setdefault(folder + slash + stem, {})
        if own.setdefault(kind.lower(), Member(name, start, size, content)).name != name:
            raise UserError(f"{shard}: sample {folder + slash + stem} has two files .{kind.lower()}")
    return {key: found for key, found in samples.items() if set(found) & {*IMAGES, *LABELS}}


def _label(where: str, kind: str, content: bytes, names: Sequence[str]) -> int:
    try:
        value: Any = content.decode().strip()
        if kind == "json":
            document = json.loads(value)
            value = document["label"] if "label" in document else document["cls"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{where}: its .{kind} holds no label ({error})") from error
    if isinstance(value, str) and not (value.isascii() and value.isdigit()):
        found = match([value], names)
        value = list(names).index(found[value]) if value in found else None
    number = int(value) if isinstance(value, str) or type(value) is int else -1
    if not 0 <= number < len(names):
        raise UserError(f"{where}: its .{kind} names none of the {len(names)} classes")
    return number

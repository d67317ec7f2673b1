"""WebDataset shards: plain tar files whose members of one sample share a name up to its first dot. Nothing is unpacked."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from finelens.bench.data import DataSet, Part
from finelens.bench.guard import Labels
from finelens.classes.names import check_names, match, read_class_file
from finelens.errors import UserError
from finelens.images.store import EncodedImage

IMAGES = ("jpg", "jpeg", "png", "webp")
LABELS = ("cls", "json")
NAME_FILES = ("classes.txt", "classnames.txt")
# A label is a number or a name; whatever is larger is none.
MOST_LABEL_BYTES = 1 << 20

Place = tuple[Path, int, int]


class Pictures:
    """Images at places in shards, read when asked for.

    Args:
        places: Shard, first byte and number of bytes of each image.
        names: What each image is called.
    """

    def __init__(self, places: Sequence[Place], names: Sequence[str]) -> None:
        self._places, self.names = list(places), list(names)

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int, /) -> EncodedImage:
        """The image's bytes."""
        shard, start, size = self._places[index]
        with shard.open("rb") as file:
            file.seek(start)
            return EncodedImage(file.read(size), self.names[index])


def shards_of(folder: Path, part: str) -> list[Path]:
    """Shards of ``train`` or ``test``: ``PART*.tar`` in the folder, or ``PART/*.tar``."""
    return sorted(folder.glob(f"{part}*.tar")) or sorted((folder / part).glob("*.tar"))


def read_webdataset(folder: Path) -> DataSet:
    """A data set from shards of ``train`` and ``test``; without training shards it has no training part.

    A sample is an image with a label: ``.cls`` holds a class number or name, ``.json`` one under ``label`` or ``cls``.

    Raises:
        UserError: A shard is damaged or compressed, a sample is not whole, or a label is no class.
    """
    file = next((folder / name for name in NAME_FILES if (folder / name).is_file()), None)
    if file is None:
        raise UserError(f"{folder}: put classes.txt there, one class name a line in the order of the labels")
    names = check_names(read_class_file(file), source=str(file))
    shards = {part: shards_of(folder, part) for part in ("train", "test")}
    if not shards["test"]:
        raise UserError(f"{folder}: there are no test shards (test*.tar or test/*.tar)")
    parts = [_part(shards[part], names) for part in ("train", "test")]
    descriptions = folder / "descriptions.json"
    return DataSet(
        name=folder.resolve().name,
        class_names=tuple(names),
        train=parts[0],
        test=parts[1],
        layout="webdataset",
        split=f"{len(shards['train'])} train and {len(shards['test'])} test shards",
        descriptions=descriptions if descriptions.is_file() else None,
    )


def _part(shards: Sequence[Path], names: Sequence[str]) -> Part:
    places: list[Place] = []
    titles: list[str] = []
    labels: list[int] = []
    for shard in shards:
        samples = _samples(shard)
        for key, found in samples.items():
            image = next((found[kind] for kind in IMAGES if kind in found), None)
            label = next(((kind, found[kind]) for kind in LABELS if kind in found), None)
            if image is None or label is None:
                raise UserError(f"{shard}: sample {key} has no {'image (' + ', '.join(IMAGES) + ')' if image is None else 'label (cls, json)'}")
            places.append((shard, image[1], image[2]))
            titles.append(f"{shard.name}/{image[0]}")
            labels.append(_label(shard, key, label, names))
    return Part(Pictures(places, titles), Labels(np.array(labels, dtype=np.int64)))


def _samples(shard: Path) -> dict[str, dict[str, tuple[str, int, int]]]:
    """Member name, first byte and size by sample and kind."""
    samples: dict[str, dict[str, tuple[str, int, int]]] = {}
    end = shard.stat().st_size
    try:
        # Plain tar only: in a compressed one no image can be found without reading all before it.
        with tarfile.open(shard, "r:") as archive:
            for member in archive:
                # Links, devices and sparse files are no samples.
                if not member.isreg() or member.issparse():
                    continue
                folder, slash, base = member.name.rpartition("/")
                stem, _, kind = base.partition(".")
                if not stem:
                    continue
                if member.offset_data + member.size > end:
                    raise UserError(f"{shard} ends inside {member.name}; download it again")
                own = samples.setdefault(folder + slash + stem, {})
                if own.setdefault(kind.lower(), (member.name, member.offset_data, member.size))[0] != member.name:
                    raise UserError(f"{shard}: sample {folder + slash + stem} has two files .{kind.lower()}")
    except (tarfile.TarError, OSError) as error:
        raise UserError(f"cannot read {shard}: {error}; shards are plain tar files, neither compressed nor cut short") from error
    return {key: found for key, found in samples.items() if set(found) & {*IMAGES, *LABELS}}


def _label(shard: Path, key: str, label: tuple[str, tuple[str, int, int]], names: Sequence[str]) -> int:
    kind, (_, start, size) = label
    with shard.open("rb") as file:
        file.seek(start)
        data = file.read(min(size, MOST_LABEL_BYTES))
    try:
        value: Any = data.decode().strip()
        if kind == "json":
            document = json.loads(value)
            value = document["label"] if "label" in document else document["cls"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{shard}: sample {key}: its .{kind} holds no label ({error})") from error
    if isinstance(value, str) and not (value.isascii() and value.isdigit()):
        found = match([value], names)
        value = list(names).index(found[value]) if value in found else None
    number = int(value) if isinstance(value, str) or type(value) is int else -1
    if not 0 <= number < len(names):
        raise UserError(f"{shard}: sample {key}: its .{kind} names none of the {len(names)} classes")
    return number

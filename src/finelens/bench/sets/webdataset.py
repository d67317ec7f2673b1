"""WebDataset shards: tar files, plain or compressed with gzip, whose members of one sample share a name. Nothing is unpacked.

WebDataset itself ends that name at the first dot, so that names with dots (``cam0.2021-05-01.jpg``) fall apart there. Here it ends at the last dot
before an image or a label. What is then an image without a label beside a whole sample, as ``0.mask.png`` is beside ``0.jpg`` and ``0.cls``, is a
further file of that sample; any other image or label without its partner is an error that names it. What is left out is counted.
"""

from __future__ import annotations

import io
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from finelens.bench.sets.data import DataSet, Part, counted_out, folder_set
from finelens.bench.sets.sealed import Labels
from finelens.classes.names import check_names, match, read_class_file
from finelens.classes.templates import check_templates
from finelens.classes.text_files import quote, read_lines, read_utf8
from finelens.errors import UserError
from finelens.images.discover import COUNT_FILE, is_leftover
from finelens.images.signatures import IMAGE_SUFFIXES
from finelens.images.store import EncodedImage
from finelens.images.tar_shards import GZIP, OTHERS, PLAIN, Archives, members

IMAGES = ("jpg", "jpeg", "png", "webp", *sorted(suffix[1:] for suffix in IMAGE_SUFFIXES - {".jpg", ".jpeg", ".png", ".webp"}))
LABELS = ("cls", "json")
# Of CLIP_benchmark's sets of several classes a photograph: a NumPy file of 0 and 1, one a class.
SETS = ("npy",)
NAME_FILES = ("classes.txt", "classnames.txt")
# Beside the shards of CLIP_benchmark's sets. The templates' place for the name is ``{c}``.
TEMPLATE_FILE, TYPE_FILE = "zeroshot_classification_templates.txt", "dataset_type.txt"
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
    shards = [path for path in found if path.name.startswith(start) and path.name.endswith((*PLAIN, *GZIP, *OTHERS)) and path.is_file()]
    return sorted(shards, key=_number_first)


def _number_first(path: Path) -> tuple[int, str]:
    """Shards that are called by their number come in its order."""
    stem = path.name.partition(".")[0]
    return (int(stem) if stem.isascii() and stem.isdigit() else -1, path.name)


def read_webdataset(folder: Path) -> DataSet:
    """A data set from shards of ``train`` and ``test``; without training shards it has no training part.

    A sample is an image with a label: ``.cls`` holds a class number or name, ``.json`` one under ``label`` or ``cls``. Where ``dataset_type.txt``
    says ``multilabel``, ``.npy`` holds 0 or 1 for each class.

    Raises:
        UserError: A shard is damaged or of another compression, a sample is not whole, or a label is no class.
    """
    file = next((folder / name for name in NAME_FILES if (folder / name).is_file()), None)
    if file is None:
        raise UserError(f"{folder}: put classes.txt there, one class name a line in the order of the labels")
    names = check_names(read_class_file(file), source=str(file))
    kinds = _label_kinds(folder)
    shards = {part: shards_of(folder, part) for part in ("train", "test")}
    for part, own in shards.items():
        _check_count(folder / part / COUNT_FILE, len(own))
    if not shards["test"]:
        raise UserError(f"{folder}: there are no test shards (test*.tar or test/*.tar, or the same with .tar.gz)")
    read = [_part(shards[part], names, kinds) for part in ("train", "test")]
    left_out = counted_out("members of no sample", [name for _, others in read for name in others])
    split = f"{len(shards['train'])} train and {len(shards['test'])} test shards"
    found = folder_set(folder, names, *(part for part, _ in read), layout="webdataset", split=split, left_out=left_out)
    return replace(found, templates=_templates(folder / TEMPLATE_FILE))


def _label_kinds(folder: Path) -> tuple[str, ...]:
    """Which members are labels, by CLIP_benchmark's type of the set; one of captions is refused."""
    if not (folder / TYPE_FILE).is_file():
        return LABELS
    kind = read_utf8(folder / TYPE_FILE, "data set type").strip()
    if kind not in ("classification", "multilabel"):
        raise UserError(f"{folder}: {TYPE_FILE} calls it {quote(kind)}; this benchmark is of photographs with classes")
    return LABELS if kind == "classification" else SETS


def _check_count(file: Path, found: int) -> None:
    """Refuse a part that was not downloaded whole."""
    if not file.is_file():
        return
    told = read_utf8(file, "number of shards").strip()
    if not (told.isascii() and told.isdigit()) or int(told) != found:
        raise UserError(f"{file} says {quote(told)} and there are {found} shards; download the others, or delete the file to go without them")


def _templates(file: Path) -> tuple[str, ...] | None:
    """Prompts of the set; None for the built-in ones."""
    if not file.is_file():
        return None
    return check_templates([line.replace("{c}", "{}") for _, line in read_lines(file, "template file")], str(file))


def _part(shards: Sequence[Path], names: Sequence[str], kinds: Sequence[str]) -> tuple[Part, list[str]]:
    """A part, and the members of its shards that belong to no sample."""
    places: list[tuple[Path, Member]] = []
    labels: list[Any] = []
    left_out: list[str] = []
    for shard in shards:
        samples, others = _samples(shard, kinds)
        left_out += [f"{shard.name}/{name}" for name in others]
        for key, found in samples.items():
            image = next((found[kind] for kind in IMAGES if kind in found), None)
            label = next(((kind, found[kind].content) for kind in kinds if kind in found), None)
            if image is None or label is None:
                lacking = f"image ({', '.join(IMAGES[:4])}, ...)" if image is None else f"label ({', '.join(kinds)})"
                raise UserError(f"{shard}: sample {key} has no {lacking}")
            places.append((shard, image))
            labels.append(_label(f"{shard}: sample {key}", *label, names))
    several = kinds == SETS
    return Part(Pictures(places), Labels(np.array(labels, dtype=np.int64).reshape(-1, len(names)) if several else labels)), left_out


def _samples(shard: Path, kinds: Sequence[str]) -> tuple[dict[str, dict[str, Member]], list[str]]:
    """Images and labels by sample and kind, and the names of what belongs to no sample."""
    if shard.name.endswith(OTHERS):
        raise UserError(f"{shard}: of compressed shards only .tar.gz is read; decompress it, for example zstd -d, xz -d or bzip2 -d")
    samples: dict[str, dict[str, Member]] = {}
    others: list[str] = []
    for name, start, size, content in members(shard, kinds, MOST_LABEL_BYTES, others):
        key, _, kind = name.rpartition(".")
        kind = kind.lower()
        if is_leftover(name.rpartition("/")[2]) or kind not in (*IMAGES, *kinds):
            others.append(name)
        elif samples.setdefault(key, {}).setdefault(kind, member := Member(name, start, size, content)) is not member:
            raise UserError(f"{shard}: sample {key} has two files .{kind}")
    # Texts and embeddings beside an image are part of its sample; a second image or label is as well, but its owner may not have meant it so.
    left_out = [name for name in others if not _belongs(name, samples, kinds)]
    for key in [key for key, found in samples.items() if not _is_whole(found, kinds) and _belongs(key, samples, kinds)]:
        left_out += [member.name for member in samples.pop(key).values()]
    return samples, left_out


def _is_whole(found: Collection[str], kinds: Sequence[str]) -> bool:
    return not (set(IMAGES).isdisjoint(found) or set(kinds).isdisjoint(found))


def _belongs(name: str, samples: Mapping[str, Mapping[str, Member]], kinds: Sequence[str]) -> bool:
    """Whether a file is a further one of a whole sample: the sample's name, a dot, and more."""
    folder, slash, base = name.rpartition("/")
    stems = (folder + slash + base[:end] for end, letter in enumerate(base) if letter == ".")
    return any(_is_whole(samples.get(stem, ()), kinds) for stem in stems)


def _label(where: str, kind: str, content: bytes, names: Sequence[str]) -> int | np.ndarray:
    """The class that a label says, or for ``.npy`` the classes, (C,) of 0 and 1."""
    if kind in SETS:
        return _set_of(where, content, len(names))
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


def _set_of(where: str, content: bytes, count: int) -> np.ndarray:
    try:
        # A pickle would run what it holds.
        values = np.load(io.BytesIO(content), allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise UserError(f"{where}: its .npy is no NumPy file of numbers ({error}); download the shard again") from error
    if values.shape != (count,) or values.dtype.kind not in "biuf":
        raise UserError(f"{where}: its .npy has the shape {values.shape}; expected one number for each of the {count} classes")
    return np.asarray(values > 0, dtype=np.int64)

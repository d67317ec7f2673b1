"""Data sets in the layout in which their authors publish them, for those that say themselves which images are for training and which for testing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from finelens.bench.sets.common import finish, readable, spoken, text_lines
from finelens.bench.sets.data import DataSet
from finelens.errors import UserError
from finelens.images.discover import discover

Templates = tuple[str, ...] | None


def read_pets(folder: Path, templates: Templates = None) -> DataSet:
    """Oxford-IIIT Pets: ``images/`` and ``annotations/trainval.txt``, ``test.txt``, whose lines are ``Breed_name_12 CLASS SPECIES BREED``."""
    names: dict[int, str] = {}

    def rows(file: str) -> list[tuple[str, int]]:
        found = []
        for line in text_lines(folder / "annotations" / file):
            cells = line.split()
            if line.startswith("#"):
                continue
            if len(cells) != 4 or not cells[1].isdigit():
                raise UserError(f"{folder / 'annotations' / file}: expected IMAGE CLASS SPECIES BREED, got {line!r}")
            names.setdefault(int(cells[1]) - 1, cells[0].rpartition("_")[0])
            found.append((f"{cells[0]}.jpg", int(cells[1]) - 1))
        return found

    train, test = rows("trainval.txt"), rows("test.txt")
    ordered = [names.get(k, "") for k in range(len(names))]
    return finish("pets", folder / "images", [readable(name) for name in ordered], train, test, "annotations/trainval.txt and test.txt", templates)


def read_food101(folder: Path, templates: Templates = None) -> DataSet:
    """Food-101: ``images/CLASS/ID.jpg`` and ``meta/classes.txt``, ``train.txt``, ``test.txt``."""
    names = text_lines(folder / "meta/classes.txt")
    train, test = (_by_folder([f"{line}.jpg" for line in text_lines(folder / "meta" / file)], names, file) for file in ("train.txt", "test.txt"))
    return finish("food101", folder / "images", [readable(name) for name in names], train, test, "meta/train.txt and test.txt", templates)


def read_dtd(folder: Path, templates: Templates = None) -> DataSet:
    """Describable Textures: ``images/CLASS/*.jpg`` and ``labels/train1.txt``, ``test1.txt``: the first of the authors' ten splits."""
    lines = {file: text_lines(folder / "labels" / file) for file in ("train1.txt", "test1.txt")}
    names = sorted({line.partition("/")[0] for part in lines.values() for line in part})
    train, test = (_by_folder(part, names, file) for file, part in lines.items())
    return finish("dtd", folder / "images", names, train, test, "labels/train1.txt and test1.txt", templates)


def read_aircraft(folder: Path, templates: Templates = None) -> DataSet:
    """FGVC-Aircraft: ``data/images/*.jpg``, ``data/variants.txt`` and ``data/images_variant_trainval.txt``, ``images_variant_test.txt``."""
    names = text_lines(folder / "data/variants.txt")
    index = {name: i for i, name in enumerate(names)}

    def rows(file: str) -> list[tuple[str, int]]:
        pairs = [line.partition(" ") for line in text_lines(folder / "data" / file)]
        unknown = next((name for _, _, name in pairs if name not in index), None)
        if unknown is not None:
            raise UserError(f"{folder / 'data' / file}: {unknown!r} is not in variants.txt")
        return [(f"{image}.jpg", index[name]) for image, _, name in pairs]

    train, test = rows("images_variant_trainval.txt"), rows("images_variant_test.txt")
    return finish("aircraft", folder / "data/images", names, train, test, "images_variant_trainval.txt and images_variant_test.txt", templates)


def read_cub(folder: Path, templates: Templates = None) -> DataSet:
    """CUB-200-2011: ``images/``, and the tables ``images.txt``, ``image_class_labels.txt``, ``train_test_split.txt``, ``classes.txt``."""
    tables = {name: _table(folder / f"{name}.txt") for name in ("images", "image_class_labels", "train_test_split", "classes")}
    labels, training = tables["image_class_labels"], tables["train_test_split"]
    if not tables["images"].keys() == labels.keys() == training.keys():
        raise UserError(f"{folder}: images.txt, image_class_labels.txt and train_test_split.txt are about different images")
    names = [readable(tables["classes"][key].partition(".")[2]) for key in sorted(tables["classes"], key=int)]
    parts: list[list[tuple[str, int]]] = [
        [(path, int(labels[key]) - 1) for key, path in tables["images"].items() if training[key] == flag] for flag in ("1", "0")
    ]
    return finish("cub", folder / "images", names, parts[0], parts[1], "train_test_split.txt", templates)


def read_sun397(folder: Path, templates: Templates = None) -> DataSet:
    """SUN397: ``SUN397/a/abbey/*.jpg`` and the first of the authors' ten splits: ``ClassName.txt``, ``Training_01.txt``, ``Testing_01.txt``.

    Where a place has two parts, such as ``/a/apartment_building/outdoor``, the last comes first in its name.
    """
    lists = next((place for place in (folder, folder / "Partitions", folder / "SUN397") if (place / "Training_01.txt").is_file()), folder)
    # It comes with the images as well as with the lists.
    titles = text_lines(next((place for place in (lists, folder / "SUN397") if (place / "ClassName.txt").is_file()), lists) / "ClassName.txt")
    names = [" ".join(readable(part) for part in reversed(title.strip("/").split("/")[1:])) for title in titles]
    index = {title: i for i, title in enumerate(titles)}

    def rows(file: str) -> list[tuple[str, int]]:
        lines = text_lines(lists / file)
        unknown = next((line for line in lines if line.rpartition("/")[0] not in index), None)
        if unknown is not None:
            raise UserError(f"{lists / file}: {unknown!r} is in no class of ClassName.txt")
        return [(line.lstrip("/"), index[line.rpartition("/")[0]]) for line in lines]

    return finish(
        "sun397", folder / "SUN397", names, rows("Training_01.txt"), rows("Testing_01.txt"), "Training_01.txt and Testing_01.txt", templates
    )


def read_ucf101(folder: Path, templates: Templates = None) -> DataSet:
    """UCF101: the middle frame of each video, ``UCF-101-midframes/Apply_Lipstick/v_ApplyLipstick_g01_c01.jpg`` (or ``ApplyLipstick/...``), and the
    first of the authors' three splits: ``ucfTrainTestlist/classInd.txt``, ``trainlist01.txt``, ``testlist01.txt``.
    """
    frames, lists = folder / "UCF-101-midframes", folder / "ucfTrainTestlist"
    actions = [line.partition(" ")[2] for line in text_lines(lists / "classInd.txt")]
    index = {action: i for i, action in enumerate(actions)}
    # Lists and videos do not agree on capital letters in HandstandPushups.
    there = {_plain(image.name): image.name for image in discover(frames)}

    def rows(file: str) -> list[tuple[str, int]]:
        found = []
        for line in text_lines(lists / file):
            video = line.partition(" ")[0]
            action, _, clip = video.partition("/")
            if action not in index:
                raise UserError(f"{lists / file}: {video!r} is in no class of classInd.txt")
            frame = f"{action}/{clip.removesuffix('.avi')}.jpg"
            found.append((there.get(_plain(frame), frame), index[action]))
        return found

    split = "trainlist01.txt and testlist01.txt, middle frames"
    return finish("ucf101", frames, [spoken(action) for action in actions], rows("trainlist01.txt"), rows("testlist01.txt"), split, templates)


def _plain(path: str) -> str:
    """A frame's path without what its spellings differ in."""
    folder, _, file = path.rpartition("/")
    return f"{folder.replace('_', '')}/{file}".lower()


def _table(path: Path) -> dict[str, str]:
    return {key: value for key, _, value in (line.partition(" ") for line in text_lines(path))}


def _by_folder(paths: Sequence[str], names: Sequence[str], where: str) -> list[tuple[str, int]]:
    index = {name: i for i, name in enumerate(names)}
    unknown = next((path for path in paths if path.partition("/")[0] not in index), None)
    if unknown is not None:
        raise UserError(f"{where}: {unknown!r} is in no class folder")
    return [(path, index[path.partition("/")[0]]) for path in paths]

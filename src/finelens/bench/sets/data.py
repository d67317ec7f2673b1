"""Data sets of the benchmark: two parts of images, their classes under lock, class names and texts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from finelens.bench.sets.sealed import Labels
from finelens.classes.labels import read_labels
from finelens.classes.names import check_names, read_class_file
from finelens.errors import UserError
from finelens.images.discover import ImageFile, discover, display_name, is_leftover
from finelens.images.store import ImageItems


@dataclass(frozen=True)
class Part:
    """Half of a data set.

    Attributes:
        images: Files, or Python images.
        labels: Their classes, in the same order.
    """

    images: list[ImageFile] | ImageItems
    labels: Labels

    def names(self) -> list[str]:
        """A name for each image."""
        own = getattr(self.images, "names", None)
        if own is not None:
            return list(own)
        if isinstance(self.images, list):
            return [image.name if isinstance(image, ImageFile) else f"[{i}]" for i, image in enumerate(self.images)]
        return [f"[{i}]" for i in range(len(self.images))]


@dataclass(frozen=True)
class DataSet:
    """A data set with a training and a test part.

    Attributes:
        name: What rows call it.
        class_names: C names.
        train: Training part; its labels only make splits.
        test: Test part.
        layout: How it was read.
        split: Where the two parts come from.
        templates: Prompts of the set; None for the built-in ones.
        descriptions: File of sentences about the classes, or None.
        left_out: What lies there but is in no part, or has no class: for each kind a line with its number and the first; for terminal and rows.
    """

    name: str
    class_names: tuple[str, ...]
    train: Part
    test: Part
    layout: str
    split: str
    templates: tuple[str, ...] | None = None
    descriptions: Path | None = None
    left_out: tuple[str, ...] = ()

    def texts_digest(self) -> str:
        """Hash of names, templates and descriptions."""
        total = hashlib.sha256(json.dumps([self.class_names, self.templates]).encode())
        if self.descriptions is not None:
            total.update(self.descriptions.read_bytes())
        return total.hexdigest()


def counted_out(what: str, names: Sequence[str]) -> tuple[str, ...]:
    """The line of what is left out; none where there is nothing.

    Args:
        what: What they are, in the plural.
        names: What they are called.
    """
    return (f"{len(names)} {what}, first {display_name(names[0])}",) if names else ()


def read_folder(folder: Path, test: str = "test") -> DataSet:
    """Read a folder with ``train/`` and ``test/``, each with a folder per class.

    ``classes.txt`` (or ``classes.json``) names the classes, else the folders of ``test/`` do; ``classes.json`` may map folders to names;
    ``descriptions.json`` holds sentences about them. Where ``train/`` has no class folders its classes are not known, and only protocols that do not
    need them can be run.

    Args:
        folder: The folder.
        test: What its test part is called.

    Raises:
        UserError: Something is missing or does not fit.
    """
    folder = Path(folder)
    for part in ("train", test):
        if not (folder / part).is_dir():
            raise UserError(f"data set {folder}: there is no folder {part}; put the images in {folder}/train/CLASS and {folder}/test/CLASS")
    names = _class_names(folder, test)
    read = _part(folder / "train", names), _part(folder / test, names, must_have_labels=True)
    left_out = tuple(line for _, lines in read for line in lines)
    return folder_set(folder, names, *(part for part, _ in read), layout="folder", split=f"train and {test} folders", left_out=left_out)


def folder_set(folder: Path, names: Sequence[str], train: Part, test: Part, *, layout: str, split: str, left_out: tuple[str, ...] = ()) -> DataSet:
    """A data set that is called as its folder, with the folder's ``descriptions.json`` if there is one.

    Args:
        folder: The folder.
        names: Class names.
        train: Training part.
        test: Test part.
        layout: How it was read.
        split: Where the two parts come from.
        left_out: What is in no part or has no class.
    """
    descriptions = folder / "descriptions.json"
    found = descriptions if descriptions.is_file() else None
    return DataSet(folder.resolve().name, tuple(names), train, test, layout, split, descriptions=found, left_out=left_out)


def _class_names(folder: Path, test: str) -> list[str]:
    for file in ("classes.txt", "classes.json"):
        if (folder / file).is_file():
            return read_class_file(folder / file)
    found = sorted(path.name for path in (folder / test).iterdir() if path.is_dir() and not is_leftover(path.name))
    return check_names([name.replace("_", " ") for name in found], source=f"folders of {folder / test}")


def _part(folder: Path, names: Sequence[str], *, must_have_labels: bool = False) -> tuple[Part, tuple[str, ...]]:
    """A part, and what of it is in no class folder where there are some."""
    images = discover(folder)
    try:
        truth = read_labels(folder, "folders", names)
    except UserError:
        if must_have_labels or any(path.is_dir() and not is_leftover(path.name) for path in folder.iterdir()):
            raise
        truth = {}
    outside = [image.name for image in images if image.name not in truth] if truth else []
    left_out = counted_out(f"files of {folder.name} in no class folder", outside)
    return Part(images, Labels(np.array([truth.get(image.name, -1) for image in images]))), left_out

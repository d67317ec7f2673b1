"""ImageNet in the layouts in which people have it: sorted into folders, as its own archives unpack, or as Kaggle packs it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from finelens.bench.sets.common import folder_part, listed_part, read_table, text_lines
from finelens.bench.sets.data import DataSet, Part, counted_out
from finelens.bench.sets.sealed import Labels
from finelens.bench.sets.wordnet import class_folders, class_names, find_file, is_wnid, named, synsets
from finelens.errors import UserError
from finelens.images.discover import discover

KAGGLE = "ILSVRC/Data/CLS-LOC"
SOLUTION = "LOC_val_solution.csv"
SYNSET_LABELS = "imagenet_2012_validation_synset_labels.txt"
GROUND_TRUTH = "ILSVRC2012_validation_ground_truth.txt"
PREFIX = "ILSVRC2012_val_"
Templates = tuple[str, ...] | None


def read_imagenet(folder: Path, templates: Templates = None) -> DataSet:
    """ImageNet: ``train/WNID/*`` and ``val/WNID/*`` or a flat ``val``, in the folder or in ``ILSVRC/Data/CLS-LOC``; ``val`` is the test part.

    Classes of a flat ``val`` come from ``LOC_val_solution.csv``, from ``imagenet_2012_validation_synset_labels.txt`` (a WordNet id for each image, in
    the order of their numbers), or from the development kit: ``ILSVRC2012_validation_ground_truth.txt`` with ``meta.mat``, which says what its
    numbers mean. Without ``train`` there is no training part.

    Raises:
        UserError: Images, their classes or class names are missing.
    """
    root = next((place for place in (folder, folder / KAGGLE) if (place / "val").is_dir()), folder)
    meta = synsets(folder)
    truth = None if _sorted(root / "val") else _flat_truth(folder, root / "val", meta)
    wnids = class_folders(root / "val") if truth is None else sorted(set(truth[0].values()))
    names = named(wnids, class_names(folder, first=dict(meta.values())))
    (test, outside), origin = (folder_part(root / "val", wnids), "val folders") if truth is None else _flat_part(root / "val", wnids, *truth)
    has_train = (root / "train").is_dir()
    train, more = folder_part(root / "train", wnids) if has_train else (Part([], Labels(np.zeros(0))), ())
    split = f"train folders and {origin}" if has_train else f"{origin}, no training part"
    return DataSet("imagenet", names, train, test, "authors", split, templates, left_out=(*more, *outside))


def _sorted(val: Path) -> bool:
    return any(path.is_dir() and is_wnid(path.name) for path in val.iterdir())


def _flat_truth(folder: Path, val: Path, meta: Mapping[int, tuple[str, str]]) -> tuple[dict[int, str], Path]:
    """WordNet id by the number of the image, and the file that says so."""
    if (path := find_file(folder, SOLUTION)) is not None:
        rows = read_table(path, ",", ("ImageId", "PredictionString"))
        return _checked({_number(row["ImageId"], path): row["PredictionString"].split()[0] for row in rows}, path), path
    if (path := find_file(folder, SYNSET_LABELS)) is not None:
        return _checked(dict(enumerate(text_lines(path), start=1)), path), path
    if (path := find_file(folder, GROUND_TRUTH)) is not None:
        if not meta:
            raise UserError(f"{path} holds numbers of classes; put meta.mat of the same development kit beside it, which says what they mean")
        lines = text_lines(path)
        unknown = next((line for line in lines if not (line.isascii() and line.isdigit() and int(line) in meta)), None)
        if unknown is not None:
            raise UserError(f"{path}: {unknown!r} is no class of meta.mat")
        return {number: meta[int(line)][0] for number, line in enumerate(lines, start=1)}, path
    raise UserError(
        f"{val} holds no class folders: put {SOLUTION} (of the Kaggle archive), {SYNSET_LABELS}, or {GROUND_TRUTH} with meta.mat (of the "
        f"development kit) in {folder}, or sort the images into {val}/WNID"
    )


def _checked(wnids: dict[int, str], path: Path) -> dict[int, str]:
    wrong = next((wnid for wnid in wnids.values() if not is_wnid(wnid)), None)
    if wrong is not None:
        raise UserError(f"{path}: {wrong!r} is no WordNet id")
    return wnids


def _number(image: str, path: Path) -> int:
    digits = image.removeprefix(PREFIX)
    if image == digits or not (digits.isascii() and digits.isdigit()):
        raise UserError(f"{path}: {image!r} is no image of the validation part, {PREFIX}NUMBER")
    return int(digits)


def _flat_part(val: Path, wnids: Iterable[str], truth: Mapping[int, str], source: Path) -> tuple[tuple[Part, tuple[str, ...]], str]:
    """The images of a flat ``val`` that are there, what is no such image, and what the split rests on."""
    index = {wnid: i for i, wnid in enumerate(wnids)}
    found = [image.name for image in discover(val)]
    images = [name for name in found if "/" not in name and name.startswith(PREFIX)]
    outside = counted_out(f"files of {val.name} not called {PREFIX}NUMBER", [name for name in found if "/" in name or not name.startswith(PREFIX)])
    numbers = {name: _number(name.partition(".")[0], val) for name in images}
    unknown = next((name for name, number in numbers.items() if number not in truth), None)
    if unknown is not None:
        raise UserError(f"{source} says nothing about {unknown}; take the file that belongs to these images")
    rows = [(name, index[truth[number]]) for name, number in numbers.items()]
    part = listed_part(val, rows, f"{val}, images {PREFIX}*"), outside
    return part, f"{source.name} ({len(rows)} of {len(truth)} images there)"

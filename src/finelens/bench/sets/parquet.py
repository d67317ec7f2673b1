"""Hugging Face data sets on the local disk: Parquet shards with image bytes and labels whose names stand in the file's own metadata."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from finelens.bench.sets.common import TESTS, readable
from finelens.bench.sets.data import DataSet, Part, counted_out, folder_set
from finelens.bench.sets.sealed import Labels
from finelens.classes.names import check_names
from finelens.errors import UserError
from finelens.images.shards import ParquetImages, hugging_face_features, open_parquet, read_column


def shards_of(folder: Path) -> dict[str, list[Path]]:
    """Shards by split: ``SPLIT-00000-of-00002.parquet`` in the folder, or in its ``data``."""
    for place in (folder, folder / "data"):
        found: dict[str, list[Path]] = {}
        for path in sorted(place.glob("*-of-*.parquet")):
            found.setdefault(path.name.split("-", 1)[0], []).append(path)
        if found:
            return found
    return {}


def read_parquet(folder: Path) -> DataSet:
    """A data set from shards. Splits are ``train`` and ``test``, or ``validation`` where there is no ``test``.

    Raises:
        UserError: A split is missing, shards are not complete, or a file has no image and class label columns with names.
    """
    shards = shards_of(folder)
    test = next((name for name in TESTS if name in shards), None)
    if "train" not in shards or test is None:
        raise UserError(f"{folder}: there are shards of {', '.join(sorted(shards))}; train and test (or validation) are needed")
    for part in ("train", test):
        whole = int(digits) if (digits := shards[part][0].stem.rpartition("-of-")[2]).isdigit() else 0
        if whole != len(shards[part]):
            raise UserError(f"{folder}: {len(shards[part])} of {whole} shards of {part} are there; download the others")
    image, label, names = _columns(shards[test][0])
    parts, left_out = [], list[str]()
    for part in ("train", test):
        for shard in shards[part]:
            if _columns(shard) != (image, label, names):
                raise UserError(f"{shard} has other columns or class names than {shards[test][0].name}; download all shards again")
        labels = np.array([-1 if value is None else value for shard in shards[part] for value in read_column(shard, label)])
        if len(labels) and not -1 <= labels.min() <= labels.max() < len(names):
            raise UserError(f"{folder}, {part}: a label is none of the {len(names)} classes")
        parts.append(Part(pictures := ParquetImages(shards[part], image), Labels(labels)))
        if part == test or labels.max(initial=-1) >= 0:
            left_out += counted_out(f"rows of {part} without a class", [pictures.names[i] for i in np.flatnonzero(labels < 0)])
    checked = check_names([readable(name) for name in names], source=f"class names of {label} in {folder}")
    split = f"shards of train and {test}, columns {image} and {label}"
    return folder_set(folder, checked, *parts, layout="parquet", split=split, left_out=tuple(left_out))


def _columns(shard: Path) -> tuple[str, str, tuple[str, ...]]:
    """Image column, label column and class names."""
    features = hugging_face_features(open_parquet(shard).schema_arrow)
    images = [name for name, feature in features.items() if feature.get("_type") == "Image"]
    labels = {name: tuple(feature["names"]) for name, feature in features.items() if feature.get("_type") == "ClassLabel" and "names" in feature}
    label = "label" if "label" in labels else next(iter(labels), "")
    if not images or (len(labels) > 1 and label != "label") or not label:
        raise UserError(
            f"{shard}: its metadata names no image column with one column of class labels; export the set with datasets' to_parquet, "
            "with features Image and ClassLabel"
        )
    return images[0], label, labels[label]

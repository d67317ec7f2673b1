"""Hugging Face data sets on the local disk: Parquet shards with image bytes and labels whose names stand in the file's own metadata."""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from finelens.bench.sets.common import TESTS, readable
from finelens.bench.sets.data import DataSet, Part, folder_set
from finelens.bench.sets.sealed import Labels
from finelens.classes.names import check_names
from finelens.errors import UserError
from finelens.images.store import EncodedImage


class Pictures:
    """Images of shards, read when asked for; the row group that was asked last is kept.

    Args:
        shards: Parquet files.
        column: Name of the image column.
    """

    def __init__(self, shards: Sequence[Path], column: str) -> None:
        self._column = column
        self._groups: list[tuple[Path, int]] = []
        counts = []
        for shard in shards:
            metadata = _open(shard).metadata
            self._groups += [(shard, group) for group in range(metadata.num_row_groups)]
            counts += [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
        self._starts = [0, *accumulate(counts)]
        self._kept: tuple[int, list[Any]] = (-1, [])
        self.names = [f"{shard.name}[{group}][{i}]" for (shard, group), count in zip(self._groups, counts, strict=True) for i in range(count)]

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, index: int, /) -> EncodedImage:
        """The image's bytes."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        group = bisect_right(self._starts, index) - 1
        if self._kept[0] != group:
            shard, number = self._groups[group]
            self._kept = group, _open(shard).read_row_group(number, columns=[self._column]).column(0).to_pylist()
        cell = self._kept[1][index - self._starts[group]]
        data = cell.get("bytes") if isinstance(cell, Mapping) else cell
        # A row without bytes names a file of the machine that wrote it, which is no file to read here: it becomes an image that cannot be read.
        return EncodedImage(data if isinstance(data, bytes) else b"", f"{self.names[index]}.jpg")


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
    parts = []
    for part in ("train", test):
        for shard in shards[part]:
            if _columns(shard) != (image, label, names):
                raise UserError(f"{shard} has other columns or class names than {shards[test][0].name}")
        labels = np.array([-1 if value is None else value for shard in shards[part] for value in _open(shard).read([label]).column(0).to_pylist()])
        if len(labels) and not -1 <= labels.min() <= labels.max() < len(names):
            raise UserError(f"{folder}, {part}: a label is none of the {len(names)} classes")
        parts.append(Part(Pictures(shards[part], image), Labels(labels)))
    checked = check_names([readable(name) for name in names], source=f"class names of {label} in {folder}")
    return folder_set(folder, checked, *parts, layout="parquet", split=f"shards of train and {test}, columns {image} and {label}")


def _open(path: Path) -> Any:
    try:
        import pyarrow.parquet as parquet
    except ImportError:
        raise UserError(f"{path}: Parquet needs pyarrow (pip install pyarrow)") from None
    try:
        return parquet.ParquetFile(path)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {error}") from error


def _columns(shard: Path) -> tuple[str, str, tuple[str, ...]]:
    """Image column, label column and class names."""
    text = (_open(shard).schema_arrow.metadata or {}).get(b"huggingface", b"{}")
    try:
        features = json.loads(text)["info"]["features"]
        images = [name for name, feature in features.items() if feature.get("_type") == "Image"]
        labels = {name: tuple(feature["names"]) for name, feature in features.items() if feature.get("_type") == "ClassLabel"}
    except (ValueError, KeyError, TypeError, AttributeError):
        images, labels = [], {}
    label = "label" if "label" in labels else next(iter(labels), "")
    if not images or (len(labels) > 1 and label != "label") or not label:
        raise UserError(
            f"{shard}: its metadata names no image column with one column of class labels; export the set with datasets' to_parquet, "
            "with features Image and ClassLabel"
        )
    return images[0], label, labels[label]

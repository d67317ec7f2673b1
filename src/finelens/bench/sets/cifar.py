"""CIFAR-10 and CIFAR-100 from their binary version. The usual Python version is a pickle, which finelens does not read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from finelens.bench.sets.common import readable, text_lines
from finelens.bench.sets.data import DataSet, Part
from finelens.bench.sets.sealed import Labels
from finelens.errors import UserError

SIDE = 32
PIXELS = 3 * SIDE * SIDE


class Pictures:
    """Images of binary records, decoded when asked for.

    Args:
        pixels: (N, 3072) uint8: red, green and blue planes.
    """

    def __init__(self, pixels: np.ndarray) -> None:
        self._pixels = pixels

    def __len__(self) -> int:
        return len(self._pixels)

    def __getitem__(self, index: int, /) -> np.ndarray:
        """The image, (32, 32, 3) uint8."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self._pixels[index].reshape(3, SIDE, SIDE).transpose(1, 2, 0)


def read_cifar10(folder: Path, templates: tuple[str, ...] | None = None) -> DataSet:
    """``cifar-10-batches-bin``: five training batches, one test batch, ``batches.meta.txt``."""
    train = [f"data_batch_{k}.bin" for k in range(1, 6)]
    return _read("cifar10", folder, train, ["test_batch.bin"], "batches.meta.txt", 1, templates)


def read_cifar100(folder: Path, templates: tuple[str, ...] | None = None) -> DataSet:
    """``cifar-100-binary``: ``train.bin``, ``test.bin``, ``fine_label_names.txt``; the fine labels are the classes."""
    return _read("cifar100", folder, ["train.bin"], ["test.bin"], "fine_label_names.txt", 2, templates)


def _read(
    name: str, folder: Path, train: Sequence[str], test: Sequence[str], names_file: str, label_bytes: int, templates: tuple[str, ...] | None
) -> DataSet:
    names = [readable(line) for line in text_lines(folder / names_file)]
    parts = [_part(folder, files, label_bytes, len(names)) for files in (train, test)]
    return DataSet(
        name, tuple(names), parts[0], parts[1], layout=folder.name, split=f"training and test batches of {folder.name}", templates=templates
    )


def _part(folder: Path, files: Sequence[str], label_bytes: int, classes: int) -> Part:
    size = label_bytes + PIXELS
    records = []
    for file in files:
        try:
            data = np.fromfile(folder / file, dtype=np.uint8)
        except OSError as error:
            raise UserError(f"cannot read {folder / file}: {error.strerror or error}") from error
        if not len(data) or len(data) % size:
            raise UserError(f"{folder / file} has {len(data)} bytes, which is no multiple of {size}; unpack it again")
        records.append(data.reshape(-1, size))
    table = np.concatenate(records)
    labels = table[:, label_bytes - 1].astype(np.int64)
    if labels.max() >= classes:
        raise UserError(f"{folder}: a record has class {labels.max()}, but there are {classes} names")
    return Part(Pictures(table[:, label_bytes:]), Labels(labels))

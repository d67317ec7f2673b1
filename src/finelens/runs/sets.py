"""``OUT.sets.csv``: for each photograph the classes that cannot be ruled out, from a few labelled photographs."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from finelens.classes.text_files import quote
from finelens.core.schemas import SET_COLUMNS
from finelens.errors import UserError
from finelens.evaluation.conformal import Conformal, calibrate
from finelens.protocol import ImageRecord
from finelens.runs.predict import Predictions
from finelens.storage.files import write_text
from finelens.storage.predictions import escape_cell, softmax


def sets_path(csv_file: Path) -> Path:
    """Where the sets of a file of predictions go: ``new.csv`` has ``new.sets.csv`` beside it."""
    return csv_file.with_name(f"{csv_file.stem}.sets.csv")


def calibrate_on(labelled: Predictions, labels: Mapping[str, int], coverage: float, where: str) -> Conformal:
    """The conformal rule of labelled photographs.

    Args:
        labelled: Their predictions, perhaps among others.
        labels: Class by name of the image.
        coverage: Wanted share of sets that hold the true class.
        where: Name of the labels file, for messages.

    Raises:
        UserError: Too few labels for the coverage, or none of the labelled files could be read.
    """
    kept = [(record.index, labels[record.name]) for record in labelled.records if record.index is not None and record.name in labels]
    if not kept:
        raise UserError(f"labels file {quote(where)}: none of its {len(labels)} files is an image that can be read")
    rows, targets = (np.array(column) for column in zip(*kept, strict=True))
    return calibrate(softmax(labelled.logits["logits"].numpy()[rows]), targets, coverage)


def sets_of(found: Predictions, classes: Sequence[str], rule: Conformal) -> list[list[str]]:
    """Class names in the set of each input, likeliest first; empty for an input without an image."""
    if not found.logits:
        return [[] for _ in found.records]
    p = softmax(found.logits["logits"].numpy())
    inside, order = rule.contains(p), np.argsort(-p, axis=1, kind="stable")
    named = [[classes[int(c)] for c in order[row] if inside[row, c]] for row in range(len(p))]
    return [[] if record.index is None else named[record.index] for record in found.records]


def write_sets(path: Path, records: Sequence[ImageRecord], sets: Sequence[Sequence[str]]) -> None:
    """Write the file atomically, one row for every input in the order given.

    Raises:
        UserError: The file cannot be written.
    """
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(SET_COLUMNS)
    for record, names in zip(records, sets, strict=True):
        cells = [record.name, json.dumps(names, ensure_ascii=False) if names else "", str(len(names)) if names else "", record.status]
        writer.writerow([escape_cell(cell) for cell in cells])
    write_text(path, text.getvalue())

"""``OUT.sets.csv``: for each photograph the classes that cannot be ruled out, from a few labelled photographs."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from finelens.classes.text_files import quote
from finelens.core.schemas import SET_COLUMNS
from finelens.errors import UserError
from finelens.evaluation.conformal import Conformal, calibrate
from finelens.protocol import ImageRecord
from finelens.runs.predict import Predictions
from finelens.storage.cells import csv_text, escape_cell
from finelens.storage.predictions import softmax


def calibrate_on(labelled: Predictions, labels: Mapping[str, int], coverage: float, where: str, left_out: list[str] | None = None) -> Conformal:
    """The conformal rule of labelled photographs.

    Args:
        labelled: Their predictions, perhaps among others.
        labels: Class by name of the image.
        coverage: Wanted share of sets that hold the true class.
        where: Name of the labels file, for messages.
        left_out: Takes a line for each labelled file that could not be read.

    Raises:
        UserError: Too few labels for the coverage, or none of the labelled files could be read.
    """
    kept = [(record.index, labels[record.name]) for record in labelled.records if record.index is not None and record.name in labels]
    if left_out is not None:
        read = {record.name for record in labelled.records if record.index is not None}
        left_out += [f"{quote(name)} is not an image that can be read" for name in labels if name not in read]
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


def sets_header() -> str:
    """The first line of the file."""
    return csv_text([SET_COLUMNS])


def set_sizes(path: Path) -> Counter[int]:
    """How many sets of a file have so many classes; inputs without one are not counted."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        # From the end of a line: a set of thousands of classes is a longer cell than the csv module reads. Of the header this is a word.
        return Counter(int(cells[1]) for line in file if len(cells := line.rsplit(",", 2)) == 3 and cells[1].isdecimal())


def sets_text(records: Sequence[ImageRecord], sets: Sequence[Sequence[str]]) -> str:
    """A line for every input in the order given, without the header."""
    lines = [
        [record.name, json.dumps(names, ensure_ascii=False) if names else "", str(len(names)) if names else "", record.status]
        for record, names in zip(records, sets, strict=True)
    ]
    return csv_text([escape_cell(cell) for cell in cells] for cells in lines)

"""``predictions.csv``: N files in, N rows out."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from finelens.core.schemas import (
    DOUBT_DIGITS,
    FIRST_PREDICTION_COLUMNS,
    PREDICTION_COLUMNS,
    SECOND_PREDICTION_COLUMNS,
    STATUSES,
    THIRD_PREDICTION_COLUMNS,
)
from finelens.errors import UserError
from finelens.storage.cells import BOM, csv_text, escape_cell, unescape_cell
from finelens.storage.files import write_text

if TYPE_CHECKING:
    from finelens.protocol import ImageRecord

TOP = 5
# In the column ``answered``: a person answered this file, or another one with the same content.
ANSWERED, COPY = "yes", "copy"


@dataclass(frozen=True)
class PredictionRow:
    """One line of ``predictions.csv``.

    Attributes:
        path: Path relative to PHOTOS, forward slashes.
        label: Predicted class (column ``class``); None without a prediction, as are the next four.
        probability: Probability of that class.
        margin: Probability of the first class minus that of the second.
        top5: The five likeliest classes with their probabilities, likeliest first; fewer if there are fewer classes.
        zero_shot_class: What the unadapted model says; None where it was not asked.
        status: One of ``schemas.STATUSES``.
        reason: Why there is no prediction; for ``ok`` notes on how the file was read, if any.
        answered: Empty, or why ``label`` is a person's answer: ``yes``, or ``copy`` where they answered another file with the same content. Without a
            ``label`` it says "none of these classes".
        none_of_these: Doubt whether the photograph belongs to any class, above 0.5 where it probably does not; None where that was not asked.
    """

    path: str
    label: str | None = None
    probability: float | None = None
    margin: float | None = None
    top5: tuple[tuple[str, float], ...] = ()
    zero_shot_class: str | None = None
    status: str = "ok"
    reason: str = ""
    answered: str = ""
    none_of_these: float | None = None

    @property
    def second(self) -> tuple[str, float] | None:
        """The second class and its probability; None without a prediction or with one class."""
        return self.top5[1] if len(self.top5) > 1 else None


def softmax(logits: ArrayLike) -> np.ndarray:
    """Probabilities of logits (N, C) by row, float64."""
    # The lines of scipy.special.softmax, whose import is a tenth of the start of a run.
    values = np.asarray(logits, dtype=np.float64)
    shifted = np.exp(values - values.max(1, keepdims=True))
    return np.asarray(shifted / shifted.sum(1, keepdims=True))


def rows_from_logits(
    records: Sequence[ImageRecord],
    class_names: Sequence[str],
    logits: ArrayLike,
    zero_shot_argmax: ArrayLike | None = None,
    none_of_these: ArrayLike | None = None,
) -> list[PredictionRow]:
    """Rows of ``predictions.csv`` from scaled logits (N, C); see :func:`rows_from_probabilities`.

    Raises:
        UserError: A logit is not finite.
    """
    values = np.asarray(logits)
    bad = np.flatnonzero(~np.isfinite(values).all(axis=1))
    if len(bad):
        names = [record.name for record in records if record.index == bad[0]] or [f"row {bad[0]}"]
        raise UserError(f"the scores of {len(bad)} image(s) are not finite, first {names[0]}; try --set training.precision=float32")
    return rows_from_probabilities(records, class_names, softmax(values), zero_shot_argmax, none_of_these)


def rows_from_probabilities(
    records: Sequence[ImageRecord],
    class_names: Sequence[str],
    probabilities: ArrayLike,
    zero_shot_argmax: ArrayLike | None = None,
    none_of_these: ArrayLike | None = None,
) -> list[PredictionRow]:
    """Rows of ``predictions.csv``, one for every input, in the order of the records (path order for a folder).

    Probabilities are given to six significant digits. Of classes with equal probability the first in the user's order wins.

    Args:
        records: All inputs.
        class_names: C names.
        probabilities: (N, C), rows in store order.
        zero_shot_argmax: (N,) class index that the unadapted model gives, or None.
        none_of_these: (N,) doubt whether they belong to any class, in [0, 1]; None or empty where that was not asked.

    Returns:
        As many rows as records; a file without an image keeps its status and reason, and its other cells are empty.
    """
    p = np.asarray(probabilities, dtype=np.float64)  # (N, C)
    if p.ndim != 2 or p.shape[1] != len(class_names):
        raise ValueError(f"probabilities of shape {p.shape} do not fit {len(class_names)} classes")
    zero_shot = None if zero_shot_argmax is None else np.asarray(zero_shot_argmax)
    doubt = np.asarray([] if none_of_these is None else none_of_these, dtype=np.float64)
    rows = []
    for record in records:
        if record.status != "ok" or record.index is None:
            rows.append(PredictionRow(path=record.name, status=record.status, reason=record.reason))
            continue
        first = None if zero_shot is None else class_names[int(zero_shot[record.index])]
        row = _predicted_row(record, class_names, p[record.index], first)
        rows.append(replace(row, none_of_these=round(float(doubt[record.index]), DOUBT_DIGITS)) if len(doubt) else row)
    return rows


def _predicted_row(record: ImageRecord, class_names: Sequence[str], p: np.ndarray, zero_shot_class: str | None) -> PredictionRow:
    order = np.argsort(-p, kind="stable")[:TOP]
    # As Python's numbers, which are written faster than numpy's.
    first: list[float] = p[order].tolist()
    top5 = tuple((class_names[c], rounded(own)) for c, own in zip(order.tolist(), first, strict=True))
    second = first[1] if len(first) > 1 else 0.0
    return PredictionRow(record.name, top5[0][0], top5[0][1], rounded(first[0] - second), top5, zero_shot_class, record.status, record.reason)


def with_answers(rows: Iterable[PredictionRow], answers: Mapping[str, str], copies: Mapping[str, str]) -> list[PredictionRow]:
    """The rows with a person's answer in the place of the prediction where there is one.

    Args:
        rows: Of :func:`rows_from_logits`.
        answers: Class names by path; the empty name says "none of these classes".
        copies: The same of files whose content is that of an answered one.
    """
    said = {**dict.fromkeys(copies, COPY), **dict.fromkeys(answers, ANSWERED)}
    labels = {**copies, **answers}
    return [_answered(row, labels[row.path], said[row.path]) if row.path in said and row.status == "ok" else row for row in rows]


def _answered(row: PredictionRow, label: str, said: str) -> PredictionRow:
    if not label:
        return replace(row, label=None, probability=None, margin=None, top5=(), answered=said, none_of_these=1.0)
    return replace(row, label=label, probability=1.0, margin=1.0, top5=((label, 1.0),), answered=said, none_of_these=0.0)


def rounded(value: float) -> float:
    """A probability as the file has it."""
    return float(f"{value:.6g}")


def write_predictions(path: Path, rows: Iterable[PredictionRow], *, bom: bool = False) -> None:
    """Write ``predictions.csv`` atomically, in the order given.

    Args:
        path: The file.
        rows: Its lines.
        bom: Whether it begins with a byte-order mark, without which some spreadsheets take other letters than English ones for others.

    Raises:
        UserError: The file cannot be written.
    """
    write_text(path, predictions_header(bom=bom) + predictions_text(rows))


def predictions_header(*, bom: bool = False) -> str:
    """The first line of ``predictions.csv``."""
    return (BOM if bom else "") + csv_text([PREDICTION_COLUMNS])


def predictions_text(rows: Iterable[PredictionRow]) -> str:
    """The lines of the rows, without the header."""
    return csv_text(_cells(row) for row in rows)


def _cells(row: PredictionRow) -> list[str]:
    top5 = json.dumps(row.top5, ensure_ascii=False) if row.top5 else ""
    texts = [row.path, row.label or "", _number(row.probability), _number(row.margin), top5, row.zero_shot_class or "", row.status, row.reason]
    name, probability = row.second or ("", None)
    texts += [row.answered, name, _number(probability), _number(row.none_of_these)]
    return [escape_cell(text) for text in texts]


def _number(value: float | None) -> str:
    return "" if value is None else repr(float(value))


def read_predictions(path: Path) -> list[PredictionRow]:
    """Read what :func:`write_predictions` wrote.

    Raises:
        UserError: The file is missing, unreadable, or not a predictions file; the message names the line.
    """
    return list(each_prediction(path))


def each_prediction(path: Path) -> Iterator[PredictionRow]:
    """The rows of :func:`read_predictions` one by one, for files that need not fit into memory."""
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            header = next(reader, [])
            if tuple(header) not in (PREDICTION_COLUMNS, THIRD_PREDICTION_COLUMNS, SECOND_PREDICTION_COLUMNS, FIRST_PREDICTION_COLUMNS):
                raise UserError(f"{path}: expected the columns {', '.join(PREDICTION_COLUMNS)}; give the predictions.csv of a finelens run")
            for cells in reader:
                yield _parse(cells, len(header), f"{path}, line {reader.line_num}")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}; check the path and its permissions") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} is not a CSV file in UTF-8 ({error}); write it again with finelens predict") from error


def _parse(cells: Sequence[str], columns: int, where: str) -> PredictionRow:
    if len(cells) != columns:
        raise UserError(f"{where}: expected {columns} cells, got {len(cells)}; write the file again with finelens predict")
    # The two cells after ``answered`` repeat what ``top5`` says.
    path, label, probability, margin, top5, zero_shot, status, reason, *answered = map(unescape_cell, cells[: len(SECOND_PREDICTION_COLUMNS)])
    if status not in STATUSES:
        raise UserError(f"{where}: unknown status {status!r}; known are {', '.join(STATUSES)}")
    if answered not in ([], [""], [ANSWERED], [COPY]):
        raise UserError(f"{where}: answered is {ANSWERED}, {COPY} or empty, got {answered[0]!r}; write the file again with finelens predict")
    try:
        pairs = tuple((_text(name), float(p)) for name, p in json.loads(top5)) if top5 else ()
        numbers, said = (_float(probability), _float(margin)), "".join(answered)
        none = _float("".join(cells[len(THIRD_PREDICTION_COLUMNS) :]))
        return PredictionRow(path, label or None, *numbers, pairs, zero_shot or None, status, reason, said, none)
    except (ValueError, TypeError) as error:
        raise UserError(f"{where}: {error}; write the file again with finelens predict") from error


def _float(cell: str) -> float | None:
    return float(cell) if cell else None


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"top5 names a class {value!r} that is not a text")
    return value

"""Answers of a person: what is in ``hints.csv``, and what an earlier round said."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from finelens.classes.names import match
from finelens.errors import UserError
from finelens.predictions import escape_cell, unescape_cell
from finelens.report.record import RunRecord
from finelens.schemas import LABEL_COLUMNS


def earlier_answers(record: RunRecord) -> dict[str, str]:
    """The hints that a run was made with, so that its own review adds to them; none where the file is gone."""
    file = record.config.hints_file
    return {} if file is None else own_answers(record, read_answers(Path(file)))


def own_answers(record: RunRecord, answers: Mapping[str, str]) -> dict[str, str]:
    """The answers about photographs and classes of this run, with the classes spelled as the run spells them."""
    paths = {row.path for row in record.predicted}
    names = match(set(answers.values()), record.classes) | {"": ""}
    plain = ((PurePosixPath(path).as_posix(), label) for path, label in answers.items())
    return {path: names[label] for path, label in plain if path in paths and label in names}


def other_answers(record: RunRecord, answers: Mapping[str, str]) -> dict[str, str]:
    """The answers about anything else, as they stand: a review adds to a file and takes nothing out of it."""
    return {path: label for path, label in answers.items() if not own_answers(record, {path: label})}


def read_answers(path: Path) -> dict[str, str]:
    """Answers of an earlier review, so that a second one goes on from there; none without the file.

    Raises:
        UserError: The file is there and is not a hints file.
    """
    if not path.exists():
        return {}
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            return {unescape_cell(row["path"]): unescape_cell(row["label"] or "") for row in reader}
    except (OSError, UnicodeDecodeError, csv.Error, KeyError, TypeError) as error:
        raise UserError(f"{path} is there but is not a hints file ({error}); move it away or give another --hints") from error


def hints_csv(hints: Mapping[str, str]) -> str:
    """The content of ``hints.csv``: class names by path, the empty name for "none of these"."""
    file = io.StringIO(newline="")
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(LABEL_COLUMNS)
    writer.writerows([escape_cell(path), escape_cell(label)] for path, label in hints.items())
    return file.getvalue()

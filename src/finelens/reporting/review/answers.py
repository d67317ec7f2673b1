"""Answers of a person: what is in ``hints.csv``, and what an earlier round said."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from pathlib import Path

from finelens.classes.hand_tables import read_table
from finelens.classes.hints import How, how_given, plain
from finelens.classes.labels import UNANSWERED, none_words
from finelens.classes.names import match, normalise
from finelens.core.schemas import GIVEN_HINTS_FILE, HOW_COLUMNS, LABEL_COLUMNS, OLDER_QUESTIONS, WHY_COLUMN
from finelens.errors import UserError
from finelens.reporting.record import RunRecord
from finelens.storage.cells import unescape_cell


def earlier_answers(record: RunRecord) -> dict[str, str]:
    """The hints that a run was made with, so that its own review adds to them; those of the user's file where a run kept no copy."""
    copy, file = record.path / GIVEN_HINTS_FILE, record.config.hints_file
    if file is None:
        return {}
    return own_answers(record, read_answers(copy if copy.is_file() else Path(file)))


def earlier_told(record: RunRecord) -> dict[str, How]:
    """How :func:`earlier_answers` were given; by the user's file where the copy of an older run does not say it."""
    file = record.config.hints_file
    return {} if file is None else how_given(record.path / GIVEN_HINTS_FILE) or how_given(Path(file)) or {}


def told_cells(paths: Iterable[str], told: Mapping[str, How]) -> tuple[tuple[str, ...], Callable[[str], How | tuple[()]]]:
    """Names of the columns that say how answers were given, and their cells by path; none where nothing is known of any."""
    if not any(plain(path) in told for path in paths):
        return (), lambda _: ()
    return HOW_COLUMNS, lambda path: told.get(plain(path), How())


def own_answers(record: RunRecord, answers: Mapping[str, str]) -> dict[str, str]:
    """The answers about photographs and classes of this run, with the classes spelled as the run spells them."""
    return answers_about({row.path for row in record.read}, record.classes, answers)


def answers_about(paths: Container[str], classes: Sequence[str], answers: Mapping[str, str], *, new_names: bool = False) -> dict[str, str]:
    """The answers about some photographs and classes, with the classes spelled as in the list.

    Args:
        paths: The photographs.
        classes: The list.
        answers: Class names by path, written by whom ever.
        new_names: Whether a name that is not in the list is an answer as well.
    """
    none = none_words(classes)
    names = match(set(answers.values()), classes) | {label: "" for label in answers.values() if not label or normalise(label) in none}
    if new_names:
        names = {label: label for label in answers.values()} | names
    pairs = ((plain(path), label) for path, label in answers.items())
    return {path: names[label] for path, label in pairs if path in paths and label in names}


def read_answers(path: Path) -> dict[str, str]:
    """Answers of an earlier review, so that a second one goes on from there; none without the file.

    Raises:
        UserError: The file is there and is not a hints file, or names a photograph twice in two ways: one of them would be lost.
    """
    if not path.exists():
        return {}
    try:
        header, table = read_table(path, "hints file", LABEL_COLUMNS)
    except UserError as error:
        raise UserError(f"{path} is there but is not a hints file ({error}); move it away or give another --hints") from error
    if tuple(header) == OLDER_QUESTIONS or not header:
        return {}
    if lacking := [column for column in LABEL_COLUMNS if column not in header]:
        raise UserError(f"{path} is there but is not a hints file (no column {lacking[0]}); move it away or give another --hints")
    path_at, label_at = (header.index(column) for column in LABEL_COLUMNS)
    # What a line has not got is empty.
    full = [cells + [""] * (len(header) - len(cells)) for _, cells in table]
    rows = [(unescape_cell(cells[path_at]), unescape_cell(cells[label_at].strip())) for cells in full]
    still_open = {UNANSWERED, ""} if WHY_COLUMN in header else {UNANSWERED}
    answers: dict[str, str] = {}
    for photograph, label in rows:
        if label in still_open:
            continue
        if answers.setdefault(photograph, label) != label:
            raise UserError(f"{path}: {photograph!r} is {answers[photograph]!r} in one line and {label!r} in another; keep one of the two")
    return answers

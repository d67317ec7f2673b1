"""Forms that are one table: pybioclip's and Wildlife Insights'."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

from finelens.exchange.answers import Answers
from finelens.exchange.kinds import kind_of
from finelens.storage.files import write_text
from finelens.storage.predictions import PredictionRow

WILDLIFE_INSIGHTS_COLUMNS = (
    *("project_id", "deployment_id", "image_id", "filename", "location", "is_blank", "identified_by", "wi_taxon_id"),
    *("class", "order", "family", "genus", "species", "common_name", "uncertainty", "timestamp", "number_of_objects", "cv_confidence", "license"),
)


def csv_text(columns: Sequence[str], rows: Iterable[Iterable[object]]) -> str:
    """A CSV file with a header for the program that reads it: every cell as it is, as an apostrophe more would make another name of it."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    # Older csv readers refuse the null character; no file name and no sensible class holds one.
    writer.writerows(["" if cell is None else str(cell).replace("\0", "\N{REPLACEMENT CHARACTER}") for cell in row] for row in rows)
    return text.getvalue()


def write_pybioclip(answers: Answers, out: Path) -> None:
    """pybioclip's ``predict --format csv``: a row for each of the likeliest classes; a file without an answer has one row with empty cells."""
    rows = [(row.path, name, p) for row in answers.rows for name, p in (row.top5 if answers.label(row) is not None else ()) or [("", "")]]
    write_text(out, csv_text(("file_name", "classification", "score"), rows))


def write_wildlife_insights(answers: Answers, out: Path, project: str) -> None:
    """``images.csv`` of Wildlife Insights; the deployment is the first folder of a photograph's path, the common name its class.

    Taxon ids are Wildlife Insights' own and stay empty.
    """
    write_text(out, csv_text(WILDLIFE_INSIGHTS_COLUMNS, [_wildlife_insights_row(answers, row, project) for row in answers.rows]))


def _wildlife_insights_row(answers: Answers, row: PredictionRow, project: str) -> tuple[object, ...]:
    path, label, header = PurePosixPath(row.path), answers.label(row), answers.header(row)
    deployment = path.parts[0] if len(path.parts) > 1 else ""
    blank = label is not None and kind_of(label) == "blank"
    taken = None if header is None or header.taken is None else f"{header.taken:%Y-%m-%d %H:%M:%S}"
    who = None if label is None else "person" if row.answered else "Computer vision"
    confidence = None if label is None or row.answered else row.probability
    ranks = ("",) * 5
    count = None if label is None else int(not blank)
    return (
        *(project, deployment, row.path, path.name, row.path, int(blank), who, ""),
        *(*ranks, "" if blank else label, "", taken, count, confidence, ""),
    )

"""The review sheet as one HTML file that works by keyboard, offline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

from finelens.classes.hints import How
from finelens.core.console import Console
from finelens.core.schemas import VERSION
from finelens.images.decode import DecodeLimits
from finelens.reporting.own_photos import OwnPhotos
from finelens.reporting.page import render
from finelens.reporting.record import RunRecord, read_run
from finelens.reporting.review.answers import earlier_answers, earlier_told
from finelens.reporting.review.order import Look, looks
from finelens.reporting.sections.cost import next_command
from finelens.reporting.thumbnails import Photos, Thumbnails, from_run
from finelens.runs.folder import RunFolder
from finelens.storage.files import write_text

# Pictures are larger here than in the report: the person has to tell breeds apart.
SIDE = 384
LIMIT = 200
CHOICES = 5


def sheet_html(
    record: RunRecord,
    photos: Photos,
    limit: int = LIMIT,
    *,
    answers: Mapping[str, str] | None = None,
    told: Mapping[str, How] | None = None,
    hints: str = "hints.csv",
    chosen: Sequence[Look] | None = None,
) -> str:
    """The page.

    Args:
        record: A finished run.
        photos: Where the pictures come from.
        limit: Most photographs on the sheet.
        answers: Class names by path that were given before; the empty name for "none of these".
        told: How these were given.
        hints: File that the answers will be in.
        chosen: The photographs in their order; by default those most likely to be wrong.
    """
    chosen = looks(record, limit) if chosen is None else chosen
    thumbnails = Thumbnails(photos, limit=limit, side=SIDE, crop=False)
    place = {name: i for i, name in enumerate(record.classes)}
    items: list[dict[str, Any]] = [
        {
            "path": look.row.path,
            "label": place[look.row.label or ""],
            "top": [[place[name], round(1000 * probability)] for name, probability in look.row.top5[:CHOICES]],
            "why": look.why,
            "picture": thumbnails.uri(look.row.path),
        }
        for look in chosen
    ]
    content = {
        "title": f"Review of {record.path.absolute().name}",
        "name": record.path.absolute().name,
        "count": len(items),
        "total": len(record.predicted),
        "copies": len(record.predicted) - len(set(record.measured.ids)),
        "command": adapt_command(record, hints),
        "version": VERSION,
    }
    sheet = {
        "classes": list(record.classes),
        "items": items,
        # Answers that a browser keeps belong to these photographs and classes, whatever the folder is called.
        "id": f"{record.event('images').get('digest')}:{record.event('classes').get('digest')}",
        "answers": dict(answers or {}),
        "told": dict(told or {}),
    }
    return render("review.html.j2", content, {"review-data": sheet}, script=("names.js", "review.js"))


def write_sheet(folder: RunFolder, target: Path, limit: int = LIMIT, chosen: Sequence[Look] | None = None, console: Console | None = None) -> int:
    """Write the sheet of a finished run; arguments as for :func:`sheet_html`, and ``console`` hears of photographs that are others than the run's.

    Returns:
        Photographs on it.

    Raises:
        UserError: The run is not finished or damaged, or the file cannot be written.
    """
    record = read_run(folder)
    chosen = looks(record, limit) if chosen is None else chosen
    answers, told = earlier_answers(record), earlier_told(record)
    own = OwnPhotos(photographs(record), record)
    write_text(target, sheet_html(record, own, limit, answers=answers, told=told, chosen=chosen))
    if console is not None:
        own.say(record.config.photos, console)
    return len(chosen)


def adapt_command(record: RunRecord, hints: str = "hints.csv") -> str:
    """The command that adapts again with the answers in a file, all else as it was."""
    # Hints have no effect on a method that does not adapt, and little on one that was kept from training.
    method = record.config.method if record.config.entry.adapts and record.untrained is None else "auto"
    return next_command(record.config, method, hints, next_run(record.path.name))


def next_run(name: str) -> Path:
    """A folder for the next round that is not there yet: ``run-2`` behind ``run``, ``run-3`` behind that."""
    stem, _, number = name.rpartition("-")
    stem, first = (stem, int(number) + 1) if stem and number.isdecimal() and len(number) < 4 else (name, 2)
    return next(path for path in (Path(f"{stem}-{k}") for k in count(first)) if not path.exists())


def photographs(record: RunRecord) -> Photos:
    """The run's photographs, read again."""
    return from_run(record.path, record.config.photos, DecodeLimits(short_side=SIDE))

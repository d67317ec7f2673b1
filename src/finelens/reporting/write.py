"""From a finished run to ``report.html`` and ``MODEL_CARD.md``."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from finelens.classes.text_files import counted
from finelens.core.console import Console
from finelens.core.schemas import VERSION
from finelens.evaluation.layout import Layout, read_layout
from finelens.evaluation.prequential import LEAST_TESTS
from finelens.images.decode import DecodeLimits
from finelens.images.load import decode_limits
from finelens.protocol import Loaded
from finelens.reporting import rows
from finelens.reporting.card import model_card
from finelens.reporting.kept_pictures import KeptPictures
from finelens.reporting.own_photos import OwnPhotos
from finelens.reporting.page import render
from finelens.reporting.record import RunRecord, read_run
from finelens.reporting.sections import balance, changes, classes, confusions, cost, first, found, labelled, looked, photo_map, strangers, training
from finelens.reporting.thumbnails import Photos, Thumbnails, from_run, from_store
from finelens.runs.folder import RunFolder
from finelens.runs.judge import write_verdict
from finelens.runs.model import Model
from finelens.storage.files import write_text


def write_report(
    folder: RunFolder, photos: Photos | None = None, model: Model | None = None, kept: KeptPictures | None = None, console: Console | None = None
) -> Path:
    """Write the report, the model card and the verdict of a finished run from its files.

    Args:
        folder: The run.
        photos: Where the pictures come from; by default they are read again from the run's photographs. Where those are gone, the report has none.
        model: The run's model, for what it looked at; None leaves that part out.
        kept: Pictures of earlier pages, by content.
        console: Told of photographs that are not those of the run, which are not shown.

    Returns:
        Path of the report.

    Raises:
        UserError: The run is not finished or damaged, or the file cannot be written.
    """
    record = read_run(folder)
    source = OwnPhotos(photos or from_run(record.path, record.config.photos, DecodeLimits()), record)
    layout = read_layout(folder.map_path, len(record.predicted))
    write_text(folder.report_path, report_html(record, Thumbnails(source, kept=kept), model, layout))
    if console is not None:
        source.say(record.config.photos, console)
    write_text(folder.card_path, model_card(record))
    write_verdict(folder.verdict_path, record.verdict, record.measured.signals, record.evaluation)
    return folder.report_path


def report_of_run(folder: RunFolder, model: Model, loaded: Loaded) -> Path:
    """Write the report and the model card of a run whose images are at hand."""
    short_side = decode_limits(folder.config.views, model.engine.backbone.preprocess).short_side
    with KeptPictures(short_side) as kept:
        return write_report(folder, from_store(loaded.pictures, loaded.store), model, kept)


def report_html(record: RunRecord, thumbnails: Thumbnails, model: Model | None = None, layout: Layout | None = None) -> str:
    """The page."""
    folder = Path(record.config.photos).name or record.path.absolute().name
    shown, places = photo_map.build(record, layout, thumbnails)
    held = f"{counted(len(record.predicted), 'photograph', 'photographs')} in {counted(len(record.classes), 'class', 'classes')}"
    content = {
        "title": f"{folder}: {held} (finelens)",
        "folder": folder,
        "record": record,
        "verdict": record.verdict,
        "answered": record.answered,
        "least_tests": LEAST_TESTS,
        "first": first.build(record),
        "found": found.build(record),
        "strangers": strangers.build(record, thumbnails),
        "balance": balance.build(record),
        "confusions": confusions.build(record, thumbnails),
        "changes": changes.build(record, thumbnails),
        "classes": classes.build(record, thumbnails),
        "map": shown,
        "looked": looked.build(record, thumbnails, model),
        "training": training.build(record),
        "cost": cost.build(record),
        "labelled": labelled.build(record),
        "written": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "version": VERSION,
    }
    return render("report.html.j2", content, {"table-data": rows.build(record)} | places, ("page.js", "map.js"))

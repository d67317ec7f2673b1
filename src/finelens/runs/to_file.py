"""``finelens predict``: rows reach the disk as they come, and a killed command goes on where it was."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from finelens.classes.labels import LeftOut
from finelens.classes.text_files import counted, quote
from finelens.core.console import Console
from finelens.core.schemas import MODEL_CONFIG_FILE, SCHEMA_VERSION, UNLIKE_NOTE, VERSION
from finelens.errors import UserError
from finelens.evaluation.conformal import Conformal
from finelens.feature_store.files import feature_digest
from finelens.images.known import reader_versions
from finelens.images.tiles import Grid
from finelens.intake.recognise import CONFIDENCE
from finelens.intake.taken import take
from finelens.runs.account import Account
from finelens.runs.answer_tables import tables_of
from finelens.runs.answered import answered_among
from finelens.runs.arguments import PredictArguments
from finelens.runs.classifier import Classifier, load_run
from finelens.runs.folder import RunFolder
from finelens.runs.group_by import GroupBy
from finelens.runs.predict import GROUP, Predictions
from finelens.runs.sets import calibrate_on
from finelens.runs.shard import drop_left_over, groups_path, tiles_path
from finelens.runs.source import Listing, Source
from finelens.runs.sources import asked_at, source_at, with_rows, with_tiles
from finelens.runs.tiled import FLOOR, TilesFile, tiles_file
from finelens.runs.together import Gathered, Together
from finelens.storage.cache import computing_versions, state_digest
from finelens.storage.cells import BOM
from finelens.storage.files import file_digest, text_bytes, write_text
from finelens.storage.growing import GrowingFiles
from finelens.storage.predictions import (
    PredictionRow,
    read_predictions,
    rows_from_logits,
    softmax,
    with_answers,
)

DEFAULT_COVERAGE = 0.9


@dataclass(frozen=True)
class Asked:
    """What all parts of a question share, loaded.

    Attributes:
        source: The photographs.
        listing: Their names.
        classifier: The run.
        rule: Of the conformal sets; None without them.
    """

    source: Source
    listing: Listing
    classifier: Classifier
    rule: Conformal | None


def load_asked(question: PredictArguments, console: Console) -> Asked:
    """Load the run and list the photographs.

    Raises:
        UserError: Input that cannot be used.
    """
    source = source_of(question, console)
    classifier = load_run(
        question.run,
        device=question.device,
        extra=question.extra,
        extra_names=question.extra_names,
        extra_encoders=question.extra_encoders,
        source_named=question.row_names is not None,
    )
    if question.classes is not None:
        given = {"descriptions": question.descriptions, "prototypes": question.prototypes}
        classifier = classifier.with_classes(question.classes, **given, console=console)
    rule = None if question.calibrate is None else conformal_rule(classifier, source, question, console)
    return Asked(source, source.listing(), classifier, rule)


def predict_to_file(
    question: PredictArguments, console: Console, asked: Asked | None = None, answers: Mapping[str, str] | None = None, *, files_said: bool = False
) -> Path:
    """Classify and write, group by group; memory does not grow with the number of images but by their names.

    Args:
        question: What to answer.
        console: What is said.
        asked: The same question loaded, for several parts of it.
        answers: A person's, by name of the image, which stand in the place of the model's: those that the run itself was given.
        files_said: Whether the caller has said already what became of the files.

    Returns:
        The file, which may be the part of a shard.

    Raises:
        UserError: Input that cannot be used.
    """
    asked = asked or load_asked(question, console)
    source, listing, classifier = asked.source, asked.listing, asked.classifier
    span = range(listing.count) if question.shard is None else question.shard.rows(listing.count, GROUP)
    tables = tables_of(question, classifier.classes, asked.rule)
    paths = [table.path for table in tables]
    gathered = None if question.group_by is None else Gathered(GroupBy.parse(question.group_by), source)
    account = Account(1 if question.tiles is None else 1 + len(Grid.parse(question.tiles).boxes))
    with GrowingFiles(paths, [text_bytes(table.header) for table in tables], answers_key(question, asked)) as files:
        earlier = files.done
        if earlier:
            console.say(f"going on: {earlier} of {len(span)} rows are in {question.target.name}.part")
            account.take_up(files.parts[0])
            for table, written in zip(tables, files.parts, strict=True):
                table.take_up(written)
        left = span[earlier:]
        found = source.parts(classifier.request(console, zero_shot=question.zero_shot, looks=gathered is not None), left)
        for part in found if left else ():
            # Copies are known by the contents of all, which nobody holds here.
            rows = with_answers(_rows(part, classifier), answers or {}, {})
            probabilities = softmax(part.logits["logits"].numpy()) if part.logits else np.zeros((0, len(classifier.classes)))
            texts = [table.lines(part, rows, probabilities) for table in tables]
            if gathered is not None:
                gathered.add(part, probabilities)
            account.add(part, probabilities, files.done)
            files.add(list(map(text_bytes, texts)), files.done + len(part.records))
        if question.target.is_file():
            asked_for = {groups_path(question.target): question.group_by, tiles_path(question.target): question.tiles}
            drop_left_over(question.target, [*paths, *(path for path, given in asked_for.items() if given is not None)])
        files.finish()
    for table in tables:
        table.say(console)
    if question.shard is not None and not len(span):
        console.say(f"part {question.shard} holds none of the {counted(listing.count, 'file', 'files')}: a part is of whole groups of {GROUP}")
    account.say_files(console, earlier, counted=not files_said)
    # Tiles look unlike photographs, and belong to no class more often: what is expected of photographs says nothing of them.
    if question.tiles is None:
        folder = RunFolder.open(question.run, lock=False)
        account.say_answers(folder, classifier.model, console, earlier=earlier, own=question.classes is None)
    paths += _write_beside(question, classifier.classes, gathered, console)
    for path in paths:
        console.say(f"wrote {path}")
    return question.target


def _write_beside(question: PredictArguments, classes: Sequence[str], gathered: Gathered | None, console: Console) -> list[Path]:
    """Write the files that need the answers of all: of groups, and of the tiles of a photograph."""
    beside: list[tuple[Path, Together | TilesFile]] = []
    if gathered is not None:
        beside.append((groups_path(question.target), gathered.answers(classes, question.target)))
    if question.tiles is not None:
        floor = FLOOR if question.tile_floor is None else question.tile_floor
        beside.append((tiles_path(question.target), tiles_file(read_predictions(question.target), Grid.parse(question.tiles), floor)))
    for path, further in beside:
        write_text(path, (BOM if question.csv_bom else "") + further.text)
        for line in further.lines:
            console.say(line)
    return [path for path, _ in beside]


def source_of(question: PredictArguments, console: Console) -> Source:
    """The photographs, or what a file of another tool names of them."""
    if question.in_file is None:
        asked = asked_at(question.photos, strict=question.strict, row_names=question.row_names)
        return asked if question.tiles is None else with_tiles(asked, Grid.parse(question.tiles))
    taken = take(question.in_file, question.photos, CONFIDENCE if question.box_confidence is None else question.box_confidence)
    for remark in taken.remarks:
        console.say(remark)
    return with_rows(source_at(question.photos, strict=question.strict, row_names=question.row_names), taken)


def _rows(part: Predictions, classifier: Classifier) -> list[PredictionRow]:
    logits = part.logits["logits"].numpy() if part.logits else torch.zeros(0, len(classifier.classes)).numpy()
    first = part.zero_shot["templates"].argmax(1).numpy() if part.zero_shot else None
    rows = rows_from_logits(part.records, classifier.classes, logits, first, part.none_of_these.numpy())
    familiarity = classifier.model.familiarity
    if familiarity is None or not len(part.likeness):
        return rows
    # Photographs that look unlike those of the fit get a note.
    unlike = familiarity.unlike(part.likeness).tolist()
    pairs = zip(rows, part.records, strict=True)
    return [
        replace(row, reason="; ".join(filter(None, [row.reason, UNLIKE_NOTE]))) if record.index is not None and unlike[record.index] else row
        for row, record in pairs
    ]


def conformal_rule(classifier: Classifier, source: Source, question: PredictArguments, console: Console) -> Conformal:
    """The conformal rule of the labelled photographs, which are asked about first."""
    assert question.calibrate is not None
    labelled = source if question.calibrate_photos is None else source_at(question.calibrate_photos)
    left_out = LeftOut()
    try:
        labels = labelled.labels(question.calibrate, classifier.classes, left_out)
    except UserError as error:
        if labelled is not source:
            raise
        raise UserError(f"{error} (--calibrate-photos FOLDER says so where the labelled photographs lie in another folder)") from error
    # Of other photographs all are asked about, as the names of those that cannot be read tell nothing.
    asked = labelled.only(labels) if labelled is source else labelled
    seen = asked.answers(classifier.request(console, zero_shot=False))
    if classifier.hinted:
        # The run knows these answers, so sets that rest on them would hold the true class less often than they promise.
        folder, place = RunFolder.open(question.run, lock=False), question.calibrate_photos or question.photos
        read = [record for record in seen.records if record.index is not None]
        told = sorted(answered_among(folder, read, place) & labels.keys())
        left_out += [f"{quote(name)} was answered by a person in the run, or is a copy of one that was" for name in told]
        labels = {name: label for name, label in labels.items() if name not in told}
        if not labels:
            raise UserError(
                f"labels file {quote(str(question.calibrate))}: the run knows the answer of each of them; give labels of other photographs"
            )
    coverage = DEFAULT_COVERAGE if question.coverage is None else question.coverage
    rule = calibrate_on(seen, labels, coverage, str(question.calibrate), left_out)
    for line in left_out.lines("the calibration"):
        console.warn(line)
    return rule


def _other_classes(question: PredictArguments, classifier: Classifier) -> list[str]:
    """What decides the answers for another list of classes; nothing without one."""
    files = [path for path in (question.descriptions, question.prototypes) if path is not None]
    return [] if question.classes is None else [*classifier.classes, state_digest(classifier.model.zero_shot_heads), *map(file_digest, files)]


def answers_key(question: PredictArguments, asked: Asked) -> str:
    """Everything that decides the bytes of the file: another model, photograph or option begins anew."""
    classifier = asked.classifier
    files = ((question.extra, feature_digest), (question.extra_names, file_digest))
    parts: dict[str, Any] = {
        "versions": [VERSION, SCHEMA_VERSION, *computing_versions(), *reader_versions()],
        "model": file_digest(RunFolder.open(question.run, lock=False).model_dir / MODEL_CONFIG_FILE),
        "precision": [classifier.model.engine.precision.name, str(classifier.model.engine.device), torch.get_num_threads()],
        "inputs": asdict(asked.listing),
        "extra": [[str(path), digest(Path(path))] for paths, digest in files for path in paths],
        "classes": _other_classes(question, classifier),
        "options": [question.strict, question.zero_shot, question.csv_bom, None if question.shard is None else asdict(question.shard)],
        "rule": None if asked.rule is None else repr(asked.rule),
        # Groups need what was answered before a stop as well, and the file has no looks: such a command begins anew.
        "groups": None if question.group_by is None else [question.group_by, time.time_ns()],
    }
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

"""``finelens predict``: rows reach the disk as they come, and a killed command goes on where it was."""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from finelens.classes.taxonomy import saved_taxonomy
from finelens.classes.text_files import counted, quote
from finelens.core.columns import Column
from finelens.core.console import Console
from finelens.core.schemas import MODEL_CONFIG_FILE, SCHEMA_VERSION, UNLIKE_NOTE, VERSION
from finelens.errors import UserError
from finelens.evaluation.conformal import Conformal
from finelens.evaluation.none_of_these import share_of_none
from finelens.images.load import Tally
from finelens.images.tiles import Grid
from finelens.intake.recognise import CONFIDENCE
from finelens.intake.taken import take
from finelens.protocol import ImageRecord
from finelens.runs.alarms import say_none
from finelens.runs.answered import answered_among
from finelens.runs.arguments import Question
from finelens.runs.by_rank import RankTable
from finelens.runs.classifier import Classifier, load_run
from finelens.runs.folder import RunFolder
from finelens.runs.group_by import GroupBy
from finelens.runs.predict import GROUP, Predictions
from finelens.runs.sets import calibrate_on, set_sizes, sets_header, sets_of, sets_text
from finelens.runs.shard import drop_left_over, groups_path, ranks_path, sets_path, tiles_path
from finelens.runs.source import Listing, Source
from finelens.runs.sources import asked_at, source_at, with_rows, with_tiles
from finelens.runs.tiled import FLOOR, TilesFile, tiles_file
from finelens.runs.together import Gathered, Together
from finelens.runs.trust import Seen, hardly_knows
from finelens.storage.cache import state_digest
from finelens.storage.files import file_digest, text_bytes, write_text
from finelens.storage.growing import GrowingFiles
from finelens.storage.predictions import (
    BOM,
    PredictionRow,
    each_prediction,
    predictions_header,
    predictions_text,
    read_predictions,
    rows_from_logits,
    softmax,
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


def load_question(question: Question, console: Console) -> Asked:
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


def predict_to_file(question: Question, console: Console, asked: Asked | None = None) -> Path:
    """Classify and write, group by group; memory does not grow with the number of images but by their names.

    Args:
        question: What to answer.
        console: What is said.
        asked: The same question loaded, for several parts of it.

    Returns:
        The file, which may be the part of a shard.

    Raises:
        UserError: Input that cannot be used.
    """
    asked = asked or load_question(question, console)
    source, listing, classifier, rule = asked.source, asked.listing, asked.classifier, asked.rule
    likeness, doubt = Column(), Column()
    span = range(listing.count) if question.shard is None else question.shard.rows(listing.count, GROUP)
    paths, starts = [question.target], [predictions_header(bom=question.csv_bom)]
    if rule is not None:
        paths, starts = [*paths, sets_path(question.target)], [*starts, (BOM if question.csv_bom else "") + sets_header()]
    by_rank = _rank_table(question)
    if by_rank is not None:
        paths, starts = [*paths, ranks_path(question.target)], [*starts, (BOM if question.csv_bom else "") + by_rank.header]
    gathered = None if question.group_by is None else Gathered(GroupBy.parse(question.group_by), source)
    tally, sizes, seen = Tally(), Counter[int](), Seen()
    # A photograph is counted as one file: behind each row of one are those of its tiles.
    step = 1 if question.tiles is None else 1 + len(Grid.parse(question.tiles).boxes)
    with GrowingFiles(paths, list(map(text_bytes, starts)), question_key(question, asked)) as files:
        if files.done:
            console.say(f"going on: {files.done} of {len(span)} rows are in {question.target.name}.part")
            doubt.add(recount(files.parts[0], tally, step))
            if rule is not None:
                sizes.update(set_sizes(files.parts[1]))
        earlier = files.done
        left = span[earlier:]
        found = source.parts(classifier.request(console, zero_shot=question.zero_shot, looks=gathered is not None), left)
        for part in found if left else ():
            rows = _rows(part, classifier)
            texts = [predictions_text(rows)]
            likeness.add(part.likeness)
            doubt.add(part.none_of_these)
            probabilities = softmax(part.logits["logits"].numpy()) if part.logits else np.zeros((0, len(classifier.classes)))
            seen.add(part, probabilities)
            if rule is not None:
                sets = sets_of(part, classifier.classes, rule)
                sizes.update(len(own) for own in sets if own)
                texts.append(sets_text(part.records, sets))
            if gathered is not None:
                gathered.add(part, rows, probabilities)
            if by_rank is not None:
                texts.append(by_rank.lines(rows, {record.name: record.index for record in part.records}, probabilities))
            tally.add(part.records[-files.done % step :: step])
            files.add(list(map(text_bytes, texts)), files.done + len(part.records))
        if question.target.is_file():
            asked_for = {groups_path(question.target): question.group_by, tiles_path(question.target): question.tiles}
            drop_left_over(question.target, [*paths, *(path for path, given in asked_for.items() if given is not None)])
        files.finish()
    if rule is not None:
        mean = f", {sum(size * count for size, count in sizes.items()) / sizes.total():.1f} classes in a set on average" if sizes else ""
        console.say(f"conformal sets{mean}; {rule.guarantee()}")
    if question.shard is not None and not len(span):
        console.say(f"part {question.shard} holds none of the {counted(listing.count, 'file', 'files')}: a part is of whole groups of {GROUP}")
    tally.say(console, -(-earlier // step))
    tally.say_notes(console)
    # Tiles look unlike photographs, and belong to no class more often: what is expected of photographs says nothing of them.
    if question.tiles is None:
        familiarity, likes = classifier.model.familiarity, torch.from_numpy(likeness.numbers).float()
        if len(likes) and familiarity is not None and (complaint := familiarity.complaint(likes)):
            # How far earlier ones were from the fit is not in the file.
            console.warn(f"of what this command read, {complaint}" if earlier else complaint)
        folder = RunFolder.open(question.run, lock=False)
        hardly = hardly_knows(folder)
        say_none(doubt.numbers, console, hardly=hardly)
        # What was read by a command that was stopped is not here any more.
        if question.classes is None and len(left) == len(span):
            seen.say(folder, console, strangers=share_of_none(doubt.numbers), hardly=hardly)
    beside: list[tuple[Path, Together | TilesFile]] = []
    if gathered is not None:
        beside.append((groups_path(question.target), gathered.answers(classifier.classes)))
    if question.tiles is not None:
        floor = FLOOR if question.tile_floor is None else question.tile_floor
        beside.append((tiles_path(question.target), tiles_file(read_predictions(question.target), Grid.parse(question.tiles), floor)))
    for path, further in beside:
        write_text(path, (BOM if question.csv_bom else "") + further.text)
        paths = [*paths, path]
        for line in further.lines:
            console.say(line)
    for path in paths:
        console.say(f"wrote {path}")
    return question.target


def check_any_read(path: Path) -> None:
    """Refuse to call a command done of whose files not one could be read.

    Args:
        path: What :func:`predict_to_file` has written.

    Raises:
        UserError: There are rows, and each says why it has no answer.
    """
    rows = 0
    for row in each_prediction(path):
        if row.status == "ok":
            return
        rows += 1
    if rows:
        raise UserError(f"none of the {rows} files is an image that can be read; the column reason of {path} says why")


def recount(path: Path, tally: Tally, step: int = 1) -> np.ndarray:
    """Count every ``step``-th row that an earlier command wrote, as if it were new; returns the doubt of all whether they belong to any class."""
    doubt: list[float] = []
    for place, row in enumerate(each_prediction(path)):
        if not place % step:
            notes = [note for note in row.reason.split("; ") if note != UNLIKE_NOTE]
            tally.add([ImageRecord(row.path, row.status, "; ".join(notes), None)])
        if row.none_of_these is not None:
            doubt.append(row.none_of_these)
    return np.array(doubt)


def source_of(question: Question, console: Console) -> Source:
    """The photographs, or what a file of another tool names of them."""
    if question.in_file is None:
        asked = asked_at(question.photos, strict=question.strict, row_names=question.row_names)
        return asked if question.tiles is None else with_tiles(asked, Grid.parse(question.tiles))
    taken = take(question.in_file, question.photos, CONFIDENCE if question.box_confidence is None else question.box_confidence)
    for remark in taken.remarks:
        console.say(remark)
    return with_rows(source_at(question.photos, strict=question.strict, row_names=question.row_names), taken)


def _rank_table(question: Question) -> RankTable | None:
    """Lines of answers by rank, where the run's class list was a table with ranks and answers are among its classes."""
    if question.classes is not None:
        return None
    folder = RunFolder.open(question.run, lock=False)
    taxonomy = saved_taxonomy(folder.taxonomy_path)
    return RankTable(taxonomy, folder.config.rank_floor) if taxonomy is not None and taxonomy.ranks else None


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


def conformal_rule(classifier: Classifier, source: Source, question: Question, console: Console) -> Conformal:
    """The conformal rule of the labelled photographs, which are asked about first."""
    assert question.calibrate is not None
    labelled = source if question.calibrate_photos is None else source_at(question.calibrate_photos)
    left_out: list[str] = []
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
    if left_out:
        console.warn(f"{counted(len(left_out), 'label is', 'labels are')} left out of the calibration, the first because: {left_out[0]}")
    return rule


def _other_classes(question: Question, classifier: Classifier) -> list[str]:
    """What decides the answers for another list of classes; nothing without one."""
    files = [path for path in (question.descriptions, question.prototypes) if path is not None]
    return [] if question.classes is None else [*classifier.classes, state_digest(classifier.model.zero_shot_heads), *map(file_digest, files)]


def question_key(question: Question, asked: Asked) -> str:
    """Everything that decides the bytes of the file: another model, photograph or option begins anew."""
    classifier = asked.classifier
    files = [*question.extra, *question.extra_names]
    parts: dict[str, Any] = {
        "versions": [VERSION, SCHEMA_VERSION, torch.__version__],
        "model": file_digest(RunFolder.open(question.run, lock=False).model_dir / MODEL_CONFIG_FILE),
        "precision": [classifier.model.engine.precision.name, str(classifier.model.engine.device), torch.get_num_threads()],
        "inputs": asdict(asked.listing),
        "extra": [[str(path), file_digest(Path(path))] for path in files],
        "classes": _other_classes(question, classifier),
        "options": [question.strict, question.zero_shot, question.csv_bom, None if question.shard is None else asdict(question.shard)],
        "rule": None if asked.rule is None else repr(asked.rule),
        # Groups need what was answered before a stop as well, and the file has no looks: such a command begins anew.
        "groups": None if question.group_by is None else [question.group_by, time.time_ns()],
    }
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

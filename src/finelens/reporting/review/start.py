"""Whom to ask where there is no class list and no run yet: photographs or features, from which a person's answers make the list."""

from __future__ import annotations

import csv
import io
import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from finelens.backbones.registry import load_backbone
from finelens.classes.hints import How, looks_of_answers
from finelens.classes.labels import NONE_WORDS, UNANSWERED
from finelens.core.console import Console
from finelens.core.schemas import LABEL_COLUMNS, WHY_COLUMN
from finelens.engine.device import choose_device, choose_precision
from finelens.engine.engine import Engine
from finelens.errors import UserError
from finelens.evaluation.prequential import random_order
from finelens.evaluation.signals import ID_LENGTH
from finelens.feature_store.encoder import target_features
from finelens.images.decode import DecodeLimits
from finelens.images.load import decode_limits
from finelens.images.view_config import ViewConfig
from finelens.protocol import ImageRecord, Loaded, TargetFeatures
from finelens.reporting.review.answers import told_cells
from finelens.reporting.review.order import Look
from finelens.reporting.review.sheet import next_run
from finelens.reporting.review.worth import centred_looks, looks_of
from finelens.runs.feature_source import FeatureSource
from finelens.runs.sources import source_of
from finelens.storage.cells import escape_cell, for_spreadsheets
from finelens.storage.predictions import PredictionRow
from finelens.training.config import TrainingConfig

COLUMNS = (*LABEL_COLUMNS, WHY_COLUMN)


def first_questions(
    images: object,
    n: int,
    console: Console,
    *,
    answers: dict[str, str],
    told: Mapping[str, How] | None = None,
    backbone: str = "embedded",
    device: str = "cpu",
) -> list[Look]:
    """Images in the order in which names say most about the others, at most ``n``; ``expected`` of each is empty.

    Args:
        images: Folder of photographs, feature file, or features (N, D).
        n: Questions.
        console: Progress.
        answers: Those that there are, by path; empty names for "none of these".
        told: How they were given, as far as that is known.
        backbone: Encodes photographs, as for ``adapt``.
        device: Where.

    Raises:
        UserError: No image can be read, or all are answered.
    """
    _, loaded, features = unnamed_features(images, console, backbone, device)
    named = readable(loaded)
    # A copy of an answered photograph is answered.
    ids = [content.partition("-")[0][:ID_LENGTH] for content in loaded.store.ids]
    done = {ids[record.index] for record in named if record.index is not None and record.name in answers}
    answered = torch.tensor([i for i, content in enumerate(ids) if content in done], dtype=torch.int64)
    if len(answered) == len(ids):
        raise UserError("every photograph is answered; there is nothing to ask")
    rows = [PredictionRow(record.name) for record in named]
    classes = max(1, len({name for name in answers.values() if name}))
    asked = len(looks_of_answers([record.name for record in named if record.name in answers], told or {}))
    return looks_of(rows, centred_looks(features), torch.ones(len(rows)), answered, random_order(ids), n, classes=classes, asked=asked)


def unnamed_features(images: object, console: Console, spec: str, device: str) -> tuple[DecodeLimits, Loaded, TargetFeatures]:
    """How images are decoded, the images, and what the unadapted model, centred on them, makes of them.

    Photographs are encoded where the cache does not hold them.
    """
    source = source_of(images)
    if isinstance(source, FeatureSource):
        return DecodeLimits(), source.file, source.file.store.features
    place = choose_device(device)
    engine = Engine(load_backbone(spec), place, choose_precision(TrainingConfig().precision, place))
    limits = decode_limits(ViewConfig(), engine.backbone.preprocess)
    loaded = source.load(limits, console, seldom=True)
    return limits, loaded, engine.centre(target_features(engine, loaded.store, limits.short_side, console))


def readable(loaded: Loaded) -> list[ImageRecord]:
    """The inputs that are images, in the order of the store."""
    return sorted((record for record in loaded.records if record.index is not None), key=lambda record: record.index or 0)


def adapt_command(photos: str, hints: str, backbone: str) -> str:
    """The command that makes a run of the answers, in a folder that is not there yet; their names are the class list."""
    model = [] if backbone == "embedded" else ["--backbone", backbone]
    out = next_run("run") if os.path.lexists("run") else Path("run")
    return shlex.join(["finelens", "adapt", photos, "--hints", hints, *model, "--out", str(out)])


def open_questions(answers: Mapping[str, str], looks: Sequence[Look], told: Mapping[str, How]) -> str:
    """The content of a hints file that is still to be answered: what is answered, then the questions with ``?`` in the place of a name.

    Args:
        answers: Class names by path.
        looks: The questions.
        told: How the answers were given, as far as that is known.
    """
    columns, how = told_cells(answers, told)
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow((*COLUMNS, *columns))
    writer.writerows(map(escape_cell, (path, label or NONE_WORDS[0], "answered", *how(path))) for path, label in answers.items())
    writer.writerows(map(escape_cell, (look.path, UNANSWERED, look.why, *how(look.path))) for look in looks)
    return for_spreadsheets(text.getvalue())

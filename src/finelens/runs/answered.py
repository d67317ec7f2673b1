"""What the hints of a run say of it, and which photographs they are about."""

from __future__ import annotations

import os
from collections.abc import Container, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from finelens.evaluation.answered import Answered, answers_of_run
from finelens.evaluation.prequential import drawn_answers, random_order
from finelens.evaluation.signals import content_of, read_measured
from finelens.protocol import Hints, ImageRecord
from finelens.runs.fit import Fitted
from finelens.runs.folder import RunFolder
from finelens.storage.predictions import read_predictions

CHUNK = 4096


def answered(fitted: Fitted, hints: Hints, ids: Sequence[str], grouped: Container[int] | None, *, listed: bool = True) -> Answered:
    """Count the answers, and estimate the accuracy where the method tested them.

    Args:
        fitted: The run's model.
        hints: Its hints.
        ids: Sample ids of the images, in store order.
        grouped: Positions that were answered as one of a group; None where that is not known, so that nothing is estimated.
        listed: Whether there is a class list beside the answers.
    """
    index, labels = hints.index.cpu(), hints.label.cpu()
    tested, named = fitted.model.task.tested(), labels >= 0
    zero_shot = before = fitted.zero_shot_logits.argmax(1)[index]
    against = "the unadapted model"
    left_out = None
    if tested is not None:
        before = before.clone()
        before[named], against = tested[0].cpu(), "the model without answers"
        left_out = torch.full_like(labels, -1)
        left_out[named] = tested[1].cpu()
    # A copy of an answered photograph is answered.
    contents = [content_of(content) for content in ids]
    known = {contents[i] for i in index.tolist()}
    drawn = drawn_answers(random_order(contents), [i for i, content in enumerate(contents) if content in known])
    names = tuple(fitted.model.class_names)
    random = np.array([i in drawn for i in index.tolist()])
    guesses = None if left_out is None or grouped is None else left_out.numpy()
    alone = np.array([grouped is None or i not in grouped for i in index.tolist()])
    cells = _cells(fitted.looks, index)
    return answers_of_run(labels.numpy(), before.numpy(), against, names, zero_shot.numpy(), guesses, random, cells, alone, listed=listed)


def answered_among(folder: RunFolder, records: Sequence[ImageRecord], place: str | Path) -> set[str]:
    """Names of the photographs that a person answered in a run, or whose copy a person did: of these the run knows what it was told.

    Args:
        folder: The run.
        records: Photographs that could be read, any.
        place: Where they lie; where the run's own do, names say as much as contents.

    Raises:
        UserError: Files of the run are damaged.
    """
    rows = read_predictions(folder.predictions_path)
    if not any(row.answered for row in rows):
        return set()
    own = os.path.realpath(place) == os.path.realpath(folder.config.photos)
    names = {row.path for row in rows if row.answered} if own else set()
    contents = next((set(event["contents"]) for event in folder.events() if event["event"] == "hints" and "contents" in event), None)
    if contents is None:
        # A run of before: those that were answered with a class.
        predicted = [row for row in rows if row.label is not None]
        contents = {content for row, content in zip(predicted, read_measured(folder.signals_path).ids, strict=True) if row.answered}
    return {record.name for record in records if record.name in names or content_of(record.sample_id or "") in contents}


def _cells(looks: Tensor, index: Tensor) -> np.ndarray:
    """Images that are nearest to each of the answered ones, itself among them, (K,)."""
    answered = looks[index].float()
    nearest = torch.cat([(part.float() @ answered.T).argmax(1) for part in looks.split(CHUNK)])
    sizes: np.ndarray = torch.bincount(nearest, minlength=len(index)).clamp_min(1).numpy()
    return sizes

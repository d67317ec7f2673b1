"""What the hints of a run say of it, and which photographs they are about."""

from __future__ import annotations

import os
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from finelens.classes.text_files import quote
from finelens.evaluation.answered import Answered, answers_of_run
from finelens.evaluation.prequential import drawn_answers, random_order
from finelens.evaluation.signals import content_of, read_measured
from finelens.protocol import Hints, ImageRecord
from finelens.runs.fit import Fitted
from finelens.runs.folder import RunFolder
from finelens.storage.predictions import read_predictions


def answered(
    fitted: Fitted, hints: Hints, ids: Sequence[str], untested: Container[int] | None, *, listed: bool = True, copies: Copies | None = None
) -> Answered:
    """Count the answers, and estimate the accuracy where the method tested them.

    Args:
        fitted: The run's model.
        hints: Its hints.
        ids: Sample ids of the images, in store order.
        untested: Positions whose answer tests no model, being given to a whole group; None where that is not known, so that nothing is estimated.
        listed: Whether there is a class list beside the answers.
        copies: What they say of exact copies; None where that is not asked.
    """
    index, labels = hints.index.cpu(), hints.label.cpu()
    tested, named = fitted.model.task.tested(), labels >= 0
    zero_shot = before = fitted.zero_shot_logits.argmax(1)[index]
    against = "the unadapted model"
    left_out, speaks_for, changed = None, torch.ones(len(labels), dtype=torch.float64), torch.zeros(len(labels), dtype=torch.float64)
    if tested is not None:
        before = before.clone()
        before[named], against = tested.before.cpu(), "the model without answers"
        left_out = torch.full_like(labels, -1)
        left_out[named], speaks_for[named], changed[named] = tested.guesses.cpu(), tested.speaks_for.cpu(), tested.changed.cpu()
    # A copy of an answered photograph is answered.
    contents = [content_of(content) for content in ids]
    known = {contents[i] for i in index.tolist()}
    drawn = drawn_answers(random_order(contents), [i for i, content in enumerate(contents) if content in known])
    names = tuple(fitted.model.class_names)
    random = np.array([i in drawn for i in index.tolist()])
    guesses = None if left_out is None or untested is None else left_out.numpy()
    is_test = np.array([untested is None or i not in untested for i in index.tolist()])
    looks = None if hints.look is None else hints.look.cpu().numpy()
    given = (labels.numpy(), before.numpy(), against, names, zero_shot.numpy(), guesses, random, speaks_for.numpy(), is_test)
    found = answers_of_run(*given, changed=changed.numpy(), looks=looks, listed=listed)
    return found if copies is None else replace(found, copies=len(copies.answers), contradictions=copies.contradictions)


@dataclass(frozen=True)
class Copies:
    """Files whose content is that of a file that a person answered.

    Attributes:
        answers: Class names of those that nobody answered, by path; the empty name says "none of these classes".
        contradictions: Those that were answered differently, a sentence each content. Their further copies have no answer.
    """

    answers: dict[str, str]
    contradictions: tuple[str, ...]


def copies_of_answered(answers: Mapping[str, str], records: Sequence[ImageRecord], ids: Sequence[str]) -> Copies:
    """What answers say of exact copies.

    Args:
        answers: Class names by path; the empty name says "none of these classes".
        records: All files.
        ids: Sample ids of the images, in store order.
    """
    same: dict[str, list[str]] = {}
    for record in records:
        if record.index is not None:
            same.setdefault(content_of(ids[record.index]), []).append(record.name)
    found, contradictions = {}, []
    for paths in same.values():
        given = [path for path in paths if path in answers]
        names = {answers[path] for path in given}
        if len(names) > 1:
            said = ", ".join(f"{path} as {quote(answers[path]) if answers[path] else 'none of the classes'}" for path in given)
            contradictions.append(f"the same photograph was answered differently: {said}")
        elif names:
            found.update(dict.fromkeys((path for path in paths if path not in answers), answers[given[0]]))
    return Copies(found, tuple(contradictions))


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


def adapted_to(folder: RunFolder, records: Iterable[ImageRecord]) -> set[str]:
    """Names of the photographs that a run was adapted to, or copies of them.

    Of a run on very many photographs the contents of those are known that its page is about.

    Args:
        folder: The run.
        records: Photographs that could be read, any.

    Raises:
        UserError: Files of the run are damaged.
    """
    if not folder.config.entry.adapts:
        return set()
    contents = {content_of(content) for content in read_measured(folder.signals_path).ids}
    return {record.name for record in records if content_of(record.sample_id or "") in contents}

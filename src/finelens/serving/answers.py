"""From the bytes of images to a finished run's answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from finelens.core.console import Console
from finelens.core.schemas import UNLIKE_NOTE
from finelens.errors import UserError
from finelens.evaluation.conformal import Conformal
from finelens.feature_store.extra import check_encoders
from finelens.images.decode import DecodedImage, DecodeLimits, Failure, decode_bytes
from finelens.images.load import centre_views
from finelens.images.store import EncodedImage, PixelStore
from finelens.runs.classifier import Classifier
from finelens.runs.model import ANSWER
from finelens.runs.predict import check_tower, predict_store
from finelens.storage.predictions import softmax

QUIET = Console(enabled=False)


@dataclass(frozen=True)
class Answer:
    """What the model says of one image.

    Attributes:
        probabilities: Calibrated, (C,), float64.
        none_of_these: Doubt whether it belongs to any class, from 0 to 1; None for a method that trains the tower, which would have to look twice,
            and for models of before.
        unlike: Whether it looks unlike the photographs of the fit, as far as the model knows.
    """

    probabilities: np.ndarray
    none_of_these: float | None = None
    unlike: bool = False


class Answers:
    """Decodes and answers; the two halves may run in different threads, the second in one alone.

    Args:
        classifier: The run.
        rule: Of the conformal sets; None gives none.
        max_bytes: Of an image.

    Raises:
        UserError: The run does not answer from one photograph alone, or a further encoder of it cannot be loaded.
    """

    def __init__(self, classifier: Classifier, rule: Conformal | None, max_bytes: int) -> None:
        check_tower(classifier.model)
        if any(not encoder.encodes for encoder in classifier.model.extra):
            raise UserError(
                "the run looks at features of a further encoder that came from a file, which clients do not send; "
                "adapt with --extra-encoder instead of --extra"
            )
        check_encoders(classifier.model.extra, classifier.extra)
        self.classifier, self.rule = classifier, rule
        self.limits: DecodeLimits = replace(classifier.limits, max_bytes=max_bytes)

    def decode(self, upload: EncodedImage) -> DecodedImage | Failure:
        """The pixels, or why there are none; never an exception."""
        return decode_bytes(upload.data, upload.name, self.limits)

    def answer(self, images: Sequence[DecodedImage]) -> list[Answer]:
        """What is said of at least one image."""
        copies: Counter[str] = Counter()
        keys = []
        for image in images:
            keys.append(f"{image.sha256}-{copies[image.sha256]}" if copies[image.sha256] else image.sha256)
            copies[image.sha256] += 1
        order = sorted(range(len(keys)), key=keys.__getitem__)
        found = self._answers(PixelStore([keys[i] for i in order], [images[i].pixels for i in order]))
        return [found[place] for place in np.argsort(order)]

    def _answers(self, store: PixelStore) -> list[Answer]:
        """One for each image of the store. Nothing of a client's photographs is written to the feature cache."""
        classifier, model = self.classifier, self.classifier.model
        if model.entry.needs_pixels:
            return [Answer(row) for row in softmax(predict_store(model, store, QUIET)[ANSWER].numpy())]
        rows = classifier.rows(*(torch.cat(list(centre_views(store, preprocess, QUIET, "look"))) for preprocess in classifier.preprocesses))
        width = model.zero_shot_heads["templates"].shape[1]
        likeness, doubt = model.seen_before(rows[:, :width].as_subclass(Tensor))
        probabilities = softmax(model.logits(rows)[ANSWER].numpy())
        unlike = model.familiarity.unlike(likeness).tolist() if model.familiarity is not None else [False] * len(probabilities)
        doubts = doubt.tolist() or [None] * len(probabilities)
        return [Answer(*told) for told in zip(probabilities, doubts, unlike, strict=True)]

    def document(self, name: str, result: DecodedImage | Failure, answer: Answer | None, top: int) -> dict[str, Any]:
        """What a client is told of one image.

        Args:
            name: What the client calls it.
            result: Of decoding.
            answer: Of the model; None without an image.
            top: Classes to list, the likeliest first; 0 lists all.
        """
        if isinstance(result, Failure) or answer is None:
            status, reason = (result.status, result.reason) if isinstance(result, Failure) else ("unreadable", "not answered")
            none = dict.fromkeys(("class", "probability"))
            return {"name": name, "status": status, "reason": reason, **none, "probabilities": {}, "none_of_these": None, "set": None}
        classes, probabilities = self.classifier.classes, answer.probabilities
        order = np.argsort(-probabilities, kind="stable")
        listed = order[: top or len(order)]
        inside = None
        if self.rule is not None:
            holds = self.rule.contains(probabilities[None])[0]
            inside = [classes[int(c)] for c in order if holds[c]]
        return {
            "name": name,
            "status": "ok",
            "reason": "; ".join([*result.notes, *([UNLIKE_NOTE] if answer.unlike else [])]),
            "class": classes[int(order[0])],
            "probability": float(probabilities[order[0]]),
            "probabilities": {classes[int(c)]: float(probabilities[c]) for c in listed},
            "none_of_these": answer.none_of_these,
            "set": inside,
        }

"""From the bytes of images to a finished run's answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from finelens.core.console import Console
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

    def probabilities(self, images: Sequence[DecodedImage]) -> np.ndarray:
        """Calibrated probabilities (n, C) of at least one image, float64."""
        copies: Counter[str] = Counter()
        keys = []
        for image in images:
            keys.append(f"{image.sha256}-{copies[image.sha256]}" if copies[image.sha256] else image.sha256)
            copies[image.sha256] += 1
        order = sorted(range(len(keys)), key=keys.__getitem__)
        store = PixelStore([keys[i] for i in order], [images[i].pixels for i in order])
        found = softmax(self._logits(store).numpy())
        out = np.empty_like(found)
        out[order] = found
        return out

    def _logits(self, store: PixelStore) -> Tensor:
        """Calibrated logits (n, C). Nothing of a client's photographs is written to the feature cache."""
        classifier = self.classifier
        if not classifier.model.extra:
            return predict_store(classifier.model, store, QUIET)[ANSWER]
        views = (torch.cat(list(centre_views(store, preprocess, QUIET, "look"))) for preprocess in classifier.preprocesses)
        return classifier(*views).cpu()

    def document(self, name: str, result: DecodedImage | Failure, probabilities: np.ndarray | None, top: int) -> dict[str, Any]:
        """What a client is told of one image.

        Args:
            name: What the client calls it.
            result: Of decoding.
            probabilities: (C,); None without an image.
            top: Classes to list, the likeliest first; 0 lists all.
        """
        if isinstance(result, Failure) or probabilities is None:
            status, reason = (result.status, result.reason) if isinstance(result, Failure) else ("unreadable", "not answered")
            return {"name": name, "status": status, "reason": reason, "class": None, "probability": None, "probabilities": {}, "set": None}
        classes = self.classifier.classes
        order = np.argsort(-probabilities, kind="stable")
        listed = order[: top or len(order)]
        inside = None
        if self.rule is not None:
            holds = self.rule.contains(probabilities[None])[0]
            inside = [classes[int(c)] for c in order if holds[c]]
        return {
            "name": name,
            "status": "ok",
            "reason": "; ".join(result.notes),
            "class": classes[int(order[0])],
            "probability": float(probabilities[order[0]]),
            "probabilities": {classes[int(c)]: float(probabilities[c]) for c in listed},
            "set": inside,
        }

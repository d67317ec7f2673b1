"""Scores by which images that belong to none of the classes are told, for rows of ``unknown-...``."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from finelens.bench.rows.context import Context
from finelens.bench.rows.measures import TEXT
from finelens.bench.rows.protocols import Protocol, Split, extra_words
from finelens.classes.names import match
from finelens.classes.templates import fill
from finelens.evaluation.none_of_these import gaussian_contrast, negative_texts, unlike_texts, unsure
from finelens.protocol import ImageStore
from finelens.runs.fit import Fitted
from finelens.runs.predict import predict_store


def scores_of(
    context: Context, protocol: Protocol, split: Split, fitted: Fitted, store: ImageStore, logits: Any, temperature: float
) -> dict[str, Any]:
    """Each of ``measures.SCORES`` on the images asked about, (N,); higher for images of no class. None where the protocol has no such images.

    Args:
        context: The data set.
        protocol: The protocol.
        split: The images.
        fitted: The method, fitted.
        store: What it was fitted to.
        logits: Of the method on the images asked about, (N, C).
        temperature: What a run divides them by.
    """
    if protocol.change != "unknown":
        return {}
    model = fitted.model
    own = predict_store(model, store, context.quiet, features=fitted.features)["logits"]
    x = context.test.features.global_[torch.as_tensor(split.test)].float().cpu()
    names, others = _words(context, split)
    found = {
        "probability": unsure((torch.as_tensor(logits) / temperature).softmax(1)),
        TEXT: model.seen_before(x)[1],
        "cosine": unlike_texts(x, list(model.zero_shot_heads.values())),
        "negatives": negative_texts(x, names, others, model.engine.backbone.logit_scale),
        "gaussians": gaussian_contrast(x, fitted.looks, (own / temperature).softmax(1)),
    }
    return {name: np.asarray(value.double()) for name, value in found.items()}


def _words(context: Context, split: Split) -> tuple[Tensor, Tensor]:
    """Class names (C, E) and names that are no class of the list (M, E) in the set's first template, unit norm."""
    heads, words = context.heads(split.names), extra_words()
    assert heads.classes is not None
    first = heads.classes.templates[0]
    taken = match(words, split.names)
    texts = [fill(first, name) for name in [*split.names, *(word for word in words if word not in taken)]]
    found = F.normalize(context.start.backbone.encode_text(texts).float().cpu(), dim=1)
    return found[: len(split.names)], found[len(split.names) :]

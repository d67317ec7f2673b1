"""Answers of methods that look at many views of an image and train nothing: each view is encoded once."""

from __future__ import annotations

from contextlib import closing

import torch
from torch import Tensor

from finelens.console import Console
from finelens.feature_store.encoder import FeatureEncoder
from finelens.methods.view_task import ViewTask
from finelens.models import Model
from finelens.protocol import FeatureRows, ImageStore


def predict_views(model: Model, store: ImageStore, encoder: FeatureEncoder, console: Console) -> dict[str, Tensor]:
    """Logits (N, C) by branch of a store, in its order; views that were encoded before come from the cache.

    Args:
        model: With a :class:`~finelens.methods.view_task.ViewTask`.
        store: Images.
        encoder: Of the model's backbone.
        console: Progress.
    """
    task = model.task
    assert isinstance(task, ViewTask)
    features = encoder.centre(store, console, "look at images")
    centre = torch.cat([features.global_, features.cls], 1)  # (N, E + W)
    found: dict[str, Tensor] = {}
    with console.progress(len(store), "predict") as bar, closing(encoder.stream_inference(store, task.inference, console)) as stream:
        for positions, rows in stream:
            views = torch.cat([rows["global"], rows["cls"]], -1)  # (B, M, E + W)
            answers = model.logits(centre[positions].as_subclass(FeatureRows), views.as_subclass(FeatureRows))
            for name, logits in answers.items():
                found.setdefault(name, torch.empty(len(store), logits.shape[1]))[positions] = logits
            bar.update(len(positions))
    return found

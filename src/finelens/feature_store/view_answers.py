"""Answers of methods that look at many views of an image and train nothing: each view is encoded once."""

from __future__ import annotations

from contextlib import closing

import torch
from torch import Tensor

from finelens.console import Console
from finelens.feature_store.crops import crops_for
from finelens.feature_store.encoder import BATCH, FeatureEncoder
from finelens.feature_store.store import FeatureStore
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
            _answer(model, centre, positions, views.as_subclass(FeatureRows), found)
            bar.update(len(positions))
    return found


def predict_stored_views(model: Model, store: FeatureStore, console: Console) -> dict[str, Tensor]:
    """Logits (N, C) by branch of a feature file that holds the crops, with a progress bar.

    Raises:
        UserError: It does not hold those that the method looks at.
    """
    plan = model.task.inference
    assert plan is not None
    centre = torch.cat([store.features.global_, store.features.cls], 1)  # (N, E + W)
    found: dict[str, Tensor] = {}
    crops = crops_for(store.crops, plan, model.method)
    size = max(1, 4 * BATCH // plan.count)
    with console.progress(len(store), "predict") as bar:
        for start in range(0, len(store), size):
            positions = list(range(start, min(start + size, len(store))))
            _answer(model, centre, positions, crops.features(positions, plan.count), found)
            bar.update(len(positions))
    return found


def _answer(model: Model, centre: Tensor, positions: list[int], views: FeatureRows, found: dict[str, Tensor]) -> None:
    answers = model.logits(centre[positions].as_subclass(FeatureRows), views)
    for name, logits in answers.items():
        if name not in found:
            found[name] = torch.empty(len(centre), logits.shape[1])
        found[name][positions] = logits.cpu()

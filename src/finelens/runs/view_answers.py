"""Answers of methods that look at many views of an image and train nothing: each view is encoded once."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import closing

import torch
from torch import Tensor

from finelens.core.console import Console
from finelens.feature_store.crops import crops_for
from finelens.feature_store.encoder import BATCH, FeatureEncoder
from finelens.feature_store.store import FeatureStore
from finelens.methods.parts.views import ViewTask
from finelens.protocol import FeatureRows, ImageStore, TargetFeatures
from finelens.runs.model import Model


def predict_views(model: Model, store: ImageStore, encoder: FeatureEncoder, console: Console) -> dict[str, Tensor]:
    """Logits (N, C) by branch of a store, in its order; views that were encoded before come from the cache.

    Args:
        model: With a :class:`~finelens.methods.parts.views.ViewTask`.
        store: Images.
        encoder: Of the model's backbone.
        console: Progress.
    """
    task = model.task
    assert isinstance(task, ViewTask)
    features = encoder.centre(store, console, "look at images")
    with closing(encoder.stream_inference(store, task.inference, console)) as stream:
        views = ((positions, torch.cat([rows["global"], rows["cls"]], -1).as_subclass(FeatureRows)) for positions, rows in stream)
        return _answers(model, features, views, console)


def predict_stored_views(model: Model, store: FeatureStore, console: Console) -> dict[str, Tensor]:
    """Logits (N, C) by branch of a feature file that holds the crops, with a progress bar.

    Raises:
        UserError: It does not hold those that the method looks at.
    """
    plan = model.task.inference
    assert plan is not None
    return _answers(model, store.features, crops_for(store.crops, plan, model.method).stream(plan.count, max(1, 4 * BATCH // plan.count)), console)


def _answers(model: Model, features: TargetFeatures, stream: Iterable[tuple[list[int], FeatureRows]], console: Console) -> dict[str, Tensor]:
    """Logits by branch from centre views and from further views (B, M, E + W), which come by positions in any order."""
    centre = torch.cat([features.global_, features.cls], 1)  # (N, E + W)
    found: dict[str, Tensor] = {}
    with console.progress(len(centre), "predict") as bar:
        for positions, views in stream:
            for name, logits in model.logits(centre[positions].as_subclass(FeatureRows), views).items():
                if name not in found:
                    found[name] = torch.empty(len(centre), logits.shape[1])
                found[name][positions] = logits.cpu()
            bar.update(len(positions))
    return found

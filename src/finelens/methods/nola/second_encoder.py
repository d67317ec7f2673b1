"""Features of the second encoder, on which the labelling network rests."""

from __future__ import annotations

from torch import Tensor

from finelens.backbones.registry import EMBEDDED
from finelens.engine.engine import Engine
from finelens.feature_store.extra_towers import ExtraTower
from finelens.methods.nola.config import SELF
from finelens.protocol import TargetFeatures


def second_features(spec: str, engine: Engine, features: TargetFeatures) -> Tensor:
    """One pooled feature of every target image, not normalised, (N, D2), in store order, from the centre view.

    Args:
        spec: The second encoder; ``self`` for the run's own.
        engine: Runs the run's own tower.
        features: Of the target images.

    Raises:
        UserError: The second encoder cannot be loaded.
    """
    if spec == SELF or engine.backbone.name == spec == EMBEDDED:
        return features.cls
    assert features.views is not None
    with engine.stopwatch("second encoder"):
        second = ExtraTower(spec).engine(engine)
        return second.features(features.views(second.backbone.preprocess)).cls

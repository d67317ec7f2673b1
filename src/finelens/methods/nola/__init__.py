"""NoLA: a labelling network on a second encoder's features labels images for a prompted student. Documentation: docs/methods/nola.md."""

from __future__ import annotations

from finelens.backbones.registry import check_encoder_there
from finelens.classes.heads import ClassHeads, mean_description_head
from finelens.engine.engine import Engine
from finelens.methods.nola.config import SELF, NolaConfig
from finelens.methods.nola.task import Nola
from finelens.training.config import TrainingConfig

CONFIG = NolaConfig


def build(engine: Engine, heads: ClassHeads, config: NolaConfig, training: TrainingConfig, seed: int) -> Nola:
    """The task of this method; arguments are those of :class:`finelens.methods.registry.Method`."""
    start = heads.templates
    # A model that was loaded has no texts and needs no second encoder.
    if heads.texts:
        if config.second_spec != SELF:
            check_encoder_there(config.second_spec)
        start = mean_description_head(heads.texts)
    return Nola(engine, start, config, scope=training.scope, weight_decay=training.weight_decay, seed=seed)

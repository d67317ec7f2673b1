"""FAIR: self-training with a learned alignment score. Documentation: docs/methods/fair.md."""

from __future__ import annotations

from finelens.classes.heads import ClassHeads
from finelens.engine.engine import Engine
from finelens.methods.fair.config import FairConfig
from finelens.methods.fair.task import Fair
from finelens.training.config import TrainingConfig

CONFIG = FairConfig


def build(engine: Engine, heads: ClassHeads, config: FairConfig, training: TrainingConfig, seed: int) -> Fair:
    """The task of this method; arguments are those of :class:`finelens.methods.registry.Method`."""
    return Fair(engine, heads.descriptions, config, sentences=heads.sentences, scope=training.scope, weight_decay=training.weight_decay, seed=seed)

"""FAIR: self-training with a learned alignment score. Documentation: docs/methods/fair.md."""

from __future__ import annotations

from finelens.config import TrainingConfig
from finelens.methods.fair.config import FairConfig
from finelens.methods.fair.task import Fair
from finelens.methods.heads import ClassHeads
from finelens.training.engine import Engine

CONFIG = FairConfig


def build(engine: Engine, heads: ClassHeads, config: FairConfig, training: TrainingConfig, seed: int) -> Fair:
    """See :class:`finelens.methods.registry.Method`."""
    return Fair(engine, heads.descriptions, config, sentences=heads.sentences, scope=training.scope, weight_decay=training.weight_decay, seed=seed)

"""DPA: self-training with text and image prototypes. Documentation: docs/methods/dpa.md."""

from __future__ import annotations

from finelens.classes.heads import ClassHeads
from finelens.engine.engine import Engine
from finelens.methods.dpa.config import DpaConfig
from finelens.methods.dpa.task import Dpa
from finelens.training.config import TrainingConfig

CONFIG = DpaConfig


def build(engine: Engine, heads: ClassHeads, config: DpaConfig, training: TrainingConfig, seed: int) -> Dpa:
    """The task of this method; arguments are those of :class:`finelens.methods.registry.Method`."""
    return Dpa(engine, heads.templates, config, scope=training.scope, weight_decay=training.weight_decay)

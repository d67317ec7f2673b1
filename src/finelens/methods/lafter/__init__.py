"""LaFTer: a classifier trained on texts labels images for a prompted student. Documentation: docs/methods/lafter.md."""

from __future__ import annotations

from finelens.classes.heads import ClassHeads
from finelens.engine.engine import Engine
from finelens.methods.lafter.config import LafterConfig
from finelens.methods.lafter.task import Lafter
from finelens.training.config import TrainingConfig

CONFIG = LafterConfig


def build(engine: Engine, heads: ClassHeads, config: LafterConfig, training: TrainingConfig, seed: int) -> Lafter:
    """The task of this method; arguments are those of :class:`finelens.methods.registry.Method`."""
    return Lafter(engine, heads, config, scope=training.scope, weight_decay=training.weight_decay, seed=seed)

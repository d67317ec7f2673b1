"""CoOp: learned text context from a few labelled images. Documentation: docs/methods/coop.md."""

from __future__ import annotations

from finelens.classes.heads import ClassHeads
from finelens.engine.engine import Engine
from finelens.methods.coop.config import CoopConfig
from finelens.methods.coop.task import TRAINING, Coop, check_backbone
from finelens.training.config import TrainingConfig

__all__ = ["CONFIG", "TRAINING", "build"]

CONFIG = CoopConfig


def build(engine: Engine, heads: ClassHeads, config: CoopConfig, training: TrainingConfig, seed: int) -> Coop:
    """The task of this method; arguments are those of :class:`finelens.methods.registry.Method`."""
    check_backbone(engine, heads, "coop", training.scope)
    return Coop(engine, heads, config, weight_decay=training.weight_decay, seed=seed)

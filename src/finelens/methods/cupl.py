"""Description ensemble: one head row is the mean of a class's descriptions (CuPL, Pratt et al., 2023)."""

from __future__ import annotations

from finelens.classes.heads import ClassHeads
from finelens.engine.engine import Engine
from finelens.methods.parts.frozen import HeadTask, NoOptions
from finelens.training.config import TrainingConfig

CONFIG = NoOptions


def build(engine: Engine, heads: ClassHeads, config: NoOptions, training: TrainingConfig, seed: int) -> HeadTask:
    """The task of this method; arguments are those of :class:`finelens.methods.registry.Method`."""
    return HeadTask(engine, heads.descriptions)

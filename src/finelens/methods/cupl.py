"""Description ensemble: one head row is the mean of a class's descriptions (CuPL, Pratt et al., 2023)."""

from __future__ import annotations

from finelens.config import TrainingConfig
from finelens.methods.head_task import HeadTask, NoOptions
from finelens.methods.heads import ClassHeads
from finelens.training.engine import Engine

CONFIG = NoOptions


def build(engine: Engine, heads: ClassHeads, config: NoOptions, training: TrainingConfig, seed: int) -> HeadTask:
    """See :class:`finelens.methods.registry.Method`."""
    return HeadTask(engine, heads.descriptions)

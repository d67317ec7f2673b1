"""TDA; see :class:`finelens.solvers.TDA`."""

from __future__ import annotations

import math
from dataclasses import dataclass

from finelens.classes.heads import ClassHeads
from finelens.core.options import require
from finelens.engine.engine import Engine
from finelens.methods.parts.solver import SolverTask, StreamConfig
from finelens.solvers import TDA
from finelens.training.config import TrainingConfig


@dataclass(frozen=True)
class TDAConfig(StreamConfig):
    """Options of the method.

    Attributes:
        sharpness: Rate of the affinity in units of the mean distance.
        blend: Standard deviation of the votes over that of the text logits.
    """

    sharpness: float = 5.0
    blend: float = 1.0

    def __post_init__(self) -> None:
        require(0 < self.sharpness < math.inf, "method.sharpness", "above 0 and finite", self.sharpness)
        require(0 <= self.blend < math.inf, "method.blend", "at least 0 and finite", self.blend)


CONFIG = TDAConfig


def build(engine: Engine, heads: ClassHeads, config: TDAConfig, training: TrainingConfig, seed: int) -> SolverTask:
    """See :class:`finelens.methods.registry.Method`."""
    return SolverTask(engine, heads, TDA(sharpness=config.sharpness, blend=config.blend, seed=seed), config)

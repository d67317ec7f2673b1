"""Tip-Adapter; see :class:`finelens.solvers.TipAdapter`."""

from __future__ import annotations

import math
from dataclasses import dataclass

from finelens.classes.heads import ClassHeads
from finelens.core.options import require
from finelens.engine.engine import Engine
from finelens.methods.parts.solver import SolverConfig, SolverTask
from finelens.solvers import TipAdapter
from finelens.training.config import TrainingConfig


@dataclass(frozen=True)
class TipAdapterConfig(SolverConfig):
    """Options of the method.

    Attributes:
        shots: Keys of a class where there are no hints.
        sharpness: Rate of the affinity in units of the mean distance.
        blend: Standard deviation of the votes over that of the text logits.
    """

    shots: int = 16
    sharpness: float = 1.0
    blend: float = 1.0

    def __post_init__(self) -> None:
        require(self.shots >= 1, "method.shots", "at least 1", self.shots)
        require(0 < self.sharpness < math.inf, "method.sharpness", "above 0 and finite", self.sharpness)
        require(0 <= self.blend < math.inf, "method.blend", "at least 0 and finite", self.blend)


CONFIG = TipAdapterConfig


def build(engine: Engine, heads: ClassHeads, config: TipAdapterConfig, training: TrainingConfig, seed: int) -> SolverTask:
    """See :class:`finelens.methods.registry.Method`."""
    return SolverTask(engine, heads, TipAdapter(shots=config.shots, sharpness=config.sharpness, blend=config.blend), config)

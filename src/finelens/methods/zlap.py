"""ZLaP; see :class:`finelens.solvers.ZLaP`."""

from __future__ import annotations

import math
from dataclasses import dataclass

from finelens.classes.heads import ClassHeads
from finelens.core.options import require
from finelens.engine.engine import Engine
from finelens.methods.parts.solver import SolverConfig, SolverTask
from finelens.solvers import ZLaP
from finelens.training.config import TrainingConfig


@dataclass(frozen=True)
class ZLaPConfig(SolverConfig):
    """Options of the method.

    Attributes:
        neighbours: Images, and classes, that an image is linked to.
        gamma: Power of the edge weights.
        alpha: Share that is passed on at each edge.
    """

    neighbours: int = 5
    gamma: float = 5.0
    alpha: float = 0.3

    def __post_init__(self) -> None:
        require(self.neighbours >= 1, "method.neighbours", "at least 1", self.neighbours)
        require(0 < self.gamma < math.inf, "method.gamma", "above 0 and finite", self.gamma)
        require(0 < self.alpha < 1, "method.alpha", "between 0 and 1", self.alpha)


CONFIG = ZLaPConfig


def build(engine: Engine, heads: ClassHeads, config: ZLaPConfig, training: TrainingConfig, seed: int) -> SolverTask:
    """See :class:`finelens.methods.registry.Method`."""
    return SolverTask(engine, heads, ZLaP(neighbours=config.neighbours, gamma=config.gamma, alpha=config.alpha), config)

"""StatA; see :class:`finelens.solvers.StatA`."""

from __future__ import annotations

import math
from dataclasses import dataclass

from finelens.classes.heads import ClassHeads
from finelens.core.options import require
from finelens.engine.engine import Engine
from finelens.methods.parts.solver import SolverConfig, SolverTask
from finelens.solvers import StatA
from finelens.training.config import TrainingConfig


@dataclass(frozen=True)
class StatAConfig(SolverConfig):
    """Options of the method.

    Attributes:
        anchor: Pseudo-images behind the text statistics of each class.
        neighbours: Neighbours of an image.
        temperature: Divisor of the log-likelihood at 512 coordinates.
        rounds: Rounds of assignments and statistics.
    """

    anchor: float = 1.0
    neighbours: int = 3
    temperature: float = 50.0
    rounds: int = 10

    def __post_init__(self) -> None:
        require(0 < self.anchor < math.inf, "method.anchor", "above 0 and finite", self.anchor)
        require(self.neighbours >= 1, "method.neighbours", "at least 1", self.neighbours)
        require(0 < self.temperature < math.inf, "method.temperature", "above 0 and finite", self.temperature)
        require(self.rounds >= 1, "method.rounds", "at least 1", self.rounds)


CONFIG = StatAConfig


def build(engine: Engine, heads: ClassHeads, config: StatAConfig, training: TrainingConfig, seed: int) -> SolverTask:
    """See :class:`finelens.methods.registry.Method`."""
    solver = StatA(anchor=config.anchor, neighbours=config.neighbours, temperature=config.temperature, rounds=config.rounds)
    return SolverTask(engine, heads, solver, config)

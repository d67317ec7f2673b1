"""TransCLIP, zero-shot form; see :class:`finelens.solvers.TransClip`."""

from __future__ import annotations

import math
from dataclasses import dataclass

from finelens.classes.heads import ClassHeads
from finelens.core.options import require
from finelens.engine.engine import Engine
from finelens.methods.parts.solver import SolverConfig, SolverTask
from finelens.solvers import TransClip
from finelens.training.config import TrainingConfig


@dataclass(frozen=True)
class TransClipConfig(SolverConfig):
    """Options of the method.

    Attributes:
        neighbours: Neighbours of an image.
        temperature: Divisor of the log-likelihood at 512 coordinates.
        confident: Images per class that its first mean is made of.
        rounds: Rounds of assignments, means and variance.
    """

    neighbours: int = 3
    temperature: float = 50.0
    confident: int = 8
    rounds: int = 10

    def __post_init__(self) -> None:
        require(self.neighbours >= 1, "method.neighbours", "at least 1", self.neighbours)
        require(0 < self.temperature < math.inf, "method.temperature", "above 0 and finite", self.temperature)
        require(self.confident >= 1, "method.confident", "at least 1", self.confident)
        require(self.rounds >= 1, "method.rounds", "at least 1", self.rounds)


CONFIG = TransClipConfig


def build(engine: Engine, heads: ClassHeads, config: TransClipConfig, training: TrainingConfig, seed: int) -> SolverTask:
    """See :class:`finelens.methods.registry.Method`."""
    solver = TransClip(neighbours=config.neighbours, temperature=config.temperature, confident=config.confident, rounds=config.rounds)
    return SolverTask(engine, heads, solver, config)

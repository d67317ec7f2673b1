"""Label-free Gaussian discriminant analysis; see :class:`finelens.solvers.GdaEm`."""

from __future__ import annotations

import math
from dataclasses import dataclass

from finelens.classes.heads import ClassHeads
from finelens.core.options import require
from finelens.engine.engine import Engine
from finelens.methods.parts.solver import SolverConfig, SolverTask
from finelens.solvers import GdaEm
from finelens.training.config import TrainingConfig


@dataclass(frozen=True)
class GdaEmConfig(SolverConfig):
    """Options of the method.

    Attributes:
        anchor: Pseudo-images that hold a class mean at its text.
        max_iter: Most EM rounds.
    """

    anchor: float = 1.0
    max_iter: int = 10

    def __post_init__(self) -> None:
        require(0 <= self.anchor < math.inf, "method.anchor", "at least 0 and finite", self.anchor)
        require(self.max_iter >= 1, "method.max_iter", "at least 1", self.max_iter)


CONFIG = GdaEmConfig


def build(engine: Engine, heads: ClassHeads, config: GdaEmConfig, training: TrainingConfig, seed: int) -> SolverTask:
    """See :class:`finelens.methods.registry.Method`."""
    return SolverTask(engine, heads, GdaEm(anchor=config.anchor, max_iter=config.max_iter), config)

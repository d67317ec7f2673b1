"""Few-shot Gaussian discriminant analysis; see :class:`finelens.solvers.Gda`."""

from __future__ import annotations

from dataclasses import dataclass

from finelens.classes.heads import ClassHeads
from finelens.engine.engine import Engine
from finelens.methods.parts.solver import SolverConfig, SolverTask
from finelens.solvers import Gda
from finelens.training.config import TrainingConfig


@dataclass(frozen=True)
class GdaConfig(SolverConfig):
    """Options of the method: none of its own."""


CONFIG = GdaConfig


def build(engine: Engine, heads: ClassHeads, config: GdaConfig, training: TrainingConfig, seed: int) -> SolverTask:
    """See :class:`finelens.methods.registry.Method`."""
    return SolverTask(engine, heads, Gda(), config)

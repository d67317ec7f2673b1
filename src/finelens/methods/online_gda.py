"""Online Gaussian discriminant analysis; see :class:`finelens.solvers.OnlineGda`."""

from __future__ import annotations

import math
from dataclasses import dataclass

from finelens.classes.heads import ClassHeads
from finelens.core.options import require
from finelens.engine.engine import Engine
from finelens.methods.parts.solver import SolverTask, StreamConfig
from finelens.solvers import OnlineGda
from finelens.training.config import TrainingConfig


@dataclass(frozen=True)
class OnlineGdaConfig(StreamConfig):
    """Options of the method.

    Attributes:
        anchor: Pseudo-images that hold a class mean at its text.
    """

    anchor: float = 1.0

    def __post_init__(self) -> None:
        require(0 <= self.anchor < math.inf, "method.anchor", "at least 0 and finite", self.anchor)


CONFIG = OnlineGdaConfig


def build(engine: Engine, heads: ClassHeads, config: OnlineGdaConfig, training: TrainingConfig, seed: int) -> SolverTask:
    """See :class:`finelens.methods.registry.Method`."""
    return SolverTask(engine, heads, OnlineGda(anchor=config.anchor, seed=seed), config)

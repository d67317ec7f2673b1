"""InMaP; see :class:`finelens.solvers.InMap`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from finelens.classes.heads import ClassHeads
from finelens.core.options import require
from finelens.engine.engine import Engine
from finelens.methods.parts.solver import SolverConfig, SolverTask, require_prior
from finelens.solvers import InMap
from finelens.training.config import TrainingConfig


@dataclass(frozen=True)
class InMapConfig(SolverConfig):
    """Options of the method.

    Attributes:
        prior: What the mean posterior is brought to: ``estimated``, ``uniform``, or one number above 0 a class, in the order of the classes.
        threshold: A target whose largest entry is above it becomes one-hot.
        softness: Temperature of the image proxies over the model's own.
        max_iter: Most rounds of L-BFGS.
    """

    prior: Literal["estimated", "uniform"] | tuple[float, ...] = "estimated"
    threshold: float = 0.6
    softness: float = 4.0
    max_iter: int = 50

    def __post_init__(self) -> None:
        require_prior(self.prior)
        require(0 <= self.threshold <= 1, "method.threshold", "between 0 and 1", self.threshold)
        require(0 < self.softness < math.inf, "method.softness", "above 0 and finite", self.softness)
        require(self.max_iter >= 1, "method.max_iter", "at least 1", self.max_iter)


CONFIG = InMapConfig


def build(engine: Engine, heads: ClassHeads, config: InMapConfig, training: TrainingConfig, seed: int) -> SolverTask:
    """See :class:`finelens.methods.registry.Method`."""
    solver = InMap(prior=config.prior, threshold=config.threshold, softness=config.softness, max_iter=config.max_iter)
    return SolverTask(engine, heads, solver, config)

"""Optimal-transport balancing; see :class:`finelens.solvers.SinkhornOt`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from finelens.classes.heads import ClassHeads
from finelens.engine.engine import Engine
from finelens.methods.parts.solver import SolverConfig, SolverTask, require_prior
from finelens.solvers import SinkhornOt
from finelens.training.config import TrainingConfig


@dataclass(frozen=True)
class OtConfig(SolverConfig):
    """Options of the method.

    Attributes:
        prior: What the mean posterior is brought to: ``estimated``, ``uniform``, or one number above 0 a class, in the order of the classes.
    """

    prior: Literal["estimated", "uniform"] | tuple[float, ...] = "estimated"

    def __post_init__(self) -> None:
        require_prior(self.prior)


CONFIG = OtConfig


def build(engine: Engine, heads: ClassHeads, config: OtConfig, training: TrainingConfig, seed: int) -> SolverTask:
    """See :class:`finelens.methods.registry.Method`."""
    return SolverTask(engine, heads, SinkhornOt(prior=config.prior), config)

"""OnZeta; see :class:`finelens.solvers.OnZeta`."""

from __future__ import annotations

from dataclasses import dataclass

from finelens.classes.heads import ClassHeads
from finelens.core.options import require
from finelens.engine.engine import Engine
from finelens.methods.parts.solver import SolverTask, StreamConfig
from finelens.solvers import OnZeta
from finelens.training.config import TrainingConfig


@dataclass(frozen=True)
class OnZetaConfig(StreamConfig):
    """Options of the method.

    Attributes:
        balance: Least mean posterior of a class, as a share of 1 / C.
        share: Largest weight of the visual posterior.
    """

    balance: float = 1.0
    share: float = 0.8

    def __post_init__(self) -> None:
        require(0 <= self.balance <= 1, "method.balance", "between 0 and 1", self.balance)
        require(0 <= self.share <= 1, "method.share", "between 0 and 1", self.share)


CONFIG = OnZetaConfig


def build(engine: Engine, heads: ClassHeads, config: OnZetaConfig, training: TrainingConfig, seed: int) -> SolverTask:
    """See :class:`finelens.methods.registry.Method`."""
    return SolverTask(engine, heads, OnZeta(balance=config.balance, share=config.share, seed=seed), config)

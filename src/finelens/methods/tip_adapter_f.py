"""Tip-Adapter-F; see :class:`finelens.solvers.TipAdapterF`."""

from __future__ import annotations

import math
from dataclasses import dataclass

from finelens.classes.heads import ClassHeads
from finelens.core.options import require
from finelens.engine.engine import Engine
from finelens.methods.parts.solver import SolverTask
from finelens.methods.tip_adapter import TipAdapterConfig
from finelens.solvers import TipAdapterF
from finelens.training.config import TrainingConfig


@dataclass(frozen=True)
class TipAdapterFConfig(TipAdapterConfig):
    """Options of the method.

    Attributes:
        epochs: Passes over the keys.
        lr: First learning rate at 512 coordinates.
    """

    epochs: int = 20
    lr: float = 1e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.epochs >= 1, "method.epochs", "at least 1", self.epochs)
        require(0 < self.lr < math.inf, "method.lr", "above 0 and finite", self.lr)


CONFIG = TipAdapterFConfig


def build(engine: Engine, heads: ClassHeads, config: TipAdapterFConfig, training: TrainingConfig, seed: int) -> SolverTask:
    """See :class:`finelens.methods.registry.Method`."""
    solver = TipAdapterF(shots=config.shots, sharpness=config.sharpness, blend=config.blend, epochs=config.epochs, lr=config.lr, seed=seed)
    return SolverTask(engine, heads, solver, config)

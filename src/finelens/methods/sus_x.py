"""SuS-X; see :class:`finelens.solvers.SusX`."""

from __future__ import annotations

from finelens.config import TrainingConfig
from finelens.methods.heads import ClassHeads
from finelens.methods.support_task import SupportConfig, SupportTask
from finelens.solvers import SusX
from finelens.training.engine import Engine

CONFIG = SupportConfig


def build(engine: Engine, heads: ClassHeads, config: SupportConfig, training: TrainingConfig, seed: int) -> SupportTask:
    """See :class:`finelens.methods.registry.Method`."""
    return SupportTask(engine, heads, SusX(sharpness=config.sharpness, blend=config.blend), config)

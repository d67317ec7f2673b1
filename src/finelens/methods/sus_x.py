"""SuS-X; see :class:`finelens.solvers.SusX`."""

from __future__ import annotations

from finelens.classes.heads import ClassHeads
from finelens.engine.engine import Engine
from finelens.methods.parts.support import SupportConfig, SupportTask
from finelens.solvers import SusX
from finelens.training.config import TrainingConfig

CONFIG = SupportConfig


def build(engine: Engine, heads: ClassHeads, config: SupportConfig, training: TrainingConfig, seed: int) -> SupportTask:
    """See :class:`finelens.methods.registry.Method`."""
    return SupportTask(engine, heads, SusX(sharpness=config.sharpness, blend=config.blend), config)

"""A mixture in several feature spaces; see :class:`finelens.solvers.JointGmm`."""

from __future__ import annotations

from pathlib import Path

from finelens.classes.heads import ClassHeads
from finelens.engine.engine import Engine
from finelens.methods.parts.extra_views import CLS, ExtraConfig, ExtraTask
from finelens.methods.parts.solver import solver_options
from finelens.solvers import JointGmm
from finelens.training.config import TrainingConfig

CONFIG = JointGmmConfig = solver_options(JointGmm, ExtraConfig)


class JointTask(ExtraTask):
    """Says how much each view weighs."""

    solver: JointGmm

    def notes(self) -> list[str]:
        """How much each view weighs."""
        names = ["joint space", *("pooled token" if entry == CLS else Path(entry).name for entry in self.config.extra)]
        weights = ", ".join(f"{name} {weight:.2f}" for name, weight in zip(names, self.solver.weights_.tolist(), strict=True))
        return [*super().notes(), f"weights of the views, found without labels: {weights}"]


def build(engine: Engine, heads: ClassHeads, config: ExtraConfig, training: TrainingConfig, seed: int) -> JointTask:
    """The task of this method; arguments are those of :class:`finelens.methods.registry.Method`."""
    return JointTask(engine, heads, config.new_solver(seed), config)

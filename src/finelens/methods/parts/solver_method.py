"""A solver class as a method, by what it needs besides the features of the target images."""

from __future__ import annotations

from collections.abc import Set
from functools import cache
from typing import Any

from finelens.classes.heads import ClassHeads
from finelens.engine.engine import Engine
from finelens.methods.parts.extra_views import ExtraConfig, ExtraTask
from finelens.methods.parts.solver import SolverConfig, SolverTask, solver_options
from finelens.methods.parts.support import SupportConfig, SupportTask
from finelens.solvers import Solver
from finelens.training.config import TrainingConfig


@cache
class SolverMethod:
    """Stands in for the module of a method.

    Args:
        solver: Its class.
        needs: ``support`` or ``extra`` among them, or neither.
    """

    def __init__(self, solver: type[Solver], needs: Set[str]) -> None:
        self.task: type[SolverTask] = SupportTask if "support" in needs else ExtraTask if "extra" in needs else SolverTask
        base = SupportConfig if "support" in needs else ExtraConfig if "extra" in needs else SolverConfig
        self.CONFIG = solver_options(solver, base)
        self.NEW_CLASSES = solver.new_classes

    def build(self, engine: Engine, heads: ClassHeads, config: Any, training: TrainingConfig, seed: int) -> SolverTask:
        """The task of this method; arguments are those of :class:`finelens.methods.registry.Method`."""
        return self.task(engine, heads, config.new_solver(seed), config)

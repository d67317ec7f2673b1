"""A mixture in several feature spaces; see :class:`finelens.solvers.JointGmm`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from finelens.config import TrainingConfig
from finelens.methods.heads import ClassHeads
from finelens.methods.solver_task import SolverConfig, SolverTask, require_prior
from finelens.protocol import ImageTokens, TargetFeatures
from finelens.solvers import JointGmm
from finelens.strict import require
from finelens.training.engine import Engine

# The built-in second view: the tower's pooled token before the projection.
CLS = "cls"


@dataclass(frozen=True)
class JointGmmConfig(SolverConfig):
    """Options of the method.

    Attributes:
        extra: Views beside the joint-space feature: ``cls`` is the tower's pooled token before the projection; an empty list leaves the first alone.
        prior: ``free`` leaves the class masses alone; ``estimated``, ``uniform``, or one number above 0 a class bring them there.
        anchor: Pseudo-images that hold each mean at its first value.
        confident: Images per class of the first means in the views without text.
        temperature: Divisor of a log-likelihood at 512 coordinates.
        rounds: Rounds of weights, assignments and statistics.
    """

    extra: tuple[str, ...] = (CLS,)
    prior: Literal["free", "estimated", "uniform"] | tuple[float, ...] = "free"
    anchor: float = 1.0
    confident: int = 8
    temperature: float = 50.0
    rounds: int = 10

    def __post_init__(self) -> None:
        usable = set(self.extra) <= {CLS} and len(self.extra) <= 1
        require(usable, "method.extra", "[] or [cls]; features of other models go in through finelens.solvers.JointGmm", list(self.extra))
        require_prior(self.prior)
        require(0 <= self.anchor < math.inf, "method.anchor", "at least 0 and finite", self.anchor)
        require(self.confident >= 1, "method.confident", "at least 1", self.confident)
        require(0 < self.temperature < math.inf, "method.temperature", "above 0 and finite", self.temperature)
        require(self.rounds >= 1, "method.rounds", "at least 1", self.rounds)


CONFIG = JointGmmConfig


class JointTask(SolverTask):
    """A solver that also sees the tower's pooled token."""

    config: JointGmmConfig

    def rows(self, tokens: ImageTokens | TargetFeatures) -> Tensor | list[Tensor]:
        """The joint-space feature and the other views."""
        extra = [tokens.cls.to(self.place) for _ in self.config.extra]
        return [tokens.global_.to(self.place), *extra]


def build(engine: Engine, heads: ClassHeads, config: JointGmmConfig, training: TrainingConfig, seed: int) -> JointTask:
    """See :class:`finelens.methods.registry.Method`."""
    solver = JointGmm(prior=config.prior, anchor=config.anchor, confident=config.confident, temperature=config.temperature, rounds=config.rounds)
    return JointTask(engine, heads, solver, config)

"""What the methods share that train the image tower towards pseudo-labels of their own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from finelens.engine.engine import Engine
from finelens.protocol import Task
from finelens.training.marginal import ClassPrior


class SelfTraining(Task):
    """Holds the trained parameters of the tower and the class prior of the marginal term, which it renews after each epoch.

    Attributes:
        tuned: Parameters of the image tower in the scope, by name.
        class_prior: What the batch marginal is drawn to.

    Args:
        engine: Runs the backbone.
        start: Where the trained head starts, (C, E); the prior has its classes and type.
        config: Options; ``marginal`` among them.
        scope: Tuning scope of the image tower.
        weight_decay: Decay of what the method says.
        seed: Of whatever is drawn.
    """

    engine: Engine

    def __init__(self, engine: Engine, start: Tensor, config: Any, *, scope: str, weight_decay: float, seed: int = 0) -> None:
        super().__init__(engine)
        self.config = config
        self.tuned = engine.backbone.tunable(scope)
        self.weight_decay = weight_decay
        self.seed = seed
        self.class_prior = ClassPrior(config.marginal, len(start), start.dtype)

    @property
    def _scale(self) -> float:
        return self.engine.backbone.logit_scale

    def end_epoch(self, epoch: int) -> Mapping[str, float]:
        """Renew the estimated prior from this epoch's posteriors."""
        return self.class_prior.end_epoch()

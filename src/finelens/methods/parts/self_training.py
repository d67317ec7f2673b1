"""What the methods share that train the image tower towards pseudo-labels of their own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from finelens.engine.engine import Engine
from finelens.protocol import Task
from finelens.training.loss_form import LossForm
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
    loss_form = LossForm()

    def __init__(self, engine: Engine, start: Tensor, config: Any, *, scope: str, weight_decay: float, seed: int = 0) -> None:
        super().__init__(engine)
        self.config = config
        self.tuned = engine.backbone.tunable(scope)
        self.weight_decay = weight_decay
        self.seed = seed
        self.class_prior = ClassPrior(config.marginal, len(start), start.dtype)

    def with_mixtures(
        self, loss: Tensor, log: Mapping[str, float | Tensor], images: Tensor, classes: Tensor, labels: Tensor, epoch: int, step: int
    ) -> tuple[Tensor, dict[str, float | Tensor]]:
        """A loss and what it logs, with the mixed term of the batch where ``training.loss`` asks for one.

        Args:
            loss: Scalar.
            log: Numbers.
            images: Unit-norm features of the strong views, (B, E).
            classes: Class vectors (C, E), rows of any norm.
            labels: (B,).
            epoch: From 0.
            step: In the epoch.
        """
        term = self.loss_form.mixed(images, F.normalize(classes, dim=-1), labels, self._scale, epoch, step)
        return (loss, dict(log)) if term is None else (loss + term, {**log, "mixed": term})

    @property
    def _scale(self) -> float:
        return self.engine.backbone.logit_scale

    def end_epoch(self, epoch: int) -> Mapping[str, float]:
        """Renew the estimated prior from this epoch's posteriors."""
        return self.class_prior.end_epoch()

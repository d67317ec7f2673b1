"""A fitted method that answers for another list of classes than that of its run."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from finelens.classes.heads import ClassHeads
from finelens.errors import UserError
from finelens.methods.method import Method
from finelens.methods.parts.frozen import FrozenTask
from finelens.methods.parts.solver import SolverTask
from finelens.protocol import FeatureRows, Task
from finelens.solvers.other_classes import OtherClasses
from finelens.training.config import TrainingConfig


class OtherClassesTask(FrozenTask):
    """Asks a task and brings its answers to another list.

    Args:
        task: Knows the classes of the run.
        others: The other list.
    """

    def __init__(self, task: Task, others: OtherClasses) -> None:
        super().__init__(task.engine)
        self.task, self.others = task, others
        self.inference, self.asks_unadapted = task.inference, task.asks_unadapted

    def prediction_state(self) -> dict[str, Tensor]:
        """There is none: the run's model is kept, and the other list beside it.

        Raises:
            UserError: Always.
        """
        raise UserError("a classifier with other classes than its run's does not travel: move or pickle the run's own, then take the other classes")

    def _brought(self, found: dict[str, Tensor], images: Tensor) -> dict[str, Tensor]:
        x = self.engine.encode_frozen(images).global_ if self.others.new else None
        return {name: self.others.answer(logits, x) for name, logits in found.items()}

    @torch.no_grad()
    def predict_logits(self, images: Tensor) -> dict[str, Tensor]:
        """Logits (B, C') of uint8 centre views."""
        return self._brought(self.task.predict_logits(images), images)

    @torch.no_grad()
    def predict_from_views(self, images: Tensor, views: Tensor) -> dict[str, Tensor]:
        """Logits (B, C') of centre views and further views."""
        return self._brought(self.task.predict_from_views(images, views), images)

    @torch.no_grad()
    def predict_beside(self, images: Tensor, unadapted: FeatureRows) -> dict[str, Tensor]:
        """Logits (B, C') of centre views and the unadapted tower's features of them."""
        return self._brought(self.task.predict_beside(images, unadapted), images)


def with_classes(method: Method, task: Task, kept: Tensor, heads: ClassHeads, options: Any, training: TrainingConfig) -> Task:
    """The task for another list of classes. For a method of texts alone there is nothing to bring over: it is built anew.

    Args:
        method: As the registry knows it.
        task: After the fit.
        kept: Index of each class among those of the run, -1 for a new one, (C',).
        heads: Of the other list.
        options: Of the method.
        training: Of a loaded model, with no scope in use.

    Raises:
        UserError: There is a new class, and the method has no answer for one.
    """
    if method.new_classes == "refused" and bool((kept < 0).any()):
        raise UserError(
            f"method {method.name} was trained for the classes of its run, and a class that it has not seen would stand beside them untrained: "
            "names may be taken away; for new ones run finelens adapt with the new list, or take a solver such as consensus, which needs no new run"
        )
    scale, head = task.engine.backbone.logit_scale, getattr(heads, getattr(options, "head", "templates"))
    # The return rule knows means of the run's classes alone, so the text speaks for others after it.
    if isinstance(task, SolverTask) and not options.return_rule:
        solver = task.fitted().with_classes(kept.tolist(), prototypes=head.to(task.place), logit_scale=scale)
        if solver.others is None:
            own = method.build(task.engine, heads, options, training, 0)
            for name, tensor in solver.state().items():
                setattr(own, name, tensor)
            return own
    return OtherClassesTask(task, OtherClasses(kept, scale * head))

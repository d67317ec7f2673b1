"""A frozen head on the frozen global feature: the task of every method that only changes the text side."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from finelens.engine.engine import Engine
from finelens.protocol import Batch, Cost, StepOutput, TargetFeatures, Task, ViewPlan
from finelens.training.state import late_buffers


@dataclass(frozen=True)
class NoOptions:
    """A method without options."""


class FrozenTask(Task):
    """A task without training: what it knows, it knows after ``prepare``."""

    engine: Engine
    views = ViewPlan(weak=False, strong=False)

    def prepare(self, features: TargetFeatures) -> None:
        """Nothing to build."""

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Nothing to train."""
        return []

    def step(self, batch: Batch, epoch: int, step_in_epoch: int) -> StepOutput:
        """Never called: the method does not train."""
        raise NotImplementedError("this method has no training step")

    def cost(self) -> Cost:
        """No training forwards."""
        return Cost(0, 0)


class HeadTask(FrozenTask):
    """Predicts ``s <f, w_c> + b`` with a given head; trains nothing.

    Args:
        engine: Runs the backbone.
        head: (C, E), unit-norm rows.
    """

    def __init__(self, engine: Engine, head: Tensor) -> None:
        super().__init__(engine)
        self.register_buffer("head", head.clone())
        self.head: Tensor
        self.to(engine.device)

    @torch.no_grad()
    def predict_logits(self, images: Tensor) -> dict[str, Tensor]:
        """Scaled cosines of the global feature."""
        return {"logits": cosine_logits(self.engine, self.engine.encode_frozen(images).global_, self.head)}


class WrittenTask(FrozenTask):
    """Keeps what its texts became in buffers; a loaded model brings them, whatever their shape.

    Args:
        engine: Runs the backbone.
        config: Options.

    Attributes:
        written: Names of the buffers.
    """

    written: ClassVar[tuple[str, ...]]

    def __init__(self, engine: Engine, config: Any) -> None:
        super().__init__(engine)
        self.config = config
        late_buffers(self, *self.written, device=engine.device)


def cosine_logits(engine: Engine, features: Tensor, head: Tensor) -> Tensor:
    """``s <f, w_c> + b`` with the model's own scale and bias, (B, C)."""
    backbone = engine.backbone
    return backbone.logit_scale * features @ head.T + backbone.logit_bias

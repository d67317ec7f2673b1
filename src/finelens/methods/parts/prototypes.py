"""Methods whose model is a set of prototypes: what few-shot tuning keeps of the text side."""

from __future__ import annotations

import torch
from torch import Tensor

from finelens.protocol import Task


class PrototypeTask(Task):
    """A task that answers with one centre view against text features of the classes.

    Attributes:
        prototypes: A buffer, (C, E), unit norm.
    """

    prototypes: Tensor

    def logits(self, features: Tensor, prototypes: Tensor) -> Tensor:
        """``s <x, w_c> + b``, (..., B, C), of unit-norm features (B, E) and prototypes (..., C, E)."""
        backbone = self.engine.backbone
        scaled: Tensor = backbone.logit_scale * features @ prototypes.mT + backbone.logit_bias
        return scaled

    def prediction_state(self) -> dict[str, Tensor]:
        """The prototypes; no text tower is needed any more."""
        return {"prototypes": self.prototypes}

    @torch.no_grad()
    def predict_logits(self, images: Tensor) -> dict[str, Tensor]:
        """One centre view against the prototypes."""
        return {"logits": self.logits(self.engine.encode_frozen(images).global_, self.prototypes)}

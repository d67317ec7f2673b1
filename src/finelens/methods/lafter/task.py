"""LaFTer (Mirza et al., NeurIPS 2023, arXiv 2305.18287): label-free tuning with language and unlabelled images."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from finelens.classes.heads import ClassHeads
from finelens.engine.engine import Engine
from finelens.methods.lafter.config import LafterConfig
from finelens.methods.parts.hint_memory import HintMemory
from finelens.methods.parts.student import Student
from finelens.methods.text_classifier import train_text_head
from finelens.protocol import Batch, Cost, StepOutput, TargetFeatures, ViewPlan
from finelens.training.pseudo_labels import PseudoLabels


class Lafter(Student):
    """The method as a task of the training loop.

    Attributes:
        teacher: The head after stage 1 (C, E), frozen.

    Args:
        engine: Runs the backbone.
        heads: Text heads and the features of every text.
        config: Options.
        scope: Tuning scope of the image tower.
        weight_decay: Decay of everything that stage 2 trains.
        seed: Seed of the head, its noise and the prompts.
    """

    config: LafterConfig
    views = ViewPlan(weak=False, strong=True, centre=True)

    def __init__(
        self, engine: Engine, heads: ClassHeads, config: LafterConfig, *, scope: str = "norm", weight_decay: float = 0.1, seed: int = 0
    ) -> None:
        super().__init__(engine, heads.templates, config, scope=scope, weight_decay=weight_decay, seed=seed)
        self.texts = heads.texts
        self.register_buffer("teacher", heads.templates.clone())
        self.teacher: Tensor
        self.hints = HintMemory()
        self.to(engine.device)

    def prepare(self, features: TargetFeatures) -> None:
        """Stage 1: train the head on texts; its frozen copy becomes the teacher."""
        super().prepare(features)
        self.teacher = train_text_head(self.texts, self.config, self.seed, self.engine.console).to(self.teacher)
        with torch.no_grad():
            self.head.copy_(self.teacher)
        self.hints.start(features.hints)
        everywhere = torch.arange(len(features.global_))
        self.class_prior.start(self._certain(self.hints.apply_to(everywhere, self.pseudo_labels(features.global_)).labels))

    def cost(self) -> Cost:
        """1 centre view without gradient, 1 strong view with gradient."""
        return Cost(no_grad_forwards=1, grad_forwards=1)

    @torch.no_grad()
    def pseudo_labels(self, centre: Tensor) -> PseudoLabels:
        """What the teacher makes of unit-norm features (B, E) of the current tower without prompts; no threshold."""
        posterior = (centre @ self.teacher.T).softmax(-1)
        return PseudoLabels(posterior.argmax(-1), torch.ones_like(posterior[:, 0]), posterior)

    def _certain(self, labels: Tensor) -> Tensor:
        # The teacher's posterior has no logit scale and is nearly flat; an estimate of frequencies would rest on its slightest lean.
        return F.one_hot(labels, len(self.teacher)).to(self.teacher.dtype)

    def step(self, batch: Batch, epoch: int, step_in_epoch: int) -> StepOutput:
        """Stage 2: the teacher labels the centre view, the student learns it on the strong view."""
        assert batch.centre is not None
        assert batch.strong is not None
        pseudo = self.hints.apply_to(batch.index, self.pseudo_labels(self.engine.encode_frozen(batch.centre).global_))
        loss, log = self.loss(self.logits(batch.strong), pseudo)
        self.class_prior.remember(batch.index, self._certain(pseudo.labels))
        return StepOutput(loss, log, pseudo.labels)

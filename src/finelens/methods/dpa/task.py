"""DPA (Ali, Silva, Khan, WACV 2025, arXiv 2408.08855): dual prototypes alignment."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from finelens.engine.engine import Engine
from finelens.methods.dpa.config import DpaConfig
from finelens.methods.dpa.prototypes import alignment_loss, image_prototypes
from finelens.methods.dpa.pseudo_labels import align_distribution, assign
from finelens.methods.parts.hint_memory import HintMemory
from finelens.methods.parts.self_training import SelfTraining
from finelens.protocol import Batch, Cost, StepOutput, TargetFeatures, ViewPlan
from finelens.training.losses import log_batch_marginal
from finelens.training.pseudo_labels import PseudoLabels, self_training_loss, split_by_decay
from finelens.training.state import resize_on_load


class Dpa(SelfTraining):
    """The method as a task of the training loop.

    Attributes:
        prototypes: Text prototypes Z (C, E), trained, used with unit rows.
        image_prototypes: P (C, E), renewed at the end of each epoch.
        memory_features: Latest weak-view feature of every image, (n, E), in store order.
        memory_labels: Its pseudo-label, (n,).
        log_means: Logs of the last batch means of the text posterior, (Q, C), oldest first.

    Args:
        engine: Runs the backbone.
        start: Template head (C, E), unit rows: where the text prototypes start.
        config: Options.
        scope: Tuning scope of the image tower.
        weight_decay: Decay of everything but biases.
    """

    views = ViewPlan(weak=True, strong=True)
    takes_loss = True

    def __init__(self, engine: Engine, start: Tensor, config: DpaConfig, *, scope: str = "norm", weight_decay: float = 0.1) -> None:
        super().__init__(engine, start, config, scope=scope, weight_decay=weight_decay)
        self.strengths = config.strengths
        self.prototypes = nn.Parameter(start.clone())  # Z, (C, E)
        classes, dim = start.shape
        self.register_buffer("image_prototypes", start.clone())  # P, (C, E)
        self.register_buffer("memory_features", start.new_zeros(0, dim))
        self.register_buffer("memory_labels", torch.zeros(0, dtype=torch.int64))
        self.register_buffer("log_means", start.new_zeros(0, classes))
        self.image_prototypes: Tensor
        self.memory_features: Tensor
        self.memory_labels: Tensor
        self.log_means: Tensor
        resize_on_load(self, "memory_features", "memory_labels", "log_means")
        self.hints = HintMemory()
        self.to(engine.device)

    def prepare(self, features: TargetFeatures) -> None:
        """Label every image by its text prototype, remember it, and start the image prototypes."""
        self.hints.start(features.hints)
        with torch.no_grad():
            logits = self.logits(features.global_)
        posteriors = self.hints.clamp(torch.arange(len(logits)), logits.softmax(-1))
        self.memory_features = features.global_.to(self.prototypes)
        self.memory_labels = posteriors.argmax(-1)
        self._renew_image_prototypes()
        self.class_prior.start(posteriors)

    @torch.no_grad()
    def _renew_image_prototypes(self) -> None:
        self.image_prototypes = image_prototypes(self.memory_features, self.memory_labels, F.normalize(self.prototypes, dim=-1))

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Biases without weight decay; norm weights and text prototypes with, as released."""
        named = [*self.tuned.items(), ("prototypes", self.prototypes)]
        return split_by_decay(named, self.weight_decay, lambda name, parameter: "bias" not in name)

    def cost(self) -> Cost:
        """1 weak forward without gradient, 1 strong forward with gradient."""
        return Cost(no_grad_forwards=1, grad_forwards=1)

    def logits(self, features: Tensor) -> Tensor:
        """``s f Z^T``, (B, C), of unit-norm features (B, E)."""
        return self._scale * features @ F.normalize(self.prototypes, dim=-1).T

    @torch.no_grad()
    def pseudo_labels(self, weak: Tensor) -> PseudoLabels:
        """Label unit-norm weak-view features (B, E) by both kinds of prototypes; the batch's mean enters the queue."""
        logits = self.logits(weak)
        text = logits.log_softmax(-1)
        aligned = text
        if self.config.queue:
            mean = log_batch_marginal(logits)[None]  # (1, C)
            self.log_means = torch.cat([self.log_means, mean])[-self.config.queue :]
            aligned = align_distribution(text, self.log_means, self.class_prior.prior if self.config.marginal == "prior" else None)
        share = self.strengths.image_share
        return assign(text.exp(), aligned.exp(), self._image_posterior(weak), image_share=share, weighting=self.config.weighting)

    @torch.no_grad()
    def unaligned_posterior(self, weak: Tensor) -> Tensor:
        """``a p_v + (1 - a) p_t``, (B, C): what the prior is estimated from. After alignment a posterior says what it was drawn to."""
        share = self.strengths.image_share
        return share * self._image_posterior(weak) + (1 - share) * self.logits(weak).softmax(-1)

    def _image_posterior(self, weak: Tensor) -> Tensor:
        return (self._scale * weak @ self.image_prototypes.T).softmax(-1)  # (B, C)

    def step(self, batch: Batch, epoch: int, step_in_epoch: int) -> StepOutput:
        """Pseudo-label from the weak view, then the three losses on the strong view."""
        assert batch.weak is not None
        assert batch.strong is not None
        weak = self.engine.encode_frozen(batch.weak).global_
        pseudo = self.hints.apply_to(batch.index, self.pseudo_labels(weak))
        strong = self.engine.encode(batch.strong).global_
        loss, log = self.with_mixtures(*self.loss(strong, pseudo), strong, self.prototypes, pseudo.labels, epoch, step_in_epoch)
        self.memory_features[batch.index] = weak.to(self.memory_features.dtype)
        self.memory_labels[batch.index] = pseudo.labels
        if self.config.marginal == "prior":
            self.class_prior.remember(batch.index, self.hints.clamp(batch.index, self.unaligned_posterior(weak)))
        return StepOutput(loss, log, pseudo.labels)

    def loss(self, strong: Tensor, pseudo: PseudoLabels) -> tuple[Tensor, dict[str, float | Tensor]]:
        """``mean omega CE(z, y) - reg sum_c prior_c log mean_b softmax(z_b)_c + align CE(w P Z^T, identity)``.

        Args:
            strong: Unit-norm features of the strong views, (B, E).
            pseudo: Labels and weights.

        Returns:
            The scalar loss and numbers to log.
        """
        loss, log = self_training_loss(self.logits(strong), pseudo, self.class_prior, self.strengths.marginal_weight, form=self.loss_form)
        align = alignment_loss(self.image_prototypes, F.normalize(self.prototypes, dim=-1), self.strengths.align_scale * self._scale)
        return loss + self.strengths.align_weight * align, {**log, "align": align}

    def end_epoch(self, epoch: int) -> Mapping[str, float]:
        """Renew the image prototypes from the memory, and the estimated prior."""
        self._renew_image_prototypes()
        empty = len(self.prototypes) - len(self.memory_labels.unique())
        return {"classes_without_image": float(empty), **super().end_epoch(epoch)}

    def prediction_state(self) -> dict[str, Tensor]:
        """The text prototypes; everything else serves training only."""
        return {"prototypes": self.prototypes.detach()}

    @torch.no_grad()
    def predict_logits(self, images: Tensor) -> dict[str, Tensor]:
        """One centre view against the text prototypes."""
        return {"logits": self.logits(self.engine.encode_frozen(images).global_)}

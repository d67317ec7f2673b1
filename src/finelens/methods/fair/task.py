"""FAIR (Ali, Silva, Arora, Khan, WACV 2026, arXiv 2507.09615): self-training with a learned alignment score."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from finelens.engine.engine import Engine
from finelens.errors import UserError
from finelens.images.views import views_of_centre
from finelens.methods.fair.alignment import alignment_logits, class_logits, select_crops
from finelens.methods.fair.anchors import kmeans_anchors
from finelens.methods.fair.config import FairConfig
from finelens.methods.fair.pseudo_labels import assign
from finelens.methods.parts.hint_memory import HintMemory
from finelens.methods.parts.self_training import SelfTraining
from finelens.protocol import Batch, Cost, InferenceViews, StepOutput, TargetFeatures, ViewPlan
from finelens.training.pseudo_labels import PseudoLabels, is_matrix, self_training_loss, split_by_decay


class Fair(SelfTraining):
    """The method as a task of the training loop. Numbers in comments are the steps on the method's page.

    Args:
        engine: Runs the backbone.
        start: Description head (C, E), unit rows: where the anchors start.
        config: Options.
        sentences: Features (T_c, E) of each class's descriptions, for several anchors per class.
        scope: Tuning scope of the image tower.
        weight_decay: Decay of the anchors (and of matrices that the scope includes).
        seed: Seed of the k-means.
    """

    takes_loss = True

    def __init__(
        self,
        engine: Engine,
        start: Tensor,
        config: FairConfig,
        *,
        sentences: Sequence[Tensor] = (),
        scope: str = "norm",
        weight_decay: float = 0.1,
        seed: int = 0,
    ) -> None:
        super().__init__(engine, start, config, scope=scope, weight_decay=weight_decay, seed=seed)
        self.sentences = sentences
        self.views = ViewPlan(weak=True, strong=True, crops=config.crops)
        self.inference = InferenceViews(config.crops) if config.inference == "las" else None
        # 1. Class Description Anchors
        self.anchors = nn.Parameter(start[:, None].repeat(1, config.anchors, 1), requires_grad=config.train_anchors)  # (C, J, E)
        self.hints = HintMemory()
        self.to(engine.device)

    def prepare(self, features: TargetFeatures) -> None:
        """Start several anchors from a k-means, and the class prior from the zero-shot posteriors.

        Raises:
            UserError: Several anchors without the features of the descriptions.
        """
        if self.config.anchors > 1:
            if not self.sentences:
                raise UserError(f"method.anchors={self.config.anchors} needs the features of each class's descriptions; use method.anchors=1")
            with torch.no_grad():
                self.anchors.copy_(kmeans_anchors(self.sentences, self.config.anchors, self.seed))
        self.hints.start(features.hints)
        with torch.no_grad():
            posteriors = self.logits(features.global_).softmax(-1)
        self.class_prior.start(self.hints.clamp(torch.arange(len(posteriors)), posteriors))

    def parameter_groups(self) -> list[dict[str, Any]]:
        """8. Norms without weight decay, anchors with."""
        own = [("anchors", self.anchors)] if self.config.train_anchors else []
        return split_by_decay([*self.tuned.items(), *own], self.weight_decay, is_matrix)

    def cost(self) -> Cost:
        """1 weak and M crop forwards without gradient, 1 strong forward with gradient."""
        return Cost(no_grad_forwards=1 + self.config.crops, grad_forwards=1)

    def logits(self, features: Tensor) -> Tensor:
        """Scaled class scores (..., C) of unit-norm features (..., E) under the current anchors."""
        return class_logits(features, F.normalize(self.anchors, dim=-1), self._scale)

    def las_logits(self, crops: Tensor, reference: Tensor) -> Tensor:
        """3. and 4. Scaled Learned Alignment Score (B, C) of crop features (B, M, E) around a global feature (B, E)."""
        kept, weights = select_crops(crops, reference, self.config.keep, self.config.crop_scale)
        return alignment_logits(kept, weights, F.normalize(self.anchors, dim=-1), self._scale)

    @torch.no_grad()
    def pseudo_labels(self, weak: Tensor, crops: Tensor | None) -> PseudoLabels:
        """3. to 6. What the current model makes of the weak view and its crops.

        Args:
            weak: Global features of the weak views, (B, E).
            crops: Crop features (B, M, E); None scores the weak view in their place.
        """
        global_logits = self.logits(weak)
        local_logits = global_logits if crops is None else self.las_logits(crops, weak)
        config = self.config
        return assign(local_logits, global_logits, target=config.pseudo_label, eta=config.eta, weighting=config.weighting)

    def step(self, batch: Batch, epoch: int, step_in_epoch: int) -> StepOutput:
        """Pseudo-label from the weak view and the crops, then weighted cross-entropy and marginal term on the strong view."""
        assert batch.weak is not None
        assert batch.strong is not None
        weak = self.engine.encode_frozen(batch.weak).global_
        crops = None if batch.crops is None else self._encode_crops(batch.crops)
        pseudo = self.hints.apply_to(batch.index, self.pseudo_labels(weak, crops))
        strong = self.engine.encode(batch.strong).global_
        loss, log = self.with_mixtures(*self.loss(strong, pseudo), strong, self.anchors, pseudo.labels, epoch, step_in_epoch)
        self.class_prior.remember(batch.index, pseudo.posterior)
        return StepOutput(loss, log, pseudo.labels)

    def _encode_crops(self, crops: Tensor) -> Tensor:
        return self.engine.encode_frozen(crops.flatten(0, 1)).global_.unflatten(0, crops.shape[:2])  # (B, M, E)

    def loss(self, strong: Tensor, pseudo: PseudoLabels) -> tuple[Tensor, dict[str, float | Tensor]]:
        """7. ``mean_b omega_b CE(z_b, y_b) - lambda sum_c prior_c log mean_b softmax(z_b)_c``.

        Args:
            strong: Global features of the strong views, (B, E).
            pseudo: Labels and weights.

        Returns:
            The scalar loss and numbers to log.
        """
        return self_training_loss(self.logits(strong), pseudo, self.class_prior, self.config.marginal_weight, form=self.loss_form)

    def prediction_state(self) -> dict[str, Tensor]:
        """The anchors; the memories of training stay behind."""
        return {"anchors": self.anchors.detach()}

    @torch.no_grad()
    def crop_weights(self, images: Tensor, crops: Tensor) -> Tensor | None:
        """3. Weights of the selected crops, 0 for the others."""
        reference, features = self.engine.encode_frozen(images).global_, self._encode_crops(crops)
        relevance = torch.einsum("bme,be->bm", features, reference)
        _, weights = select_crops(features, reference, self.config.keep, self.config.crop_scale)
        return torch.zeros_like(relevance).scatter_(1, relevance.topk(weights.shape[1], dim=1).indices, weights)

    @torch.no_grad()
    def predict_logits(self, images: Tensor) -> dict[str, Tensor]:
        """9. One centre view against the anchors; with ``inference="las"``, crops of that view stand in for those of the image."""
        if self.inference is not None:
            return self.predict_from_views(images, views_of_centre(images, self.engine.backbone.preprocess, self.inference))
        return {"logits": self.logits(self.engine.encode_frozen(images).global_)}

    @torch.no_grad()
    def predict_from_views(self, images: Tensor, views: Tensor) -> dict[str, Tensor]:
        """9. with ``inference="las"``: the log of the mean posterior of the centre view and its crops."""
        features = self.engine.encode_frozen(images).global_
        global_, las = self.logits(features), self.las_logits(self._encode_crops(views), features)
        mean = torch.logaddexp(global_.log_softmax(-1), las.log_softmax(-1)) - math.log(2)
        return {"logits": mean, "global": global_, "las": las}

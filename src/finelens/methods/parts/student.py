"""The student that LaFTer and NoLA train: visual prompts, norm layers and a linear head on the un-normalised feature.

Shapes: B images, C classes, E joint width, W token width, P prompts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from finelens.core.options import require
from finelens.engine.engine import Engine
from finelens.images.randomness import seed_for
from finelens.methods.parts.self_training import SelfTraining
from finelens.protocol import Backbone, TargetFeatures
from finelens.training.marginal import Marginal
from finelens.training.pseudo_labels import PseudoLabels, self_training_loss, split_by_decay

# CLIP's projected features have norms around a tenth of its logit scale (10 and 100).
SCALE_SHARE = 0.1
# Norms of a projection that normalises by itself are off by rounding only.
UNIT_TOLERANCE = 1e-3


@dataclass(frozen=True)
class StudentConfig:
    """Options that both methods share (``--set method.key=value``).

    Attributes:
        prompts: Visual prompt tokens, where the tower has a token sequence.
        label_smoothing: Share of every target that is spread evenly over the classes.
        marginal: What the batch marginal is drawn to: ``none`` (published), ``uniform`` or ``prior`` (estimated without labels).
        marginal_weight: Weight of that term.
    """

    prompts: int = 16
    label_smoothing: float = 0.1
    marginal: Marginal = "none"
    marginal_weight: float = 1.0

    def __post_init__(self) -> None:
        require(self.prompts >= 0, "method.prompts", "0 (none) or more", self.prompts)
        require(0 <= self.label_smoothing < 1, "method.label_smoothing", "from 0 to below 1", self.label_smoothing)
        require(0 <= self.marginal_weight < math.inf, "method.marginal_weight", "at least 0 and finite", self.marginal_weight)


class Student(SelfTraining):
    """Prompts, norms and head, their loss and their prediction. Where the pseudo-labels come from is the subclass's business.

    Attributes:
        head: Linear head (C, E), trained; rows of any norm.
        prompts: Visual prompts (P, W), trained; None where the tower takes none.
        feature_scale: 1, or what stands in for the feature's norm on a tower whose projection has none.

    Args:
        engine: Runs the backbone.
        start: Where the head starts, (C, E).
        config: Options.
        scope: Tuning scope of the image tower.
        weight_decay: Decay of everything that is trained.
        seed: Seed of the prompts.
    """

    config: StudentConfig

    def __init__(
        self, engine: Engine, start: Tensor, config: StudentConfig, *, scope: str = "norm", weight_decay: float = 0.1, seed: int = 0
    ) -> None:
        super().__init__(engine, start, config, scope=scope, weight_decay=weight_decay, seed=seed)
        self.head = nn.Parameter(start.clone())  # (C, E)
        wanted = config.prompts > 0 and engine.backbone.has_token_sequence
        self.prompts = nn.Parameter(start_prompts(engine.backbone, config.prompts, seed).to(start.dtype)) if wanted else None  # (P, W)
        self.register_buffer("feature_scale", torch.ones((), dtype=start.dtype))
        self.feature_scale: Tensor

    def prepare(self, features: TargetFeatures) -> None:
        """Say what the tower cannot do, and see whether its features have norms of their own."""
        backbone = self.engine.backbone
        if self.config.prompts and self.prompts is None:
            self.engine.console.warn(
                f"backbone {backbone.name!r} has no token sequence, so visual prompts are not available; norm layers and the head learn without them"
            )
        with torch.no_grad():
            norms = backbone.project(features.cls).norm(dim=-1)
        if (norms - 1).abs().max() < UNIT_TOLERANCE:
            self.feature_scale.fill_(SCALE_SHARE * backbone.logit_scale)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Everything that learns takes weight decay, as published."""
        own = [("head", self.head)] if self.prompts is None else [("head", self.head), ("prompts", self.prompts)]
        return split_by_decay([*self.tuned.items(), *own], self.weight_decay, lambda name, parameter: True)

    def logits(self, images: Tensor, *, frozen: bool = False) -> Tensor:
        """``W g`` with the un-normalised feature g of the prompted tower, (B, C).

        The direction of g is that of the global feature, its length that of the projected token; for a tower that projects its pooled token, g is
        the projected token itself.

        Args:
            images: uint8 views (B, 3, S, S).
            frozen: Whether to go without gradient.
        """
        encode = self.engine.encode_frozen if frozen else self.engine.encode
        tokens = encode(images, prompts=self.prompts)
        length = self.engine.backbone.project(tokens.cls).norm(dim=-1, keepdim=True)  # (B, 1)
        return self.feature_scale * length * tokens.global_ @ self.head.T

    def loss(self, logits: Tensor, pseudo: PseudoLabels) -> tuple[Tensor, dict[str, float | Tensor]]:
        """Label-smoothed cross-entropy to the pseudo-labels, and the marginal term where one is asked for.

        Args:
            logits: Of the strong views, (B, C).
            pseudo: Labels; every weight is 1.

        Returns:
            The scalar loss and numbers to log.
        """
        return self_training_loss(logits, pseudo, self.class_prior, self.config.marginal_weight, self.config.label_smoothing)

    def prediction_state(self) -> dict[str, Tensor]:
        """Head, prompts and the feature's scale; teachers and memories stay behind."""
        prompts = {} if self.prompts is None else {"prompts": self.prompts.detach()}
        return {"head": self.head.detach(), "feature_scale": self.feature_scale, **prompts}

    @torch.no_grad()
    def predict_logits(self, images: Tensor) -> dict[str, Tensor]:
        """The student on one centre view."""
        return {"logits": self.logits(images, frozen=True)}


def start_prompts(backbone: Backbone, count: int, seed: int) -> Tensor:
    """Prompts (P, W) from ``U(-v, v)``, ``v = sqrt(6 / (3 p^2 + W))``, p the side of a patch in pixels (visual prompt tuning, Jia et al., 2022)."""
    patch = backbone.preprocess.image_size // backbone.grid[0]
    bound = math.sqrt(6 / (3 * patch**2 + backbone.width))
    rng = torch.Generator().manual_seed(seed_for(seed, "visual prompts"))
    return bound * (2 * torch.rand(count, backbone.width, generator=rng) - 1)

"""A linear classifier trained on texts alone: stage 1 of LaFTer (Mirza et al., NeurIPS 2023). Documentation: docs/methods/text-classifier.md."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from finelens.classes.heads import ClassHeads
from finelens.core.console import Console
from finelens.core.options import require
from finelens.engine.engine import Engine
from finelens.images.randomness import seed_for
from finelens.methods.parts.frozen import FrozenTask
from finelens.protocol import TargetFeatures
from finelens.training.config import TrainingConfig


@dataclass(frozen=True)
class TextClassifierConfig:
    """Options of the method (``--set method.key=value``).

    Attributes:
        text_steps: Full-batch steps.
        text_lr: Learning rate, constant.
        text_noise: Standard deviation of the noise that each step adds to every number of a text feature.
        text_weight_decay: Decoupled weight decay.
        label_smoothing: Share of every target that is spread evenly over the classes.
    """

    text_steps: int = 500
    text_lr: float = 5e-4
    text_noise: float = 0.1
    text_weight_decay: float = 0.01
    label_smoothing: float = 0.1

    def __post_init__(self) -> None:
        require(self.text_steps >= 1, "method.text_steps", "at least 1", self.text_steps)
        require(0 < self.text_lr < math.inf, "method.text_lr", "above 0 and finite", self.text_lr)
        for name in ("text_noise", "text_weight_decay"):
            value = getattr(self, name)
            require(0 <= value < math.inf, f"method.{name}", "at least 0 and finite", value)
        require(0 <= self.label_smoothing < 1, "method.label_smoothing", "from 0 to below 1", self.label_smoothing)


CONFIG = TextClassifierConfig
# Numbers of a feature that no two different texts share.
ORDERED_BY = 8


def build(engine: Engine, heads: ClassHeads, config: TextClassifierConfig, training: TrainingConfig, seed: int) -> TextClassifier:
    """The task of this method; arguments are those of :class:`finelens.methods.registry.Method`."""
    return TextClassifier(engine, heads, config, seed=seed)


class TextClassifier(FrozenTask):
    """Trains its head on texts in :meth:`prepare` and scores the unit-norm global feature with it.

    Attributes:
        head: W (C, E), rows of any norm.

    Args:
        engine: Runs the backbone.
        heads: Text heads and the features of every text.
        config: Options.
        seed: Seed of the start and of the noise.
    """

    def __init__(self, engine: Engine, heads: ClassHeads, config: TextClassifierConfig, *, seed: int) -> None:
        super().__init__(engine)
        self.texts, self.config, self.seed = heads.texts, config, seed
        self.register_buffer("head", heads.templates.clone())
        self.head: Tensor
        self.to(engine.device)

    def prepare(self, features: TargetFeatures) -> None:
        """Train the head; the images are not looked at."""
        self.head = train_text_head(self.texts, self.config, self.seed, self.engine.console).to(self.head)

    @torch.no_grad()
    def predict_logits(self, images: Tensor) -> dict[str, Tensor]:
        """``W f`` of the unit-norm global feature; the method has no logit scale."""
        return {"logits": self.engine.encode_frozen(images).global_ @ self.head.T}


def train_text_head(texts: Sequence[Tensor], config: TextClassifierConfig, seed: int, console: Console) -> Tensor:
    """Train a bias-free linear layer to tell the classes of texts.

    Args:
        texts: Features (T_c, E) of each class's texts, T_c at least 1.
        config: Options.
        seed: Seed of the start and of the noise.
        console: Shows the progress.

    Returns:
        W (C, E), in the type and on the device of the features, without gradient. The order of the classes decides no number: what is drawn for a
        class goes by its first text.
    """
    order = np.lexsort(torch.stack([own[0] for own in texts]).T[:ORDERED_BY].cpu().numpy())
    return _train([texts[c] for c in order], config, seed, console)[torch.from_numpy(order.argsort())]


def _train(texts: Sequence[Tensor], config: TextClassifierConfig, seed: int, console: Console) -> Tensor:
    features = F.normalize(torch.cat(list(texts)), dim=-1)  # (T, E)
    labels = torch.cat([torch.full((len(own),), c) for c, own in enumerate(texts)]).to(features.device)  # (T,)
    rng = torch.Generator().manual_seed(seed_for(seed, "text classifier"))
    weight = linear_start(len(texts), features.shape[1], rng).to(features).requires_grad_()
    optimizer = torch.optim.AdamW([weight], lr=config.text_lr, weight_decay=config.text_weight_decay)
    with console.progress(config.text_steps, "train on texts", "step") as bar, torch.enable_grad():
        for _ in range(config.text_steps):
            # Drawn on the host, so that every device sees the same numbers.
            noise = torch.randn(features.shape, generator=rng).to(features)
            optimizer.zero_grad()
            text_loss(weight, features + config.text_noise * noise, labels, config.label_smoothing).backward()
            optimizer.step()
            bar.update(1)
    return weight.detach()


def text_loss(weight: Tensor, features: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    """Label-smoothed ``mean_t CE(W (t + noise), c_t)``; the noisy features are not normalised again and there is no logit scale.

    Args:
        weight: W, (C, E).
        features: Noisy text features, (T, E).
        labels: Class of each text, (T,).
        smoothing: Share of every target that is spread evenly over the classes.
    """
    return F.cross_entropy(features @ weight.T, labels, label_smoothing=smoothing)


def linear_start(outputs: int, inputs: int, rng: torch.Generator) -> Tensor:
    """Where a linear layer of torch starts, ``U(-1/sqrt(inputs), 1/sqrt(inputs))``, (outputs, inputs), from a given generator."""
    return (2 * torch.rand(outputs, inputs, generator=rng) - 1) / math.sqrt(inputs)

"""The optimisation, common to all methods that train."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from finelens.core.options import require

Precision = Literal["auto", "float32", "bfloat16"]


Compile = Literal["auto", "on", "off"]


Guard = Literal["on", "off"]


Loss = Literal["ce", "infoloob", "m2-mix"]


@dataclass(frozen=True)
class TrainingConfig:
    """The optimisation, common to all trainable methods.

    Attributes:
        epochs: Passes over the images.
        batch_size: Images of one optimiser step.
        lr: Peak learning rate.
        min_lr: Learning rate at the end of the cosine.
        weight_decay: Decoupled weight decay of the parameters that take it.
        scope: Which image-tower parameters learn: ``none``, ``norm``, ``last-k-norm``, ``lora-r``, ``svd`` or ``all``, see ``Backbone.tunable``.
        cached_prefix: With ``scope=last-k-norm``: draws of views that each image has. Epochs go round them, and what the frozen blocks give for them
            is kept. 0: new views in every epoch, as published.
        guard: ``on``: where the starting model hardly knows the classes (``evaluation.weak_start``) nothing is trained and its answers are kept;
            ``off`` trains from any start, as published.
        loss: Classification loss of methods that leave the choice: ``ce`` (cross-entropy, as published), ``infoloob`` in its place, or ``m2-mix``: a
            term of hard negatives between images and texts beside it (docs/losses.md).
        mix_weight: Weight of that term in the first epoch; it falls as 1 / epoch.
        precision: Arithmetic of the image tower, and of the embedded backbone's texts; ``auto`` lets the device decide.
        compile: Whether the tower goes through ``torch.compile``; ``auto``: on CUDA for long runs. The same numbers up to rounding.
    """

    epochs: int = 15
    batch_size: int = 64
    lr: float = 1e-4
    min_lr: float = 2e-6
    weight_decay: float = 0.1
    scope: str = "norm"
    cached_prefix: int = 0
    guard: Guard = "on"
    loss: Loss = "ce"
    mix_weight: float = 0.05
    precision: Precision = "auto"
    compile: Compile = "auto"

    def __post_init__(self) -> None:
        require(self.epochs >= 1, "training.epochs", "at least 1", self.epochs)
        require(self.batch_size >= 1, "training.batch_size", "at least 1", self.batch_size)
        require(0 < self.lr < math.inf, "training.lr", "above 0 and finite", self.lr)
        require(0 <= self.min_lr <= self.lr, "training.min_lr", f"between 0 and training.lr ({self.lr:g})", self.min_lr)
        require(0 <= self.weight_decay < math.inf, "training.weight_decay", "at least 0 and finite", self.weight_decay)
        require(bool(self.scope.strip()), "training.scope", "a tuning scope such as norm", self.scope)
        require(self.cached_prefix >= 0, "training.cached_prefix", "0 (new views in every epoch) or more", self.cached_prefix)
        require(0 <= self.mix_weight < math.inf, "training.mix_weight", "at least 0 and finite", self.mix_weight)
        if self.cached_prefix:
            wanted = "last-k-norm where training.cached_prefix is given, for example last-3-norm: other scopes leave no first blocks as they are"
            require(self.scope.startswith("last-"), "training.scope", wanted, self.scope)
            require(self.compile != "on", "training.compile", "auto or off beside training.cached_prefix, which enters the tower in the middle", "on")

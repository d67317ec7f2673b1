"""Options of DPA."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from finelens.core.options import require
from finelens.methods.dpa.presets import PRESETS
from finelens.training.config import TrainingConfig
from finelens.training.marginal import Marginal

PresetName = Literal[
    "default",
    "dtd",
    "caltech101",
    "flowers102",
    "eurosat",
    "fgvc",
    "pets",
    "cars",
    "sun397",
    "cifar10",
    "cifar100",
    "ucf101",
    "food101",
    "imagenet",
]


@dataclass(frozen=True)
class Strengths:
    """The four numbers that a preset decides; see :class:`DpaConfig`."""

    image_share: float
    align_scale: float
    marginal_weight: float
    align_weight: float


@dataclass(frozen=True)
class DpaConfig:
    """Options of the method (``--set method.key=value``).

    The four that may be null take the preset's value, and hold that number from then on.

    Attributes:
        preset: ``default`` (the median of the published settings, with the common optimisation), or the published settings of one data set, learning
            rate and epochs included.
        image_share: Share a of the image prototypes in the pseudo-label; 0 labels by text alone, 1 by images alone.
        align_scale: Scale of the alignment term as a share of the model's logit scale (published: 1 and 0.01 of CLIP's 100).
        marginal_weight: Weight of the marginal term.
        align_weight: Weight of the alignment term.
        marginal: What the batch marginal is drawn to: ``uniform`` (published), ``prior`` (estimated without labels, and what distribution alignment
            draws to), ``none`` (no such term; distribution alignment as published).
        queue: Batch means that distribution alignment averages, the current one included; 0 leaves distribution alignment out.
        weighting: Whether pseudo-labels are weighted by their ranking.
    """

    preset: PresetName = "default"
    image_share: float | None = None
    align_scale: float | None = None
    marginal_weight: float | None = None
    align_weight: float | None = None
    marginal: Marginal = "uniform"
    queue: int = 32
    weighting: bool = True

    def __post_init__(self) -> None:
        require(self.preset in PRESETS, "method.preset", f"one of {', '.join(PRESETS)}", self.preset)
        for name in Strengths.__dataclass_fields__:
            if getattr(self, name) is None:
                object.__setattr__(self, name, getattr(PRESETS[self.preset], name))
            value = getattr(self, name)
            require(0 <= value < math.inf, f"method.{name}", "at least 0 and finite", value)
        require(self.strengths.image_share <= 1, "method.image_share", "between 0 and 1", self.image_share)
        require(self.queue >= 0, "method.queue", "0 (no distribution alignment) or more", self.queue)

    @property
    def training_defaults(self) -> dict[str, float]:
        """Learning rate and epochs of a data set's preset. A rate below the common final one stays where it is (the released cosine rises)."""
        if self.preset == "default":
            return {}
        preset = PRESETS[self.preset]
        return {"lr": preset.lr, "min_lr": min(TrainingConfig.min_lr, preset.lr), "epochs": preset.epochs}

    @property
    def strengths(self) -> Strengths:
        """The resolved numbers."""
        return Strengths(**{name: getattr(self, name) for name in Strengths.__dataclass_fields__})

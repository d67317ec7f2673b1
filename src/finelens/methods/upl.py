"""UPL (Huang, Chu, Wei, arXiv 2204.03649): CoOp on the model's own most confident labels. Documentation: docs/methods/upl.md."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from finelens.classes.heads import ClassHeads
from finelens.core.options import require
from finelens.engine.engine import Engine
from finelens.methods.coop.config import CoopConfig
from finelens.methods.coop.task import TRAINING, Coop, check_backbone
from finelens.protocol import Hints, TargetFeatures
from finelens.solvers.prior import estimate_prior
from finelens.training.config import TrainingConfig

__all__ = ["CONFIG", "TRAINING", "build"]


@dataclass(frozen=True)
class UplConfig(CoopConfig):
    """Options of the method (``--set method.key=value``), and those of :class:`CoopConfig`.

    Attributes:
        per_class: Images of a class to learn from: the most confident ones.
        sets: Prompt sets whose logits are averaged; each starts from its own random context.
        head: Text prototypes that label the images: mean of each class's ``descriptions`` (templates stand in), or the ensemble of ``templates``.
        marginal: ``uniform`` takes posteriors as they are; ``prior`` corrects them by a class prior estimated without labels before the selection.
    """

    per_class: int = 16
    sets: int = 4
    head: Literal["descriptions", "templates"] = "descriptions"
    marginal: Literal["uniform", "prior"] = "uniform"

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.per_class >= 1, "method.per_class", "at least 1", self.per_class)
        require(self.sets >= 1, "method.sets", "at least 1", self.sets)
        require(self.sets == 1 or not self.init, "method.sets", "1 with method.init, where all sets would start alike", self.sets)


CONFIG = UplConfig


class Upl(Coop):
    """CoOp that chooses and labels its images itself; arguments as for :class:`Coop`."""

    config: UplConfig

    def __init__(self, engine: Engine, heads: ClassHeads, config: UplConfig, *, weight_decay: float, seed: int) -> None:
        super().__init__(engine, heads, config, weight_decay=weight_decay, seed=seed, sets=config.sets)
        self.zero_shot: Tensor = getattr(heads, config.head)

    def training_set(self, features: TargetFeatures) -> tuple[Tensor, Tensor]:
        """The most confident images of each class, and all that were hinted at."""
        posteriors = self.logits(features.global_, self.zero_shot).softmax(-1)
        if self.config.marginal == "prior":
            posteriors = posteriors * estimate_prior(posteriors).to(posteriors)
            posteriors = posteriors / posteriors.sum(1, keepdim=True)
        return select_confident(posteriors.cpu(), self.config.per_class, features.hints)


def select_confident(posteriors: Tensor, per_class: int, hints: Hints | None = None) -> tuple[Tensor, Tensor]:
    """Positions (K,), ascending, and classes (K,) of the images to learn from.

    An image belongs to the class it is most likely of. Hinted images come first, all of them, with the class that was given; the most confident
    others fill a class up. Images of none of the classes are left out.

    Args:
        posteriors: (N, C).
        per_class: Images of a class, unless more of it were hinted at.
        hints: Given labels.
    """
    confidence, labels = posteriors.max(1)
    place = torch.ones(len(labels), dtype=torch.bool)
    if hints is not None:
        labels = labels.clone().index_put((hints.index,), hints.label)
        # Above every probability: given labels are taken first.
        confidence = confidence.clone().index_fill(0, hints.index, 2.0)
        place[hints.index] = False
    order = confidence.argsort(descending=True, stable=True)
    chosen = [
        members[(torch.arange(len(members)) < per_class) | ~place[members]]
        for c in range(posteriors.shape[1])
        for members in [order[labels[order] == c]]
    ]
    index = torch.cat(chosen).sort().values
    return index, labels[index]


def build(engine: Engine, heads: ClassHeads, config: UplConfig, training: TrainingConfig, seed: int) -> Upl:
    """The task of this method; arguments are those of :class:`finelens.methods.registry.Method`."""
    check_backbone(engine, heads, "upl", training.scope)
    return Upl(engine, heads, config, weight_decay=training.weight_decay, seed=seed)

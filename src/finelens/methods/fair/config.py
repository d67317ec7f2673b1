"""Options of FAIR. Which of them the paper states is in the table of docs/methods/fair.md."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from finelens.core.options import require
from finelens.training.marginal import Marginal


@dataclass(frozen=True)
class FairConfig:
    """Options of the method (``--set method.key=value``).

    Attributes:
        anchors: Class Description Anchors per class, J; above 1 they start from a k-means of the class's descriptions.
        train_anchors: Whether the anchors are trained.
        crops: Candidate crops per image, M; 0 scores the whole image instead of crops.
        keep: Crops that are kept, K; equal to ``crops`` for no selection.
        crop_scale: ``1 / tau_w``, factor of the crop-to-image cosines inside the softmax that weights the crops; 0 weights them equally.
        pseudo_label: Argmax of the posterior of the kept crops alone (``las``), or of the ``mean`` of it and that of the whole image.
        weighting: Whether pseudo-labels are weighted.
        eta: Power of the weight's ambiguity factor; 0 leaves it out.
        marginal: What the batch marginal is drawn to: ``uniform``, ``prior`` (estimated without labels) or ``none``.
        marginal_weight: Weight lambda of that term.
        inference: ``global`` scores one centre view; ``las`` averages it with the alignment score of ``crops`` crops of the image.
    """

    anchors: int = 1
    train_anchors: bool = True
    crops: int = 16
    keep: int = 8
    crop_scale: float = math.exp(4)
    pseudo_label: Literal["mean", "las"] = "las"
    weighting: bool = True
    eta: float = 1.0
    marginal: Marginal = "uniform"
    marginal_weight: float = 1.0
    inference: Literal["global", "las"] = "global"

    def __post_init__(self) -> None:
        require(self.anchors >= 1, "method.anchors", "at least 1", self.anchors)
        require(self.crops >= 0, "method.crops", "0 (no crops) or more", self.crops)
        if self.crops:
            require(1 <= self.keep <= self.crops, "method.keep", f"from 1 to method.crops ({self.crops})", self.keep)
        require(self.crops > 0 or self.inference == "global", "method.inference", "global where method.crops is 0", self.inference)
        for name in ("crop_scale", "eta", "marginal_weight"):
            value = getattr(self, name)
            require(0 <= value < math.inf, f"method.{name}", "at least 0 and finite", value)

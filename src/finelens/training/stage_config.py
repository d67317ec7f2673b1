"""Options of what comes before a method: another training of both towers, from which the method starts."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal

from finelens.core.options import require

StageName = Literal["none", "clip-refine"]


@dataclass(frozen=True)
class StageConfig:
    """Options of ``--stage`` (``--set stage.key=value``), see docs/stages.md.

    Attributes:
        name: ``none``, or ``clip-refine``: one pass over pairs of an image and a text that draws both towers together.
        captions: File of such pairs (``--captions``); None makes them of the run's own photographs and its class texts.
        confident: Share of the photographs of each predicted class, the surest first, that become pairs where there is no such file.
        epochs: Passes over the pairs.
        batch_size: Pairs of one step.
        lr: Learning rate.
        weight_decay: Decoupled weight decay of matrices.
        scope: Which image-tower parameters learn: ``all``, ``norm`` or ``last-k-norm``.
        text: ``auto``: the singular values of the text tower learn too, where it can be differentiated; ``frozen``: it stays as it is.
        reference_weight: Weight lambda of the alignment with random references.
        own_match: Share of the pairs themselves in the soft targets; the rest are the answers of the model that the stage starts from.
    """

    name: StageName = "none"
    captions: str | None = None
    confident: float = 0.5
    epochs: int = 1
    batch_size: int = 64
    lr: float = 1e-6
    weight_decay: float = 0.1
    scope: str = "all"
    text: Literal["auto", "frozen"] = "auto"
    reference_weight: float = 1.0
    own_match: float = 0.5

    def __post_init__(self) -> None:
        require(self.captions is None or bool(self.captions.strip()), "stage.captions", "the path of a file, or null", self.captions)
        require(self.captions is None or self.name != "none", "stage.captions", "left out where there is no --stage that reads it", self.captions)
        require(0 < self.confident <= 1, "stage.confident", "above 0 and at most 1", self.confident)
        require(self.epochs >= 1, "stage.epochs", "at least 1", self.epochs)
        require(self.batch_size >= 2, "stage.batch_size", "at least 2", self.batch_size)
        require(0 <= self.lr < math.inf, "stage.lr", "at least 0 and finite", self.lr)
        require(0 <= self.weight_decay < math.inf, "stage.weight_decay", "at least 0 and finite", self.weight_decay)
        plain = re.fullmatch(r"all|norm|last-[1-9][0-9]*-norm", self.scope) is not None
        require(plain, "stage.scope", "all, norm or last-k-norm with k from 1 on", self.scope)
        require(0 <= self.reference_weight < math.inf, "stage.reference_weight", "at least 0 and finite", self.reference_weight)
        require(0 <= self.own_match <= 1, "stage.own_match", "between 0 and 1", self.own_match)

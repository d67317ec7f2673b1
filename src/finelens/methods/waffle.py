"""WaffleCLIP (Roth et al., ICCV 2023, arXiv 2306.07282). Documentation: docs/methods/waffle.md."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from finelens.classes.heads import ClassHeads
from finelens.classes.phrases import as_clause, random_phrases
from finelens.core.options import require
from finelens.engine.engine import Engine
from finelens.methods.parts.frozen import HeadTask
from finelens.protocol import Backbone
from finelens.training.config import TrainingConfig


@dataclass(frozen=True)
class WaffleConfig:
    """Options of the method (``--set method.key=value``).

    Attributes:
        count: Pairs of random phrases: one of words, one of letters.
        concept: What all classes are, such as ``bird``; ``"a photo of a bird: a {class}, which has ..."``. Empty leaves it out.
    """

    count: int = 15
    concept: str = ""

    def __post_init__(self) -> None:
        require(1 <= self.count <= 1000, "method.count", "from 1 to 1000", self.count)


CONFIG = WaffleConfig


def build(engine: Engine, heads: ClassHeads, config: WaffleConfig, training: TrainingConfig, seed: int) -> HeadTask:
    """The task of this method; arguments are those of :class:`finelens.methods.registry.Method`."""
    # A loaded model brings its own head.
    head = heads.templates if heads.classes is None else waffle_head(engine.backbone, heads.classes.names, config, seed)
    return HeadTask(engine, head)


@torch.no_grad()
def waffle_head(backbone: Backbone, names: tuple[str, ...], config: WaffleConfig, seed: int) -> torch.Tensor:
    """Mean feature (C, E) of each class with the same random phrases; not normalised, so that a score is the mean of cosines."""
    phrases = random_phrases(config.count, seed)
    before = f"a photo of a {config.concept}: a " if config.concept else ""
    texts = [before + as_clause(name, phrase) for name in names for phrase in phrases]
    return backbone.encode_text(texts).unflatten(0, (len(names), len(phrases))).mean(1)  # (C, E)

"""CARPRT (ICLR 2026): weights of the prompt templates for each class, from unlabelled images. Documentation: docs/methods/carprt.md."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from finelens.classes.heads import ClassHeads, encode_templates
from finelens.core.options import require
from finelens.engine.engine import Engine
from finelens.methods.parts.frozen import HeadTask
from finelens.protocol import Hints, TargetFeatures
from finelens.training.config import TrainingConfig


@dataclass(frozen=True)
class CarprtConfig:
    """Options of the method (``--set method.key=value``).

    Attributes:
        temperature: Divisor of the scores inside the softmax over the prompts.
    """

    temperature: float = 1.0

    def __post_init__(self) -> None:
        require(0 < self.temperature < float("inf"), "method.temperature", "above 0 and finite", self.temperature)


CONFIG = CarprtConfig
# Images in work at a time.
CHUNK = 512


def build(engine: Engine, heads: ClassHeads, config: CarprtConfig, training: TrainingConfig, seed: int) -> Carprt:
    """The task of this method; arguments are those of :class:`finelens.methods.registry.Method`."""
    return Carprt(engine, heads, config)


class Carprt(HeadTask):
    """Scores an image with the weighted sum of each class's prompts.

    Attributes:
        head: (C, E); rows are shorter than unit norm.

    Args:
        engine: Runs the backbone.
        heads: Text heads; without the classes' names, as with prototypes, each class has one prompt and keeps it.
        config: Options.
    """

    def __init__(self, engine: Engine, heads: ClassHeads, config: CarprtConfig) -> None:
        super().__init__(engine, heads.templates)
        self.config = config
        classes = heads.classes
        # Prototypes have no templates, and a loaded model no names.
        written = classes if classes is not None and classes.templates else None
        self.prompts = self.head[:, None] if written is None else encode_templates(engine.backbone, written).to(self.head)  # (C, P, E)

    @torch.no_grad()
    def prepare(self, features: TargetFeatures) -> None:
        """Weigh the prompts by the images."""
        scale = self.engine.backbone.logit_scale / self.config.temperature
        weights = prompt_weights(features.global_.to(self.prompts), self.prompts, scale, features.hints)
        self.head = torch.einsum("cp,cpe->ce", weights, self.prompts)


def prompt_weights(features: Tensor, prompts: Tensor, scale: float, hints: Hints | None = None) -> Tensor:
    """``w_cp = softmax_p(mean of s <x_i, t_cp> over the images that prompt p alone names c)``, rows of sum 1.

    A prompt that names no image c has weight 0 for c, unless no prompt does: then all count alike.

    Args:
        features: Unit norm, (N, E).
        prompts: Unit-norm features of each prompt for each class, (C, P, E).
        scale: s.
        hints: Images whose class is known count for it under every prompt; those of no class do not count.

    Returns:
        (C, P).
    """
    labels = torch.full((len(features),), -2, device=features.device)
    if hints is not None:
        labels[hints.index.to(labels.device)] = hints.label.to(labels.device)
    sums = prompts.new_zeros(prompts.shape[:2], dtype=torch.float64)
    counts = torch.zeros_like(sums)
    at = torch.arange(prompts.shape[1], device=prompts.device)
    for x, known in zip(features.split(CHUNK), labels.split(CHUNK), strict=True):
        logits = scale * torch.einsum("ne,cpe->npc", x, prompts)  # (n, P, C)
        named = logits.argmax(2).where(known[:, None] < 0, known[:, None])  # (n, P)
        winning = logits.gather(2, named[..., None])[..., 0].double()
        counted = (known != -1).double()[:, None].expand_as(winning)
        where = (named, at.expand_as(named))
        sums.index_put_(where, winning * counted, accumulate=True)
        counts.index_put_(where, counted, accumulate=True)
    scores = (sums / counts.clamp_min(1)).masked_fill(counts == 0, -torch.inf)
    scores[counts.sum(1) == 0] = 0
    return scores.softmax(1).to(prompts)

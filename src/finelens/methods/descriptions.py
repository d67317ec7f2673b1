"""Classification by description (Menon and Vondrick, ICLR 2023, arXiv 2210.07183). Documentation: docs/methods/descriptions.md.

Shapes: B images, C classes, T texts of a class (padded), E joint width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from finelens.classes.heads import ClassHeads, pad_descriptions, present_texts
from finelens.classes.phrases import as_clause
from finelens.core.options import require
from finelens.engine.engine import Engine
from finelens.methods.parts.frozen import WrittenTask
from finelens.protocol import ClassSet
from finelens.training.config import TrainingConfig

Weighting = Literal["uniform", "cosine", "softmax"]


@dataclass(frozen=True)
class DescriptionsConfig:
    """Options of the method (``--set method.key=value``).

    Attributes:
        aggregate: A class's score is the ``mean`` of the scores of its descriptions, or their ``max``.
        weighting: Weights of the mean: ``uniform`` (published), ``cosine`` with the class name (microCLIP), or a ``softmax`` of that cosine (WCA).
        softmax_scale: Factor of the cosine inside the softmax.
        wrap: Whether descriptions become ``"{class}, which has {description}."``: ``auto`` wraps those that neither name the class nor end in a full
            stop, ``always`` and ``never`` say what they do.
    """

    aggregate: Literal["mean", "max"] = "mean"
    weighting: Weighting = "uniform"
    softmax_scale: float = math.exp(2)
    wrap: Literal["auto", "always", "never"] = "auto"

    def __post_init__(self) -> None:
        require(self.aggregate == "mean" or self.weighting == "uniform", "method.weighting", "uniform where method.aggregate is max", self.weighting)
        require(0 <= self.softmax_scale < math.inf, "method.softmax_scale", "at least 0 and finite", self.softmax_scale)


CONFIG = DescriptionsConfig


def build(engine: Engine, heads: ClassHeads, config: DescriptionsConfig, training: TrainingConfig, seed: int) -> Descriptions:
    """The task of this method; arguments are those of :class:`finelens.methods.registry.Method`."""
    task = Descriptions(engine, config)
    if heads.classes is not None:
        task.write(heads)
    return task


class Descriptions(WrittenTask):
    """Scores an image against every description of every class.

    Attributes:
        texts: Unit-norm text features, padded with zero rows, (C, T, E).
        weights: Weights of the texts, rows sum to 1, zero for padding, (C, T).
    """

    written = ("texts", "weights")
    config: DescriptionsConfig
    texts: Tensor
    weights: Tensor

    def write(self, heads: ClassHeads) -> None:
        """Encode the texts of the classes."""
        assert heads.classes is not None
        features = list(heads.sentences)
        wrapped = wrapped_texts(heads.classes, self.config.wrap)
        if wrapped != heads.classes.descriptions:
            encoded = self.engine.backbone.encode_text([text for own in wrapped for text in own])
            parts = encoded.split([len(own) for own in wrapped])
            features = [part if len(part) else whole for part, whole in zip(parts, features, strict=True)]
        self.texts = pad_descriptions(features).to(self.engine.device)
        present = present_texts(features).to(self.engine.device)
        self.weights = text_weights(self.texts, present, heads.templates.to(self.texts), self.config.weighting, self.config.softmax_scale)

    def cosines(self, features: Tensor) -> Tensor:
        """What each description says of each image: cosines (B, C, T), minus infinity for padding. Features (B, E) are unit norm."""
        return torch.einsum("be,cte->bct", features, self.texts).masked_fill(self.weights == 0, -math.inf)

    @torch.no_grad()
    def predict_logits(self, images: Tensor) -> dict[str, Tensor]:
        """``s mean_j <f, e_cj> + b``: the mean of cosines, which is not the cosine of the mean."""
        features = self.engine.encode_frozen(images).global_
        if self.config.aggregate == "max":
            scores = self.cosines(features).amax(-1)  # (B, C)
        else:
            scores = features @ torch.einsum("ct,cte->ce", self.weights, self.texts).T  # (B, C)
        backbone = self.engine.backbone
        return {"logits": backbone.logit_scale * scores + backbone.logit_bias}


def wrapped_texts(classes: ClassSet, wrap: str) -> tuple[tuple[str, ...], ...]:
    """The descriptions of each class as sentences, see :class:`DescriptionsConfig`."""
    if wrap == "never":
        return classes.descriptions

    def sentence(name: str, text: str) -> str:
        whole = wrap == "auto" and (text.rstrip().endswith((".", "!", "?")) or name.lower() in text.lower())
        return text if whole else as_clause(name, text)

    return tuple(tuple(sentence(name, text) for text in own) for name, own in zip(classes.names, classes.descriptions, strict=True))


def text_weights(texts: Tensor, present: Tensor, names: Tensor, weighting: Weighting, softmax_scale: float) -> Tensor:
    """Weights (C, T) of a class's texts, each row with sum 1 over the texts that are present.

    Args:
        texts: Unit-norm, padded, (C, T, E).
        present: Which are texts and not padding, (C, T).
        names: Class-name features, unit norm, (C, E).
        weighting: See :class:`DescriptionsConfig`.
        softmax_scale: Factor of the cosine inside the softmax.
    """
    even = present.to(texts) / present.sum(1, keepdim=True)
    if weighting == "uniform":
        return even
    cosines = torch.einsum("cte,ce->ct", texts, names)  # (C, T)
    if weighting == "softmax":
        return (softmax_scale * cosines).masked_fill(~present, -math.inf).softmax(1)
    # A text that points away from its class name has no say; padding is zero already.
    positive = cosines.clamp(min=0)
    total = positive.sum(1, keepdim=True)
    return torch.where(total > 0, positive / total.clamp(min=torch.finfo(total.dtype).tiny), even)

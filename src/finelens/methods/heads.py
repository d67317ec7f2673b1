"""The text heads that methods start from, computed once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from finelens.classes import heads
from finelens.protocol import Backbone, ClassSet


@dataclass(frozen=True)
class ClassHeads:
    """Heads (C, E), unit-norm rows.

    Attributes:
        templates: Template ensemble.
        descriptions: Mean of each class's descriptions (CuPL); templates stand in for a class without any.
        weighted: Descriptions weighted by their cosine with the class name (microCLIP's frozen head).
        sentences: Features (T_c, E) of each class's descriptions, templates standing in; empty in a model that was loaded.
        classes: Names and texts, for methods that write prompts of their own; None in a model that was loaded.
        texts: Features (T_c + P, E) of each class's descriptions and filled templates, each text once; prototypes from a file where they stand for
            texts; empty in a model that was loaded.
    """

    templates: Tensor
    descriptions: Tensor
    weighted: Tensor
    sentences: tuple[Tensor, ...] = ()
    classes: ClassSet | None = None
    texts: tuple[Tensor, ...] = ()

    def to(self, device: torch.device) -> ClassHeads:
        """The same on a device."""
        sentences, texts = (tuple(features.to(device) for features in rows) for rows in (self.sentences, self.texts))
        return ClassHeads(self.templates.to(device), self.descriptions.to(device), self.weighted.to(device), sentences, self.classes, texts)


@torch.no_grad()
def build_heads(backbone: Backbone, classes: ClassSet) -> ClassHeads:
    """Encode every text of the classes once and build all heads."""
    prompts = heads.encode_templates(backbone, classes)  # (C, P, E)
    templates = heads.template_head(prompts)
    features = heads.encode_descriptions(backbone, classes)
    padded = heads.pad_descriptions(features)
    weights = heads.description_weights(padded, templates)
    # A class without descriptions has its templates in their place already.
    texts = (torch.cat([own, filled]) if any_ else filled for own, filled, any_ in zip(features, prompts, classes.descriptions, strict=True))
    weighted = heads.weighted_description_head(padded, weights)
    return ClassHeads(templates, heads.mean_description_head(features), weighted, tuple(features), classes, tuple(texts))

"""From text features to classifier heads: one row per class, unit norm.

Shapes: C classes, P templates, T texts per class, E joint width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from finelens.classes.templates import fill
from finelens.protocol import Backbone, ClassSet

# Vectors are the same where their components along so many random directions agree in so fine a step; encoders give about seven digits.
SHADOW, SAME = 8, 1e-4

PromptNorm = Literal["unit", "frobenius"]


def template_head(prompts: Tensor, norm: PromptNorm = "unit") -> Tensor:
    """Template ensemble: the mean of a class's prompts, unit norm.

    Args:
        prompts: Text features (C, P, E); raw encoder output or unit rows.
        norm: ``unit`` normalises every prompt before the mean (Radford et al., 2021); ``frobenius`` divides the P x E matrix of a class by its
            Frobenius norm, as the released microCLIP code does.

    Returns:
        Head (C, E).
    """
    prompts = F.normalize(prompts, dim=-1) if norm == "unit" else prompts / prompts.flatten(1).norm(dim=1)[:, None, None]
    return F.normalize(prompts.mean(1), dim=-1)  # (C, E)


def pad_descriptions(features: Sequence[Tensor]) -> Tensor:
    """Unit rows per class, padded with zero rows to the longest class.

    Args:
        features: One (T_c, E) tensor per class.

    Returns:
        (C, T, E).
    """
    return torch.nn.utils.rnn.pad_sequence([F.normalize(f, dim=-1) for f in features], batch_first=True)  # (C, T, E)


def present_texts(features: Sequence[Tensor]) -> Tensor:
    """Which rows of :func:`pad_descriptions` are texts and not padding, (C, T), on the device of the features (one (T_c, E) tensor per class)."""
    counts = torch.tensor([len(own) for own in features], device=features[0].device)
    return torch.arange(int(counts.max()), device=counts.device) < counts[:, None]  # (C, T)


def description_weights(descriptions: Tensor, names: Tensor) -> Tensor:
    """Cosine of each description with its class name (microCLIP, frozen head); zero for padding.

    Args:
        descriptions: (C, T, E), padded.
        names: Class-name embeddings (C, E), unit norm.

    Returns:
        (C, T).
    """
    return torch.einsum("cte,ce->ct", descriptions, names)


def weighted_description_head(descriptions: Tensor, weights: Tensor) -> Tensor:
    """``l2norm(sum_j w_cj e_cj / sum_j w_cj)``, (C, E). The frozen LLM head of microCLIP with :func:`description_weights`."""
    total = torch.einsum("ct,cte->ce", weights, descriptions)  # (C, E)
    return F.normalize(total / weights.sum(1, keepdim=True), dim=-1)


def mean_description_head(features: Sequence[Tensor]) -> Tensor:
    """Description ensemble (CuPL, Pratt et al., 2023): the mean of a class's unit-norm descriptions, unit norm.

    Args:
        features: One (T_c, E) tensor per class.

    Returns:
        Head (C, E).
    """
    return torch.stack([F.normalize(F.normalize(f, dim=-1).mean(0), dim=-1) for f in features])  # (C, E)


def encode_templates(backbone: Backbone, classes: ClassSet) -> Tensor:
    """Features of every template of every class, (C, P, E); for a class of several names the mean over them, each at unit norm."""
    prompts = [fill(template, name) for own in classes.called for name in own for template in classes.templates]
    rows = backbone.encode_text(prompts).unflatten(0, (-1, len(classes.templates)))  # (sum of names, P, E)
    if not any(classes.synonyms):
        return rows
    return torch.stack([own.mean(0) for own in F.normalize(rows, dim=-1).split([len(own) for own in classes.called])])  # (C, P, E)


def encode_descriptions(backbone: Backbone, classes: ClassSet) -> list[Tensor]:
    """Features of each class's descriptions; the templates stand in for a class that has none.

    Returns:
        One (T_c, E) tensor per class.
    """
    texts = [
        list(own) or [fill(template, name) for name in called for template in classes.templates]
        for called, own in zip(classes.called, classes.descriptions, strict=True)
    ]
    flat = backbone.encode_text([text for own in texts for text in own])
    return list(flat.split([len(own) for own in texts]))


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
        """These heads on a device."""
        sentences, texts = (tuple(features.to(device) for features in rows) for rows in (self.sentences, self.texts))
        return ClassHeads(self.templates.to(device), self.descriptions.to(device), self.weighted.to(device), sentences, self.classes, texts)


def same_vectors(head: Tensor) -> list[list[int]]:
    """Groups of classes whose rows of a head (C, E) are equal up to rounding: in each only the first class can ever be predicted."""
    rng = torch.Generator().manual_seed(0)
    shadow = head.detach().double().cpu() @ torch.randn(head.shape[1], SHADOW, generator=rng, dtype=torch.float64)  # (C, 8)
    # Of two that round differently one may fall into the next step; half a step further on both are in the same.
    return max((_equal_rows((shadow / SAME + shift).floor()) for shift in (0, 0.5)), key=lambda groups: sum(map(len, groups)))


def _equal_rows(rows: Tensor) -> list[list[int]]:
    _, inverse, counts = rows.unique(dim=0, return_inverse=True, return_counts=True)
    groups: dict[int, list[int]] = {}
    for c in (counts > 1)[inverse].nonzero().flatten().tolist():
        groups.setdefault(int(inverse[c]), []).append(c)
    return list(groups.values())


@torch.no_grad()
def build_heads(backbone: Backbone, classes: ClassSet) -> ClassHeads:
    """Encode every text of the classes once and build all heads."""
    prompts = encode_templates(backbone, classes)  # (C, P, E)
    templates = template_head(prompts)
    features = encode_descriptions(backbone, classes)
    padded = pad_descriptions(features)
    weights = description_weights(padded, templates)
    # A class without descriptions has its templates in their place already.
    texts = (torch.cat([own, filled]) if any_ else filled for own, filled, any_ in zip(features, prompts, classes.descriptions, strict=True))
    weighted = weighted_description_head(padded, weights)
    return ClassHeads(templates, mean_description_head(features), weighted, tuple(features), classes, tuple(texts))

"""Which of several encoders suits these photographs, found without labels: by what they agree on.

Agreement decides: how often an encoder answers as the weighted vote of the *others* does (after OSTB, arXiv 2606.08126, where one transport plan
joins all encoders). The shape of the classes (after VEGA, arXiv 2412.20682, edge similarity) is told beside it, and decides between two: whether
classes that are near each other as texts are near each other as pictures. Where it was measured it said nothing, see docs/backbones.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

ROUNDS = 10
# Agreement that is near 1 or near chance would give a weight without bound.
EDGE = 0.02


@dataclass(frozen=True)
class Seen:
    """What one encoder makes of the photographs and the class texts.

    Attributes:
        name: What to call it.
        probabilities: (N, C), of its own zero-shot answer.
        features: (N, D) of the photographs.
        texts: (C, D) of the classes in the same space.
    """

    name: str
    probabilities: Tensor
    features: Tensor
    texts: Tensor


@dataclass(frozen=True)
class Ranked:
    """One encoder's place.

    Attributes:
        name: The encoder.
        agreement: Share of photographs that it answers as the vote of the others does. Decides.
        shape: Correlation of the graph of class centres with the graph of class texts.
        weight: Its weight in the vote.
    """

    name: str
    agreement: float
    shape: float
    weight: float

    def line(self) -> str:
        """A line for a person."""
        return f"{self.name}: answers as the others do for {self.agreement:.0%}, classes lie as their texts do {self.shape:+.2f}"


def rank_encoders(seen: Sequence[Seen]) -> tuple[list[Ranked], Tensor]:
    """Encoders, best first, and the weighted vote (N, C).

    Args:
        seen: At least one, about the same photographs and classes.
    """
    posteriors = torch.stack([one.probabilities.double() for one in seen])  # (M, N, C)
    weights, agreement = vote_weights(posteriors)
    vote = torch.einsum("m,mnc->nc", weights, posteriors)
    shapes = [shape_of_classes(one.features, one.texts, one.probabilities) for one in seen]
    rows = [Ranked(one.name, float(agreement[m]), shapes[m], float(weights[m])) for m, one in enumerate(seen)]
    # Of two, agreement is the same.
    return sorted(rows, key=lambda row: (-row.agreement, -row.shape)), vote


def vote_weights(posteriors: Tensor) -> tuple[Tensor, Tensor]:
    """Weights of a vote, and how often each voter agrees with the others' vote, (M,) each.

    The weight of a voter that is right in a share a of the cases, and otherwise wrong in one of C - 1 ways alike, is ``log(a (C - 1) / (1 - a))``
    (Dawid & Skene, 1979, with one parameter a voter); agreement stands for a.

    Args:
        posteriors: (M, N, C).
    """
    count, _, classes = posteriors.shape
    weights = torch.full((count,), 1 / count, dtype=posteriors.dtype)
    answers = posteriors.argmax(2)  # (M, N)
    agreement = torch.ones_like(weights)
    if count == 1:
        return weights, agreement
    for _ in range(ROUNDS):
        vote = torch.einsum("m,mnc->nc", weights, posteriors)
        others = vote - weights[:, None, None] * posteriors  # (M, N, C)
        agreement = (others.argmax(2) == answers).double().mean(1)
        right = agreement.clamp(EDGE, 1 - EDGE)
        raw = (right * (classes - 1) / (1 - right)).log().clamp(min=1e-3)
        weights = raw / raw.sum()
    return weights, agreement


def shape_of_classes(features: Tensor, texts: Tensor, probabilities: Tensor) -> float:
    """Pearson's correlation of the cosines between class centres with those between class texts (VEGA, edge similarity); 0 for fewer than 3 classes.

    Args:
        features: (N, D).
        texts: (C, D).
        probabilities: (N, C); the centre of a class is the mean of the features, weighted by its probability.
    """
    classes = len(texts)
    if classes < 3:
        return 0.0
    mass = probabilities.double()
    centres = mass.T @ F.normalize(features.double(), dim=1) / mass.sum(0)[:, None].clamp(min=1e-9)  # (C, D)
    pairs = torch.triu_indices(classes, classes, offset=1)
    edges = []
    for nodes in (centres, texts.double()):
        unit = F.normalize(nodes - nodes.mean(0), dim=1)
        edges.append((unit @ unit.T)[pairs[0], pairs[1]])
    found = float(torch.corrcoef(torch.stack(edges))[0, 1])
    return found if math.isfinite(found) else 0.0

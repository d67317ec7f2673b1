"""Which classes a classifier is likely to confuse, estimated without labels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class ConfusionPair:
    """Two classes, as positions in the class list.

    Attributes:
        first: The smaller position.
        second: The larger.
        score: How strongly the two are tied; only the order counts.
    """

    first: int
    second: int
    score: float


def estimate_confusion(probabilities: Tensor) -> tuple[ConfusionPair, ...]:
    """Pairs by posterior mass that they share: ``m_ab = sum_i p_ia p_ib``, largest first; pairs without any are left out.

    Of ten estimates compared in docs/report.md none is clearly better.

    Args:
        probabilities: Posteriors (N, C).
    """
    return _ranked(probabilities.T @ probabilities)


def similar_pairs(heads: Tensor) -> tuple[ConfusionPair, ...]:
    """Pairs by cosine of their text prototypes (C, E), nearest first."""
    unit = F.normalize(heads.double(), dim=1)
    return _ranked(unit @ unit.T)


def _ranked(scores: Tensor, limit: int = 1000) -> tuple[ConfusionPair, ...]:
    """Pairs of a symmetric matrix (C, C) with a positive score, largest first, ties in class order."""
    rows, columns = torch.triu_indices(len(scores), len(scores), offset=1)
    values = scores[rows, columns]
    order = values.argsort(descending=True, stable=True)[:limit]
    return tuple(ConfusionPair(int(rows[i]), int(columns[i]), float(f"{values[i]:.6g}")) for i in order.tolist() if values[i] > 0)

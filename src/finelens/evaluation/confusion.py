"""Which classes a classifier is likely to confuse, estimated without labels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

# Products of pairs of classes that are held at a time.
BLOCK = 1 << 22


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


def estimate_confusion(probabilities: Tensor, limit: int = 1000) -> tuple[ConfusionPair, ...]:
    """Pairs by posterior mass that they share: ``m_ab = sum_i p_ia p_ib``, largest first; pairs without any are left out.

    Of ten estimates compared in docs/report.md none is clearly better.

    Args:
        probabilities: Posteriors (N, C).
        limit: Most pairs.
    """
    return _largest(probabilities.T, limit)


def similar_pairs(heads: Tensor, limit: int = 1000) -> tuple[ConfusionPair, ...]:
    """Pairs by cosine of their text prototypes (C, E), nearest first; at most ``limit``."""
    exact = heads.double() if len(heads) ** 2 <= BLOCK else heads.float()
    return _largest(F.normalize(exact, dim=1), limit)


def _largest(rows: Tensor, limit: int) -> tuple[ConfusionPair, ...]:
    """Pairs of rows (C, X) with a positive product, largest first, ties in class order.

    The products of all pairs would be a matrix (C, C); a few of its rows are there at a time, and of them only what may be among the largest.
    """
    count, step = len(rows), max(1, BLOCK // max(1, len(rows)))
    scores, pairs = rows.new_zeros(0), torch.zeros(0, 2, dtype=torch.long)  # (P,), (P, 2)
    for start in range(0, count, step):
        block = (rows[start : start + step] @ rows[start:].T).triu(1)  # (B, C - start), zero where the other class comes first
        least = scores[-1].item() if len(scores) == limit else 0.0
        found = (block > least).nonzero()  # (F, 2)
        values, order = torch.cat([scores, block[found[:, 0], found[:, 1]]]).sort(descending=True, stable=True)
        scores, pairs = values[:limit], torch.cat([pairs, found + start])[order[:limit]]
    return tuple(ConfusionPair(first, second, float(f"{value:.6g}")) for (first, second), value in zip(pairs.tolist(), scores.tolist(), strict=True))

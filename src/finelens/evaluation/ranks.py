"""Probabilities of classes summed over the taxa that hold them: every rank has its own answer, and the narrowest sure one is the answer to give."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike


def summed(probabilities: ArrayLike, members: Sequence[int], count: int) -> np.ndarray:
    """Probability of each name at a rank.

    Args:
        probabilities: Of classes, (N, C).
        members: Which name each class has, C numbers; -1 for none.
        count: V, how many names there are.

    Returns:
        (N, V). A row sums to less than 1 where classes have no name at the rank.
    """
    p, own = np.asarray(probabilities, dtype=np.float64), np.asarray(members)
    out = np.zeros((len(p), count))
    has = np.flatnonzero(own >= 0)
    if len(has):
        columns = has[np.argsort(own[has], kind="stable")]
        names, starts = np.unique(own[columns], return_index=True)
        out[:, names] = np.add.reduceat(p[:, columns], starts, axis=1)
    return out  # (N, V)


@dataclass(frozen=True)
class Deepest:
    """The narrowest rank at which an answer is as likely as asked for.

    Attributes:
        rank: Position of the rank, from the widest; -1 where none is.
        name: Position of the name at that rank; -1 where none is.
        probability: Of that name; not-a-number where none is.
    """

    rank: np.ndarray
    name: np.ndarray
    probability: np.ndarray


def deepest(by_rank: Sequence[np.ndarray], floor: float) -> Deepest:
    """For each image the narrowest rank whose likeliest name has at least the probability ``floor``.

    Above one half at most one name a rank can have it, and where the ranks are a tree, the names that have it lie in one line.

    Args:
        by_rank: Probabilities (N, V_r), the widest rank first.
        floor: In (0.5, 1].
    """
    n = len(by_rank[0])
    rank, name, probability = np.full(n, -1), np.full(n, -1), np.full(n, np.nan)
    for r, p in enumerate(by_rank):
        best = p.argmax(1)
        value = p[np.arange(n), best]
        sure = value >= floor
        rank[sure], name[sure], probability[sure] = r, best[sure], value[sure]
    return Deepest(rank, name, probability)


def rank_accuracy(targets: ArrayLike, predictions: ArrayLike, members: Sequence[int]) -> tuple[float, int]:
    """Share of images whose predicted name at a rank is the true one, among those that have a true one, and their number.

    Args:
        targets: True classes, (N,).
        predictions: Predicted names at the rank, (N,).
        members: As for :func:`summed`.
    """
    true = np.asarray(members)[np.asarray(targets)]
    known = true >= 0
    return (float(np.mean(true[known] == np.asarray(predictions)[known])) if known.any() else float("nan")), int(known.sum())

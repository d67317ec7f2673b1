"""Average precision of photographs that may belong to several classes: each class ranks all images, and its own ones should come first.

Arguments: ``targets`` says which classes each image has, (N, C) bool; ``scores`` are higher where the class is likelier, (N, C). Equal scores
cannot be told apart and count together, as in scikit-learn. Classes without an image are left out of every mean.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from finelens.evaluation.metrics import LEVEL

RESAMPLES = 500
# Resamples whose ranks are summed at once: 50 of 5,000 images take 2 MB a table.
_AT_ONCE = 50


def mean_average_precision(targets: ArrayLike, scores: ArrayLike) -> float:
    """Mean over classes of the average precision: the mean, over a class's images, of its share of all images that rank as high or higher."""
    y, s = np.asarray(targets, dtype=bool), np.asarray(scores, dtype=np.float64)
    return float(_resampled(y, s, np.ones((1, len(y))))[0])


def interval(targets: ArrayLike, scores: ArrayLike, others: ArrayLike | None = None) -> tuple[float, float]:
    """Percentile bootstrap interval, over images, of the mean average precision, or of its difference to that of other scores of the same images.

    Args:
        targets: Classes of each image, (N, C) bool.
        scores: Higher where the class is likelier, (N, C).
        others: Scores that are subtracted, (N, C); None for the value itself.

    Returns:
        Lower and upper end, at 95 %.
    """
    y, s = np.asarray(targets, dtype=bool), np.asarray(scores, dtype=np.float64)
    counts = np.random.default_rng(0).multinomial(len(y), np.full(len(y), 1 / len(y)), size=RESAMPLES).astype(np.float64)
    draws = _resampled(y, s, counts)
    if others is not None:
        draws = draws - _resampled(y, np.asarray(others, dtype=np.float64), counts)
    low, high = np.nanquantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def _resampled(targets: np.ndarray, scores: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Mean average precision (R,) where image i stands ``counts[:, i]`` times in each of R samples (R, N); NaN for a sample without any class."""
    classes = np.flatnonzero(targets.any(axis=0))
    parts = [counts[start : start + _AT_ONCE] for start in range(0, len(counts), _AT_ONCE)]
    values = np.array([np.concatenate([_average(targets[:, c], scores[:, c], part) for part in parts]) for c in classes])
    there = ~np.isnan(values)
    return np.where(there.any(axis=0), np.nansum(values, axis=0) / np.maximum(there.sum(axis=0), 1), np.nan)


def _average(own: np.ndarray, scores: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Average precision of one class, (R,); NaN in a sample that has none of its images."""
    order = np.argsort(-scores, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(scores[order])), len(order) - 1)
    weights = counts[:, order]
    hits, seen = np.cumsum(weights * own[order], axis=1)[:, ends], np.cumsum(weights, axis=1)[:, ends]
    gained = np.diff(hits, axis=1, prepend=0.0)
    total = hits[:, -1]
    summed = (gained * hits / np.maximum(seen, 1)).sum(axis=1)
    return np.where(total > 0, summed / np.maximum(total, 1), np.nan)

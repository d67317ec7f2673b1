"""Accuracy, calibration and their uncertainty, in plain numpy.

A class with labelled images and no correct prediction counts as 0 in every mean over classes; a class without a labelled image is left out of the
mean and named. Arguments: ``targets`` and ``predictions`` are class indices (N,), ``probabilities`` are (N, C) with rows that sum to 1, ``correct``
is a boolean (N,). N is at least 1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from finelens.errors import UserError

if TYPE_CHECKING:
    from scipy.sparse import csr_array

# Smallest probability that the negative log-likelihood tells from zero.
_TINY = 1e-12
# Coverage of every interval.
LEVEL = 0.95


def accuracy(targets: ArrayLike, predictions: ArrayLike) -> float:
    """Share of images whose predicted class is the true one."""
    return float(np.mean(np.asarray(targets) == np.asarray(predictions)))


def confusion(targets: ArrayLike, predictions: ArrayLike, n_classes: int) -> csr_array:
    """Counts (C, C): rows are true classes, columns predicted ones. Sparse: a dense matrix of 20,000 classes would take 3 GB."""
    from scipy.sparse import coo_array

    pairs = np.asarray(targets), np.asarray(predictions)
    return coo_array((np.ones(len(pairs[0]), dtype=np.int64), pairs), shape=(n_classes, n_classes)).tocsr()


def class_accuracies(targets: ArrayLike, predictions: ArrayLike, n_classes: int) -> np.ndarray:
    """Recall of each class, (C,); NaN for a class without an image."""
    matrix = confusion(targets, predictions, n_classes)
    support = matrix.sum(axis=1)
    return np.where(support > 0, matrix.diagonal() / np.maximum(support, 1), np.nan)


def class_mean_accuracy(targets: ArrayLike, predictions: ArrayLike, n_classes: int) -> float:
    """Mean of the class accuracies over classes that have images."""
    return float(np.nanmean(class_accuracies(targets, predictions, n_classes)))


def worst_10_percent(targets: ArrayLike, predictions: ArrayLike, n_classes: int) -> float:
    """Mean accuracy of the tenth of the classes (at least one) that fare worst, among those with images."""
    values = class_accuracies(targets, predictions, n_classes)
    values = np.sort(values[~np.isnan(values)])
    return float(values[: math.ceil(len(values) / 10)].mean())


def f1_scores(targets: ArrayLike, predictions: ArrayLike, n_classes: int) -> np.ndarray:
    """F1 of each class, (C,): 0 for a class never predicted, NaN for a class without an image."""
    matrix = confusion(targets, predictions, n_classes)
    support, predicted = matrix.sum(axis=1), matrix.sum(axis=0)
    return np.where(support > 0, 2 * matrix.diagonal() / np.maximum(support + predicted, 1), np.nan)


def macro_f1(targets: ArrayLike, predictions: ArrayLike, n_classes: int) -> float:
    """Mean of the F1 scores over classes that have images."""
    return float(np.nanmean(f1_scores(targets, predictions, n_classes)))


def ece(targets: ArrayLike, probabilities: ArrayLike, bins: int = 15) -> float:
    """Expected calibration error of the top class over equal-width bins of confidence (Guo et al. 2017, eq. 3)."""
    p = np.asarray(probabilities, dtype=np.float64)
    confidence, correct = p.max(axis=1), p.argmax(axis=1) == np.asarray(targets)
    gap = np.bincount(_bins(confidence, bins), weights=correct - confidence, minlength=bins)
    return float(np.abs(gap).sum() / len(confidence))


def reliability(targets: ArrayLike, probabilities: ArrayLike, bins: int = 15) -> list[dict[str, float]]:
    """What :func:`ece` averages: ``n``, mean ``confidence`` and ``accuracy`` of each bin that holds images, from the least confident on."""
    p = np.asarray(probabilities, dtype=np.float64)
    confidence, correct = p.max(axis=1), p.argmax(axis=1) == np.asarray(targets)
    index = _bins(confidence, bins)
    return [
        {"n": int(inside.sum()), "confidence": float(confidence[inside].mean()), "accuracy": float(correct[inside].mean())}
        for inside in (index == b for b in range(bins))
        if inside.any()
    ]


def _bins(confidence: np.ndarray, bins: int) -> np.ndarray:
    """Equal-width bin of each confidence; bins are open on the left and closed on the right, as in the paper."""
    return np.asarray(np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1))


def nll(targets: ArrayLike, probabilities: ArrayLike) -> float:
    """Mean negative log-likelihood of the true class, in nats; a probability of 0 counts as 1e-12."""
    p = np.asarray(probabilities, dtype=np.float64)
    own = p[np.arange(len(p)), np.asarray(targets)]
    return float(-np.log(np.maximum(own, _TINY)).mean())


def auroc_fpr95(scores: ArrayLike, unknown: ArrayLike) -> tuple[float, float]:
    """How well scores tell images of no class from the others: AUROC, and FPR95, the share of unknown images that pass where 95 % of the known do.

    Args:
        scores: Higher for unknown images, (N,).
        unknown: Which images belong to no class, (N,) bool; some do and some do not.
    """
    s, u = np.asarray(scores, dtype=np.float64), np.asarray(unknown, dtype=bool)
    known = np.sort(s[~u])
    # The statistic of Mann and Whitney: known images below each unknown one, ties as halves.
    below = np.searchsorted(known, s[u], "left") + np.searchsorted(known, s[u], "right")
    return float(below.mean() / (2 * len(known))), float((s[u] <= np.quantile(known, 0.95)).mean())


def bootstrap_interval(correct: ArrayLike, n: int = 2000, seed: int = 0) -> tuple[float, float]:
    """Percentile bootstrap interval of an accuracy.

    The number of hits among N images drawn with replacement is binomial, so it is drawn directly; the law is the same as that of drawing images.
    Where all images are right, or none, all resamples are alike: there it is Wilson's interval (1927).

    Args:
        correct: Whether each image is right, (N,).
        n: Number of resamples.
        seed: Seed of the resamples.

    Returns:
        Lower and upper end, at 95 %.
    """
    hits = np.asarray(correct, dtype=bool)
    if hits.all() or not hits.any():
        square = NormalDist().inv_cdf((1 + LEVEL) / 2) ** 2
        return (len(hits) / (len(hits) + square), 1.0) if hits.any() else (0.0, square / (len(hits) + square))
    draws = np.random.default_rng(seed).binomial(len(hits), hits.mean(), size=n) / len(hits)
    return _interval(draws)


def paired_bootstrap(correct_a: ArrayLike, correct_b: ArrayLike, n: int = 2000, seed: int = 0) -> tuple[float, float]:
    """Percentile bootstrap interval of accuracy A minus accuracy B on the same images.

    Only images on which the two differ move the difference; their counts in a resample of images are multinomial and are drawn directly.

    Args:
        correct_a: Whether A is right on each image, (N,).
        correct_b: Whether B is right on each image, (N,).
        n: Number of resamples.
        seed: Seed of the resamples.

    Returns:
        Lower and upper end, at 95 %.
    """
    only_a, only_b, total = _discordant(correct_a, correct_b)
    shares = [only_a / total, only_b / total, (total - only_a - only_b) / total]
    draws = np.random.default_rng(seed).multinomial(total, shares, size=n)  # (n, 3)
    return _interval((draws[:, 0] - draws[:, 1]) / total)


def mcnemar(correct_a: ArrayLike, correct_b: ArrayLike) -> float:
    """Two-sided exact p-value that A and B are equally often right on the same images (McNemar 1947, binomial form); 1 if they never differ."""
    from scipy.special import bdtr

    only_a, only_b, _ = _discordant(correct_a, correct_b)
    if only_a + only_b == 0:
        return 1.0
    return float(min(1.0, 2 * bdtr(min(only_a, only_b), only_a + only_b, 0.5)))


def _discordant(correct_a: ArrayLike, correct_b: ArrayLike) -> tuple[int, int, int]:
    """Images on which only A is right, only B is right, and all images."""
    a, b = np.asarray(correct_a, dtype=bool), np.asarray(correct_b, dtype=bool)
    if a.shape != b.shape:
        raise ValueError(f"paired results differ in length: {a.shape} and {b.shape}")
    return int((a & ~b).sum()), int((b & ~a).sum()), len(a)


def _interval(draws: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def evaluate_predictions(
    targets: ArrayLike,
    probabilities: ArrayLike,
    class_names: Sequence[str],
    *,
    zero_shot: ArrayLike,
    branches: Mapping[str, ArrayLike] | None = None,
    n_failed: int = 0,
) -> dict[str, Any]:
    """Everything that ``evaluate`` reports, ready for JSON.

    Args:
        targets: True class of each labelled image that could be read, (N,).
        probabilities: (N, C), same order.
        class_names: C names.
        zero_shot: Class index that the unadapted model gives each image, (N,).
        branches: Class index (N,) by name of each part of the method.
        n_failed: Labelled files that could not be read; they are in no mean.

    Returns:
        ``accuracy``, ``class_mean_accuracy``, ``zero_shot_accuracy``, ``zero_shot_class_mean_accuracy``, ``n``, ``n_failed``, ``absent_classes``,
        ``macro_f1``, ``worst_10_percent``, ``ece``, ``nll``, ``accuracy_interval``, ``difference``, ``difference_interval`` and ``mcnemar_p`` (method
        against zero-shot), ``per_class`` (one dict a class: ``class``, ``n``, ``accuracy``, ``f1``, ``zero_shot_accuracy``; None where it has no
        image), ``confusion`` (lists of true class, predicted class, images, by position in ``class_names``, without the empty cells), ``reliability``
        (see :func:`reliability`), ``branches`` (accuracy by name). Shares lie in [0, 1].

    Raises:
        UserError: There is no labelled image that could be read.
    """
    y, p, first = np.asarray(targets), np.asarray(probabilities, dtype=np.float64), np.asarray(zero_shot)
    _check_shapes(y, p, first, len(class_names))
    predictions = p.argmax(axis=1)
    correct, correct_first = predictions == y, first == y
    n_classes = len(class_names)
    support = np.bincount(y, minlength=n_classes)
    return {
        "accuracy": accuracy(y, predictions),
        "class_mean_accuracy": class_mean_accuracy(y, predictions, n_classes),
        "zero_shot_accuracy": accuracy(y, first),
        "zero_shot_class_mean_accuracy": class_mean_accuracy(y, first, n_classes),
        "n": len(y),
        "n_failed": n_failed,
        "absent_classes": [name for name, count in zip(class_names, support, strict=True) if count == 0],
        "macro_f1": macro_f1(y, predictions, n_classes),
        "worst_10_percent": worst_10_percent(y, predictions, n_classes),
        "ece": ece(y, p),
        "nll": nll(y, p),
        "accuracy_interval": list(bootstrap_interval(correct)),
        "difference": float(correct.mean() - correct_first.mean()),
        "difference_interval": list(paired_bootstrap(correct, correct_first)),
        "mcnemar_p": mcnemar(correct, correct_first),
        "per_class": _per_class(y, predictions, first, class_names),
        "confusion": _nonzero(confusion(y, predictions, n_classes)),
        "reliability": reliability(y, p),
        "branches": {name: accuracy(y, values) for name, values in (branches or {}).items()},
    }


def _check_shapes(y: np.ndarray, p: np.ndarray, first: np.ndarray, n_classes: int) -> None:
    if len(y) == 0:
        raise UserError("nothing to evaluate: no labelled image could be read; check the labels and the folder")
    if p.shape != (len(y), n_classes) or first.shape != y.shape:
        raise ValueError(f"shapes do not agree: targets {y.shape}, probabilities {p.shape}, zero_shot {first.shape}, {n_classes} classes")


def _nonzero(matrix: csr_array) -> list[list[int]]:
    found = matrix.tocoo()
    cells: list[list[int]] = np.column_stack([found.row, found.col, found.data]).tolist()
    return cells


def _per_class(y: np.ndarray, predictions: np.ndarray, first: np.ndarray, class_names: Sequence[str]) -> list[dict[str, Any]]:
    n_classes = len(class_names)
    columns = zip(
        class_names,
        np.bincount(y, minlength=n_classes).tolist(),
        class_accuracies(y, predictions, n_classes).tolist(),
        f1_scores(y, predictions, n_classes).tolist(),
        class_accuracies(y, first, n_classes).tolist(),
        strict=True,
    )
    keys = ("class", "n", "accuracy", "f1", "zero_shot_accuracy")
    return [{k: None if isinstance(v, float) and math.isnan(v) else v for k, v in zip(keys, row, strict=True)} for row in columns]

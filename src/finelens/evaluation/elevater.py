"""The metrics of ELEVATER (Li et al., NeurIPS 2022), and which of them it states for which of its data sets.

Accuracy and mean-per-class accuracy are those of :mod:`finelens.evaluation.metrics`: the second is its ``class_mean_accuracy``.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

# By ELEVATER's names of its sets; all of its others are stated in accuracy.
STATED = {
    "caltech-101": "class_mean_accuracy",
    "fgvc-aircraft-2013b-variants102": "class_mean_accuracy",
    "oxford-flower-102": "class_mean_accuracy",
    "oxford-iiit-pets": "class_mean_accuracy",
    "voc-2007-classification": "map_11_points",
    "hateful-memes": "roc_auc",
} | dict.fromkeys(
    (
        *("cifar-10", "cifar-100", "country211", "dtd", "eurosat_clip", "fer-2013", "food-101", "gtsrb", "kitti-distance", "mnist"),
        *("patch-camelyon", "rendered-sst2", "resisc45_clip", "stanford-cars", "imagenet-1k"),
    ),
    "accuracy",
)
_RECALLS = np.linspace(1, 0, 11)


def map_11_points(targets: ArrayLike, scores: ArrayLike) -> float:
    """Average precision interpolated at the recalls 0, 0.1 to 1, mean over classes.

    As in ELEVATER's library, recall 0 counts as precision 1, which Pascal VOC's own rule does not do: one of eleven terms.

    Args:
        targets: Which classes each image has, (N, C) bool; classes without an image are left out of the mean.
        scores: Higher where the class is likelier, (N, C).
    """
    y, s = np.asarray(targets, dtype=bool), np.asarray(scores, dtype=np.float64)
    return float(np.mean([_interpolated(y[:, c], s[:, c]) for c in range(y.shape[1]) if y[:, c].any()]))


def _interpolated(own: np.ndarray, scores: np.ndarray) -> float:
    order = np.argsort(-scores, kind="stable")
    # Equal scores cannot be told apart: only the last of each counts.
    ends = np.append(np.flatnonzero(np.diff(scores[order])), len(order) - 1)
    hits = np.cumsum(own[order])[ends]
    precision, recall = hits / (ends + 1), hits / own.sum()
    # Best precision at this recall or more.
    best = np.maximum.accumulate(precision[::-1])[::-1]
    first = np.searchsorted(recall, _RECALLS[:-1])
    return float((best[first].sum() + 1) / len(_RECALLS))


def roc_auc(positive: ArrayLike, scores: ArrayLike) -> float:
    """Area under the receiver operating characteristic: the share of pairs that the scores order rightly, ties counted half.

    Args:
        positive: Images of the second class, (N,) bool; some are and some are not.
        scores: Higher where that class is likelier, (N,).
    """
    from scipy.stats import rankdata

    y = np.asarray(positive, dtype=bool)
    many, others = int(y.sum()), int((~y).sum())
    return float((rankdata(np.asarray(scores))[y].sum() - many * (many + 1) / 2) / (many * others))

"""Split conformal prediction: sets of classes that hold the true one with a wanted frequency, from a few labelled photographs."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from finelens.errors import UserError

# Probabilities whose ratio differs from 1 by less are the same: float32 logits of another day round so differently. Never a difference: the true
# class of a peaked prediction may have any small probability, and an absolute tie would let all classes in.
TIE = 1e-6


@dataclass(frozen=True)
class Conformal:
    """A calibrated rule.

    Attributes:
        threshold: Least probability of a class in the set; 0 lets every class in.
        coverage: What was asked, in (0, 1).
        labels: Labelled photographs it rests on, n.
    """

    threshold: float
    coverage: float
    labels: int

    def contains(self, probabilities: ArrayLike) -> np.ndarray:
        """Which classes are in the set of each image, (N, C) bool, from probabilities (N, C). The likeliest class always is: no set is empty."""
        p = np.asarray(probabilities, dtype=np.float64)
        inside = p >= self.threshold * (1 - TIE)
        inside[np.arange(len(p)), p.argmax(1)] = True
        return inside

    def guarantee(self) -> str:
        """What may be relied on; one sentence."""
        return (
            f"the sets hold the true class for at least {self.coverage:.4g} of photographs drawn like the {self.labels} labelled ones, on average "
            f"over draws of those labels; it says nothing of single classes, nor of photographs of another kind"
        )


def labels_needed(coverage: float) -> int:
    """Fewest labelled photographs with which a set that is not all classes can have that coverage: ``ceil(1 / (1 - coverage)) - 1``."""
    return math.ceil(round(1 / (1 - coverage), 9)) - 1


def calibrate(probabilities: ArrayLike, targets: ArrayLike, coverage: float) -> Conformal:
    """Least ambiguous set-valued classifier (LAC: Sadinle, Lei and Wasserman, 2019) by split conformal calibration.

    The score of a labelled image is one minus the probability of its true class; the threshold is the ``ceil((n + 1) coverage)``-th smallest score
    (Vovk et al., 2005), so that the sets of exchangeable new images hold the true class with probability at least ``coverage``. It is kept as the
    probability it is of, the ``ceil((n + 1) coverage)``-th largest: one minus a probability below 1e-16 has lost it.

    Args:
        probabilities: Of the labelled images, (n, C).
        targets: Their classes, (n,).
        coverage: Wanted share of sets that hold the true class, in (0, 1).

    Raises:
        UserError: The coverage is out of range, or there are too few labels for it.
    """
    if not 0 < coverage < 1:
        raise UserError(f"--coverage must lie between 0 and 1, e.g. 0.9, got {coverage:g}")
    p, y = np.asarray(probabilities, dtype=np.float64), np.asarray(targets)
    n, needed = len(y), labels_needed(coverage)
    if n < needed:
        raise UserError(f"{n} labelled photographs are too few for coverage {coverage:g}: {needed} are needed; label more, or lower --coverage")
    own = np.sort(p[np.arange(n), y])[::-1]
    rank = math.ceil(round((n + 1) * coverage, 9))
    # The likeliest rounding of a share such as 0.9 must not ask for a label more than there is.
    return Conformal(float(own[min(rank, n) - 1]), coverage, n)

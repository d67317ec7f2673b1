"""How good a model is and whether more answers pay, from the answers alone: each tests a model that has not learnt it. docs/review.md.

Asked photographs are no random sample: most are asked because they speak for many others. So a known share of the questions, the *drawn* ones, comes
from one order of all photographs that is random and fixed before anything is asked. They alone are a random sample (Horvitz and Thompson, JASA 47,
1952, with equal chances) but few. The others, weighted by the photographs that they speak for, are many and off by something that is bounded by
experience and not known: ``BIAS``. Both count by the inverse of their mean squared errors.

All of them test a model at the one place where it has no answer, since questions are spread out; the present model has one near every photograph. How
much better that is there follows from the photographs to which both give different classes. (Cross-validation of samples that are spread out is known
to be pessimistic: Wadoux, Heuvelink, de Bruin and Brus, Ecological Modelling 457, 2021.)
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

# One question in so many is drawn at random.
ONE_IN = 5
# Standard deviation of what the answers that were not drawn are off by, as a share; from pets37, dtd10 and cifar10.
BIAS = 0.12
# Of the photographs to which a model without an answer and the present one give different classes, by what share the present one is right more often;
# from pets37, dtd10 and cifar10.
REGAINED = 1 / 3
# The answered part of the random order ends where less than this share of it is answered: a person may skip a few.
ANSWERED = 0.8
# Tests before an accuracy is told: two or three say anything.
LEAST_TESTS = 5
# The curve of the next gain looks back to this share of the answers.
RECENT = 0.25


@dataclass(frozen=True)
class Progress:
    """What answers say of the model that they teach.

    Attributes:
        estimate: Accuracy on all photographs of the set that belong to one of the classes, in [0, 1]; nan before any test.
        low: Lower end of its interval.
        high: Upper end; 0 to 1 before any test.
        tested: Answers that the estimate rests on; those that said "none of these" are no test.
        drawn: Those of them that were drawn at random.
        classes_without_example: Classes that no answer has named, by index.
        gain: What the next round is expected to add to the accuracy, as a share; None before there is a curve.
        stop: Whether that is less than it has to be worth.
        why: All of this in one or two sentences.
    """

    estimate: float
    low: float
    high: float
    tested: int
    drawn: int
    classes_without_example: tuple[int, ...]
    gain: float | None
    stop: bool
    why: str


def progress(
    labels: ArrayLike,
    guesses: ArrayLike,
    drawn: ArrayLike,
    speaks_for: ArrayLike,
    *,
    classes: int,
    changed: ArrayLike | None = None,
    curve: Sequence[tuple[int, float]] = (),
    another: int = 10,
    worth: float = 0.01,
    level: float = 0.9,
) -> Progress:
    """Estimate the accuracy from K answers, and say whether another round pays. A pure function of its arguments.

    With ``t_i = [guess_i = label_i]`` the m drawn answers give ``mean t`` with mean squared error ``s^2 / m``, the others ``sum w t / sum w``, w what
    each speaks for, with ``s^2 sum w^2 / (sum w)^2 + BIAS^2``. The estimate weighs both by the inverses and adds ``REGAINED d``, d the mean of
    ``changed`` over the photographs without an answer; its interval is normal. ``s^2 = q (1 - q)``, q the share of right guesses with one more right
    and one more wrong.

    The curve A is fitted by ``a - b / sqrt(k + 1)`` over its points with at least a quarter of the answers; the next round of ``another`` answers is
    expected to gain ``f b (1 / sqrt(k + 1) - 1 / sqrt(k + another + 1))``. f, at most 1, is q over A(K): the curve is the model's own belief, and
    models believe too much.

    Args:
        labels: The answers, class indices (K,) in any order; -1 for "none of these".
        guesses: Class that a model gave to each photograph that had not learnt the answer, (K,): one that learnt all others but a part
            (:func:`~finelens.solvers.taught.left_out`), which is nearer to the present model than that of the moment of asking.
        drawn: Which photographs :func:`drawn_answers` counts as drawn at random, (K,) bool.
        speaks_for: Photographs that each answer speaks for, (K,), above 0; ones where that is not known.
        classes: C.
        changed: Of the photographs that each answer speaks for, itself left out, the share to which that model gives another class than the present
            one, (K,); None for none.
        curve: Answers that a model had learnt, and the accuracy that the present model believes that one to have
            (:func:`believed_accuracy` of the present posterior and the classes that were given then); one pair a refit, rising answers, the present
            model last.
        another: Answers of the next round.
        worth: What they have to gain to be worth it, as a share: 0.01 is a point.
        level: Of the interval.
    """
    y = np.asarray(labels)
    test = y >= 0
    right = (np.asarray(guesses) == y)[test].astype(np.float64)
    random, weight = np.asarray(drawn, dtype=bool)[test], np.asarray(speaks_for, dtype=np.float64)[test]
    missing = tuple(sorted(set(range(classes)) - set(y.tolist())))
    share = (right.sum() + 1) / (len(right) + 2)
    trust = min(1.0, share / curve[-1][1]) if len(curve) and curve[-1][1] > 0 else 1.0
    gain = None if (slope := _slope(curve)) is None else trust * slope * _step(curve[-1][0], another)
    mean, half = _estimate(right, share * (1 - share), random, weight, level) if len(right) else (math.nan, math.inf)
    estimate = float(np.clip(mean + regained(changed, speaks_for), 0, 1))
    low, high = (max(0.0, estimate - half), min(1.0, estimate + half)) if len(right) else (0.0, 1.0)
    stop = gain is not None and gain < worth
    counted = int(random.sum())
    said = f"about {estimate:.0%} right, between {low:.0%} and {high:.0%} ({level:.0%} interval, {len(right)} answers, {counted} drawn at random)"
    why = [said if len(right) else "no answer has tested the model yet"]
    if missing:
        why.append(f"{len(missing)} of {classes} classes have no example")
    if gain is not None:
        why.append(f"{another} more answers are expected to gain {100 * gain:.1f} points: {'you can stop' if stop else 'go on'}")
    return Progress(estimate, low, high, len(right), counted, missing, gain, stop, "; ".join(why))


def difference(
    labels: ArrayLike,
    guesses: ArrayLike,
    before: ArrayLike,
    drawn: ArrayLike,
    speaks_for: ArrayLike,
    *,
    changed: ArrayLike | None = None,
    level: float = 0.9,
) -> tuple[float, float, float]:
    """By how much more of the photographs a model is right than another one: estimate, low and high end of its interval, as shares.

    Weighted as in :func:`progress`, with ``d_i = [guess_i = label_i] - [before_i = label_i]`` for t, so that what is hard for both models cancels.

    Args:
        labels: As for :func:`progress`, like ``drawn``, ``speaks_for``, ``changed`` and ``level``; at least one names a class.
        guesses: Of the model that had not learnt the answer, (K,).
        before: Of the other, (K,).
        drawn: See there.
        speaks_for: See there.
        changed: See there.
        level: See there.
    """
    y = np.asarray(labels)
    test = y >= 0
    better = ((np.asarray(guesses) == y).astype(np.float64) - (np.asarray(before) == y))[test]
    # One answer more for and one against: a few that all agree are no proof.
    spread = float((better @ better + 2) / (len(better) + 2)) - float(better.sum() / (len(better) + 2)) ** 2
    estimate, half = _estimate(better, spread, np.asarray(drawn, dtype=bool)[test], np.asarray(speaks_for, dtype=np.float64)[test], level)
    estimate = min(1.0, estimate + regained(changed, speaks_for))
    return estimate, max(-1.0, estimate - half), min(1.0, estimate + half)


def regained(changed: ArrayLike | None, speaks_for: ArrayLike) -> float:
    """What the present model is better than those that were tested, as a share; arguments as for :func:`progress`."""
    others = np.asarray(speaks_for, dtype=np.float64) - 1
    if changed is None or others.sum() <= 0:
        return 0.0
    return REGAINED * float(others @ np.asarray(changed, dtype=np.float64) / others.sum())


def _estimate(right: np.ndarray, variance: float, random: np.ndarray, weight: np.ndarray, level: float) -> tuple[float, float]:
    """Weighted mean, and half the width of its interval."""
    from scipy.special import ndtri

    means, errors = [], []
    if random.any():
        means.append(float(right[random].mean()))
        errors.append(variance / int(random.sum()))
    if not random.all():
        own = weight[~random] / weight[~random].sum()
        means.append(float(own @ right[~random]))
        errors.append(variance * float(own @ own) + BIAS**2)
    precision = 1 / np.array(errors)
    mean = float(precision @ np.array(means) / precision.sum())
    return mean, float(ndtri((1 + level) / 2)) / math.sqrt(precision.sum())


def _slope(curve: Sequence[tuple[int, float]]) -> float | None:
    """b of ``a - b / sqrt(k + 1)``, at least 0; None with fewer than two points."""
    recent = [(k, value) for k, value in curve if k >= RECENT * curve[-1][0]]
    if len({k for k, _ in recent}) < 2:
        return None
    k, value = np.array(recent, dtype=np.float64).T
    return max(0.0, -float(np.polyfit(1 / np.sqrt(k + 1), value, 1)[0]))


def _step(k: int, another: int) -> float:
    return 1 / math.sqrt(k + 1) - 1 / math.sqrt(k + another + 1)


def believed_accuracy(posterior: ArrayLike, guesses: ArrayLike | None = None) -> float:
    """Accuracy that a posterior (N, C) believes some classes (N,) to have; without them, those that it gives itself.

    The mean of ``posterior[i, guesses[i]]``: comparing two models by it is far less noisy than by a few answers.
    """
    p = np.asarray(posterior, dtype=np.float64)
    chosen = p.argmax(1) if guesses is None else np.asarray(guesses)
    return float(p[np.arange(len(p)), chosen].mean())


def random_order(ids: Sequence[str], seed: int = 0) -> list[int]:
    """Positions of photographs in the order in which questions are drawn: by a hash of seed and identity, so it is the same on every day.

    Args:
        ids: Content hash or name of each photograph; equal ones stand beside each other.
        seed: Of the order.
    """
    keys = [hashlib.sha256(f"drawn:{seed}:{name}".encode()).digest() for name in ids]
    return sorted(range(len(keys)), key=keys.__getitem__)


def drawn_places(asked: int, n: int) -> list[bool]:
    """Which of the next n questions are drawn at random: of all questions every fifth.

    Args:
        asked: Questions before them: looks at one photograph or at a group.
        n: Questions.
    """
    return [number % ONE_IN == 0 for number in range(asked + 1, asked + n + 1)]


def drawn_answers(order: Sequence[int], answered: Collection[int]) -> frozenset[int]:
    """The answered photographs that count as drawn at random: those in the longest beginning of the order of which at least 4 in 5 are answered.

    Photographs that were asked for another reason count as well where the order comes to them: which those are, the order alone decides. So nothing
    has to be kept beside the answers. The next question to draw is the first of the order without an answer.

    Args:
        order: Of :func:`random_order`.
        answered: Positions with an answer, "none of these" included.
    """
    given = set(answered)
    found = np.cumsum([position in given for position in order])
    enough = np.flatnonzero(found >= ANSWERED * np.arange(1, len(order) + 1))
    length = int(enough[-1]) + 1 if len(enough) else 0
    return frozenset(order[:length]) & given

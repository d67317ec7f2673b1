"""What a person's answers say of the run that they teach: how often they contradict the model without them, and how accurate it is with them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike

from finelens.evaluation.prequential import LEAST_TESTS, difference, progress


@dataclass(frozen=True)
class Answered:
    """Answers of a run.

    Attributes:
        answers: Photographs that a person answered.
        none: Those of them that belong to none of the classes.
        without_example: Names of classes that no answer has.
        contradicted: Answers that name another class than the model did without any answer.
        against: What that model is.
        estimate: Accuracy with the answers, in [0, 1]; None where answers were not tested.
        low: Lower end of its 90 % interval.
        high: Upper end.
        drawn: Tested answers that count as drawn at random.
        gain: What the accuracy is above that of the unadapted model by the same tests, as a share; None where answers were not tested.
        gain_low: Lower end of its 90 % interval.
        gain_high: Upper end.
        only_ones: Why there is no estimate: so many tests asked for a class of which no other answer is. 0 where there is one.
        few_tests: Why there is no estimate: only so many answers tested the model. 0 where there is one, and where none did.
        unnamed: Share of the photographs that are probably of classes that nobody named, where the answers are the class list; None where there is
            another list.
        copies: Exact copies of answered photographs, which nobody answered and which have the person's answer.
        contradictions: Answers that name one photograph differently in two copies of it, a sentence each.
    """

    answers: int
    none: int
    without_example: tuple[str, ...]
    contradicted: int
    against: str
    estimate: float | None = None
    low: float | None = None
    high: float | None = None
    drawn: int = 0
    gain: float | None = None
    gain_low: float | None = None
    gain_high: float | None = None
    only_ones: int = 0
    few_tests: int = 0
    unnamed: float | None = None
    copies: int = 0
    contradictions: tuple[str, ...] = ()

    @property
    def named(self) -> int:
        """Answers that name a class."""
        return self.answers - self.none

    @property
    def counts(self) -> str:
        """How many were answered, and how: an answer that names no class is one all the same, and is in no count of classes."""
        said = f"{self.answers} {'photograph' if self.answers == 1 else 'photographs'} answered by a person"
        return f"{said}, {self.named} with a class and {self.none} as none of the classes" if self.none else said

    @property
    def line(self) -> str:
        """One line for a terminal."""
        if self.answers and not self.named:
            return f"answers: of {self.answers} photographs a person says that they belong to none of the classes"
        with_class = f"the {self.named} with a class" if self.none else str(self.named)
        said = f"answers: {self.counts}; {self.against} had named {self.contradicted} of {with_class} otherwise"
        if self.only_ones:
            only = "one of them is the only one of its class" if self.only_ones == 1 else f"{self.only_ones} of them are the only one of their class"
            return f"{said}; how many are right now they do not tell yet, since {only}"
        if self.few_tests:
            return f"{said}; how many are right now they do not tell yet: it takes {LEAST_TESTS} looks, and {self.few_tests} tell"
        if self.estimate is None:
            return said
        told = f"{said}; accuracy now about {self.estimate:.0%}, between {self.low:.0%} and {self.high:.0%} (90 % interval, by the answers)"
        return f"{told}{self.caveat}"

    @property
    def caveat(self) -> str:
        """What belongs to every accuracy that is told; empty where there is nothing to say."""
        if not self.unnamed:
            return ""
        return f", of photographs of the named classes alone: about {self.unnamed:.0%} are probably of classes that nobody has named, and wrong"


def answers_of_run(
    labels: ArrayLike,
    before: ArrayLike,
    against: str,
    class_names: tuple[str, ...],
    zero_shot: ArrayLike,
    left_out: ArrayLike | None,
    drawn: ArrayLike,
    speaks_for: ArrayLike,
    is_test: ArrayLike,
    *,
    changed: ArrayLike | None = None,
    looks: ArrayLike | None = None,
    listed: bool = True,
) -> Answered:
    """Count and estimate.

    Without a class list the share of the photographs of classes that nobody has named is that of the answers that are the only one of their class
    (Good, Biometrika 40, 1953, after Turing), of those that are tests where there are such: a group is one observation of its class.

    Args:
        labels: The answers, class indices (K,); -1 for "none of these".
        before: Class that the model without answers gave, (K,).
        against: What that model is, for sentences.
        class_names: C names.
        zero_shot: Class that the unadapted model gave, (K,).
        left_out: Class by models that had not learnt the answer, (K,); None where that was not asked.
        drawn: Which answers count as drawn at random, (K,) bool.
        speaks_for: Photographs that each answer speaks for, (K,).
        is_test: Which are tests, (K,) bool: photographs of a group are alike, so the one that it is around speaks for all.
        changed: As for :func:`~finelens.evaluation.prequential.progress`.
        looks: Number of the look at which each was given, (K,); None where each was given for itself.
        listed: Whether there is a class list beside the answers.
    """
    y, first = np.asarray(labels), np.asarray(before)
    named = y >= 0
    missing = tuple(name for c, name in enumerate(class_names) if c not in set(y.tolist()))
    found = Answered(len(y), int((~named).sum()), missing, int((first != y)[named].sum()), against)
    test, look = np.asarray(is_test, dtype=bool), np.arange(len(y)) if looks is None else np.asarray(looks)
    if not listed and len(y):
        found = replace(found, unnamed=share_unnamed(y, test, look))
    tests = np.where(test, y, -1)
    if left_out is None or not (tests >= 0).any():
        return found
    if (lone := lost_alone(tests, np.asarray(left_out), seen_once(y, look))) or (tests >= 0).sum() < LEAST_TESTS:
        return replace(found, only_ones=lone, few_tests=0 if lone else int((tests >= 0).sum()))
    estimate = progress(tests, left_out, drawn, speaks_for, classes=len(class_names), changed=changed)
    middle, low, high = (round(value, 4) for value in (estimate.estimate, estimate.low, estimate.high))
    gain, gain_low, gain_high = (round(value, 4) for value in difference(tests, left_out, zero_shot, drawn, speaks_for, changed=changed))
    return replace(found, estimate=middle, low=low, high=high, drawn=estimate.drawn, gain=gain, gain_low=gain_low, gain_high=gain_high)


def seen_once(labels: np.ndarray, looks: np.ndarray) -> np.ndarray:
    """Answers whose class was named at no other look, (K,) bool; arguments as for :func:`answers_of_run`."""
    named = labels >= 0
    pairs = np.unique(np.stack([labels[named], looks[named]]), axis=1)
    once: np.ndarray = named & (np.bincount(pairs[0], minlength=1)[labels] == 1)
    return once


def lost_alone(tests: np.ndarray, left_out: np.ndarray, once: np.ndarray) -> int:
    """Tests that were lost where no other answer is of their class, if they are most; else 0.

    A model without the only answer of a class knows nothing of it; the model that learns all answers does. Most tests lost by that tell too little.

    Args:
        tests: Class indices, (K,); -1 for what is no test.
        left_out: As for :func:`answers_of_run`.
        once: Of :func:`seen_once`.
    """
    lone = (tests >= 0) & once & (left_out != tests)
    return int(lone.sum()) if 2 * lone.sum() > (tests >= 0).sum() else 0


def share_unnamed(labels: np.ndarray, is_test: np.ndarray, looks: np.ndarray) -> float:
    """Share of the photographs that are probably of classes that no answer names; arguments as for :func:`answers_of_run`, at least one answer."""
    own = is_test if is_test.any() else np.ones(len(labels), dtype=bool)
    return round(float(seen_once(labels, looks)[own].mean()), 4)

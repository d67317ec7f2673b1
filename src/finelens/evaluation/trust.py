"""How accurate a model probably is on photographs without labels; ``evaluate`` and ``bench`` put it beside the truth. docs/robustness.md."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from finelens.evaluation.answered import Answered
from finelens.evaluation.none_of_these import SOME

Origin = Literal["own probabilities", "answers"]


@dataclass(frozen=True)
class Estimates:
    """What would be said of some photographs if they had no labels. Shares in [0, 1].

    Attributes:
        images: Photographs that it is about.
        confidence: Mean probability of the answers.
        agreement: Share that the unadapted model answers alike, mean over its text heads that are not the answer itself; None without one.
        threshold: Share of answers above the level of :func:`share_above`; None without the photographs of the fit.
        threshold_from: What the accuracy on the photographs of the fit was taken from: answers of a person, or else the model's own probabilities.
        answers: Accuracy on the photographs of the fit by a person's answers, each tested before it was learnt; None without.
        answers_low: Lower end of its 90 % interval.
        answers_high: Upper end.
        unnamed: Share of photographs like those of the fit that are probably of classes that nobody has named; None with a class list.
    """

    images: int
    confidence: float
    agreement: float | None = None
    threshold: float | None = None
    threshold_from: Origin | None = None
    answers: float | None = None
    answers_low: float | None = None
    answers_high: float | None = None
    unnamed: float | None = None

    def line(self, strangers: float | None) -> str:
        """Half a sentence: the estimate that was nearest to the truth where it was measured, of those that need nothing but a run.

        Args:
            strangers: Share of the photographs that probably belong to none of the classes: a probability says which class it is if it is one.
        """
        of = ", if all belonged to one of the classes" if (strangers or 0) >= SOME else ""
        if self.unnamed:
            of = f", of those of named classes: about {self.unnamed:.0%} are probably of others"
        return f"about {self.confidence:.0%} right by its own probabilities{of}"

    @property
    def others(self) -> list[str]:
        """Half a sentence for each of the other estimates."""
        parts = []
        if self.threshold is not None and self.threshold_from == "answers":
            parts.append(f"{self.threshold:.0%} by those and the answers of a person")
        elif self.threshold is not None:
            parts.append(f"{self.threshold:.0%} by how sure it was of the photographs that it was adapted to")
        if self.agreement is not None:
            parts.append(f"{self.agreement:.0%} answered as by the unadapted model")
        if self.answers is not None:
            parts.append(
                f"on the photographs of the fit {self.answers:.0%} ({self.answers_low:.0%} to {self.answers_high:.0%}) by the answers of a person"
            )
        return parts


def estimates(
    confidence: np.ndarray, answers: np.ndarray, unadapted: Iterable[np.ndarray], fit: np.ndarray | None = None, answered: Answered | None = None
) -> Estimates:
    """Estimate from what needs no label of these photographs.

    Args:
        confidence: Calibrated probability of each answer, (N,), N at least 1.
        answers: Classes, (N,).
        unadapted: Classes of the unadapted model, (N,), by each text head.
        fit: Calibrated probabilities of the answers on the photographs of the fit, (M,), those that a person answered left out; None where not known.
        answered: What a person's answers said of the fit; None without.
    """
    unnamed = None if answered is None else answered.unnamed
    found = Estimates(len(confidence), float(confidence.mean()), agreement(answers, unadapted), unnamed=unnamed)
    tested = None if answered is None else answered.estimate
    if answered is not None and tested is not None:
        found = replace(found, answers=tested, answers_low=answered.low, answers_high=answered.high)
    if fit is None or not len(fit):
        return found
    level = share_above(confidence, fit, float(fit.mean()) if tested is None else tested)
    return replace(found, threshold=level, threshold_from="own probabilities" if tested is None else "answers")


def agreement(answers: np.ndarray, others: Iterable[np.ndarray]) -> float | None:
    """Mean share of equal answers (N,) over the others; one that is the same throughout is no second opinion. None where there is none.

    For two runs of one algorithm that are calibrated together the share of equal answers is the accuracy in expectation (Jiang et al., ICLR 2022).
    A method and the model that it started from are no such pair: their errors have a common cause, so this is an indicator and no estimate.
    """
    shares = [float((answers == other).mean()) for other in others]
    second = [share for share in shares if share < 1]
    return float(np.mean(second)) if second else None


def share_above(confidence: np.ndarray, source: np.ndarray, accuracy: float) -> float:
    """Average thresholded confidence (Garg et al., ICLR 2022, equations 1 and 2): the share (N,) above the level that the source's accuracy sets.

    The level t is where ``mean(source > t) = accuracy``. The paper's accuracy needs labels of the source. Images at the level itself, which solvers
    make many of, count by the fraction that makes the source's own share exact.

    Args:
        confidence: Of the photographs in question, (N,).
        source: Of photographs whose accuracy is known or believed, (M,).
        accuracy: Theirs, in [0, 1].
    """
    ordered = np.sort(source)[::-1]
    level = ordered[min(len(ordered) - 1, int(np.floor(accuracy * len(ordered))))]
    above, at = float((source > level).mean()), float((source == level).mean())
    fraction = float(np.clip((accuracy - above) / at, 0, 1))
    return float((confidence > level).mean()) + fraction * float((confidence == level).mean())

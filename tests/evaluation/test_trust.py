from __future__ import annotations

import numpy as np
import pytest

from finelens.evaluation.answered import Answered
from finelens.evaluation.trust import agreement, estimates, share_above


def test_the_threshold_gives_its_source_back_exactly():
    source = np.random.default_rng(0).uniform(size=997)
    for accuracy in (0, 0.1, 0.5, 0.987, 1):
        assert share_above(source, source, accuracy) == pytest.approx(accuracy, abs=1e-12)
    # Solvers are equally sure of many images: all of them lie at the level.
    tied = np.array([1.0] * 90 + [0.3] * 10)
    assert share_above(tied, tied, 0.6) == pytest.approx(0.6)
    assert share_above(tied, tied, 0.95) == pytest.approx(0.95)


def test_the_threshold_by_hand():
    source = np.array([0.9, 0.8, 0.7, 0.6, 0.5])
    # 3 of 5 are right: the level lies at 0.6, above which the first three lie.
    assert share_above(np.array([0.95, 0.65, 0.55, 0.1]), source, 0.6) == 0.5
    assert share_above(np.full(4, 0.2), source, 0.6) == 0


def test_one_that_always_agrees_is_no_second_opinion():
    answers = np.array([0, 1, 2, 2])
    assert agreement(answers, [answers.copy(), np.array([0, 1, 0, 0])]) == 0.5
    assert agreement(answers, [answers]) is None
    assert agreement(answers, [np.array([0, 1, 2, 0]), np.array([0, 0, 0, 0])]) == 0.5


def test_where_the_level_comes_from_is_said():
    new, fit = np.array([0.9, 0.4]), np.array([0.8, 0.6, 0.5, 0.1])
    own = estimates(new, np.array([0, 1]), [], fit)
    assert (own.threshold_from, own.confidence, own.threshold) == ("own probabilities", 0.65, 0.5)
    assert own.agreement is None
    assert own.answers is None
    told = Answered(8, 0, (), 2, "zero-shot", estimate=1.0, low=0.8, high=1.0)
    by_answers = estimates(new, np.array([0, 1]), [], fit, told)
    # All of the fit are right: the level is the least sure of them.
    assert (by_answers.threshold_from, by_answers.threshold) == ("answers", 1.0)
    assert (by_answers.answers, by_answers.answers_low) == (1.0, 0.8)
    assert own.line(None) == by_answers.line(0.005) == "about 65% right by its own probabilities"
    assert own.line(0.4) == "about 65% right by its own probabilities, if all belonged to one of the classes"
    assert any("by the answers of a person" in other for other in by_answers.others)
    assert own.others == ["50% by how sure it was of the photographs that it was adapted to"]
    # Answers that tested no model say nothing.
    assert estimates(new, np.array([0, 1]), [], fit, Answered(1, 0, (), 0, "zero-shot")) == own

"""What the answers of a run say of it: counted by hand."""

from __future__ import annotations

import numpy as np
import pytest

from finelens.evaluation.answered import answers_of_run
from finelens.evaluation.prequential import difference, progress

NAMES = ("a", "b", "c")
LABELS = np.array([0, 1, 1, -1, 0])
BEFORE = np.array([0, 0, 2, 1, 1])
ZERO_SHOT = np.array([0, 2, 2, 0, 1])
DRAWN, ONES = np.array([True, True, False, False, False]), np.ones(5)


def test_contradictions_are_of_answers_that_name_a_class():
    found = answers_of_run(LABELS, BEFORE, "the unadapted model", NAMES, ZERO_SHOT, None, DRAWN, ONES, ONES)
    assert (found.answers, found.none, found.named, found.contradicted, found.without_example) == (5, 1, 4, 3, ("c",))
    assert found.estimate is None
    assert found.line == "answers: 5 photographs named by a person; the unadapted model had named 3 of 4 otherwise"


def test_the_estimate_is_that_of_the_answers_left_out():
    left_out = np.array([0, 1, 2, -1, 0])
    found = answers_of_run(LABELS, BEFORE, "the model without answers", NAMES, ZERO_SHOT, left_out, DRAWN, ONES, ONES)
    expected = progress(LABELS, left_out, DRAWN, ONES, classes=3)
    assert found.estimate == pytest.approx(expected.estimate, abs=1e-4)
    assert (found.low, found.high, found.drawn) == (round(expected.low, 4), round(expected.high, 4), 2)
    assert "accuracy now about" in found.line


def test_only_none_is_no_test():
    assert answers_of_run([-1], [0], "x", NAMES, [0], [-1], [True], [1], [True]).estimate is None


def test_a_photograph_of_a_group_is_no_test():
    left_out, alone = np.array([0, 1, 2, -1, 0]), np.array([True, False, False, True, True])
    found = answers_of_run(LABELS, BEFORE, "x", NAMES, ZERO_SHOT, left_out, DRAWN, ONES, alone)
    assert found.estimate == pytest.approx(progress([0, 0], [0, 0], [True, False], [1, 1], classes=3).estimate, abs=1e-4)
    assert (found.drawn, found.contradicted) == (1, 3)
    assert answers_of_run(LABELS, BEFORE, "x", NAMES, ZERO_SHOT, left_out, DRAWN, ONES, np.zeros(5)).estimate is None


def test_the_gain_is_over_the_unadapted_model_on_the_same_answers():
    left_out = np.array([0, 1, 2, -1, 0])
    found = answers_of_run(LABELS, BEFORE, "x", NAMES, ZERO_SHOT, left_out, DRAWN, ONES, ONES)
    gain, low, high = difference(LABELS, left_out, ZERO_SHOT, DRAWN, ONES)
    assert (found.gain, found.gain_low, found.gain_high) == (round(gain, 4), round(low, 4), round(high, 4))

"""What the answers of a run say of it: counted by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from finelens.evaluation.answered import Answered, answers_of_run
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
    assert found.counts == "5 photographs answered by a person, 4 with a class and 1 as none of the classes"
    assert found.line == f"answers: {found.counts}; the unadapted model had named 3 of the 4 with a class otherwise"


def times(count):
    """The answers so often: as many as an estimate takes."""
    return [np.tile(part, count) for part in (LABELS, BEFORE, ZERO_SHOT, np.array([0, 1, 2, -1, 0]), DRAWN, ONES)]


def test_the_estimate_is_that_of_the_answers_left_out():
    labels, before, zero_shot, left_out, drawn, ones = times(2)
    found = answers_of_run(labels, before, "the model without answers", NAMES, zero_shot, left_out, drawn, ones, ones)
    expected = progress(labels, left_out, drawn, ones, classes=3)
    assert found.estimate == pytest.approx(expected.estimate, abs=1e-4)
    assert (found.low, found.high, found.drawn) == (round(expected.low, 4), round(expected.high, 4), 4)
    assert "accuracy now about" in found.line


def test_the_share_of_classes_that_nobody_has_named_is_that_of_answers_without_a_fellow():
    labels, none = np.array([0, 0, 1, 2, -1, 2, 2]), np.zeros(7, dtype=bool)
    given = (labels, labels, "x", NAMES, labels, None, none, np.ones(7))
    assert answers_of_run(*given, np.ones(7)).unnamed is None
    # One of seven answers is the only one of its class.
    assert answers_of_run(*given, np.ones(7), listed=False).unnamed == pytest.approx(1 / 7, abs=1e-4)
    # A group is no answer of its own, and names its class all the same: of five that were asked alone one has no fellow.
    assert answers_of_run(*given, [True, False, True, True, True, False, True], listed=False).unnamed == pytest.approx(1 / 5)
    told = replace(answers_of_run(*given, np.ones(7), listed=False), estimate=0.8, low=0.7, high=0.9)
    assert told.line.endswith("about 14% are probably of classes that nobody has named, and wrong")


def test_only_none_is_no_test():
    assert answers_of_run([-1], [0], "x", NAMES, [0], [-1], [True], [1], [True]).estimate is None


def test_a_photograph_of_a_group_is_no_test():
    labels, before, zero_shot, left_out, drawn, ones = times(3)
    alone = np.tile([True, False, False, True, True], 3)
    found = answers_of_run(labels, before, "x", NAMES, zero_shot, left_out, drawn, ones, alone)
    assert found.estimate == pytest.approx(progress([0] * 6, [0] * 6, [True, False] * 3, [1] * 6, classes=3).estimate, abs=1e-4)
    assert (found.drawn, found.contradicted) == (3, 9)
    assert answers_of_run(labels, before, "x", NAMES, zero_shot, left_out, drawn, ones, np.zeros(15)).estimate is None


def test_two_answers_outside_of_groups_tell_no_accuracy():
    left_out, alone = np.array([0, 1, 2, -1, 0]), np.array([True, False, False, True, True])
    found = answers_of_run(LABELS, BEFORE, "x", NAMES, ZERO_SHOT, left_out, DRAWN, ONES, alone)
    assert (found.estimate, found.gain, found.few_tests) == (None, None, 2)
    assert found.line.endswith("do not tell yet: it takes 5 looks, and 2 tell")
    nobody = answers_of_run(LABELS, BEFORE, "x", NAMES, ZERO_SHOT, left_out, DRAWN, ONES, np.zeros(5))
    assert (nobody.estimate, nobody.few_tests) == (None, 0)


def test_the_gain_is_over_the_unadapted_model_on_the_same_answers():
    labels, before, zero_shot, left_out, drawn, ones = times(2)
    found = answers_of_run(labels, before, "x", NAMES, zero_shot, left_out, drawn, ones, ones)
    gain, low, high = difference(labels, left_out, zero_shot, drawn, ones)
    assert (found.gain, found.gain_low, found.gain_high) == (round(gain, 4), round(low, 4), round(high, 4))


def test_answers_that_are_the_only_one_of_their_class_do_not_say_that_it_is_not_known():
    labels, none = np.array([0, 1, 2, 2, 2]), np.zeros(5, dtype=bool)
    # The model without the only answer of a class misses it, twice in three tests.
    found = answers_of_run(labels[:3], [1, 2, 1], "x", NAMES, [1, 2, 1], [1, 2, 2], none[:3], np.ones(3), np.ones(3))
    assert (found.estimate, found.gain, found.only_ones) == (None, None, 2)
    assert found.line.endswith("do not tell yet, since 2 of them are the only one of their class")
    # What is right without its answer is a test, and so is what has a fellow.
    for left_out in ([0, 1, 2, 1, 2], [1, 2, 2, 2, 2]):
        told = answers_of_run(labels, [1, 2, 1, 1, 1], "x", NAMES, [1, 2, 1, 1, 1], left_out, none, np.ones(5), np.ones(5))
        assert told.only_ones == 0
        assert told.estimate is not None


def test_nothing_but_none_of_these_is_said_so():
    assert Answered(5, 5, (), 0, "zero-shot").line == "answers: of 5 photographs a person says that they belong to none of the classes"

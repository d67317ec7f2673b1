"""Accuracy and stop rule from answers: closed cases, and a simulation of answers that are mostly no random sample."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import norm

from finelens.evaluation.prequential import BIAS, REGAINED, believed_accuracy, difference, drawn_answers, drawn_places, progress, random_order

Q = norm.ppf(0.95)


def test_drawn_answers_alone_are_a_mean_with_its_binomial_error():
    found = progress([0, 1, 2, 0], [0, 1, 0, 0], [True] * 4, np.ones(4), classes=3)
    share = 4 / 6
    assert found.estimate == pytest.approx(0.75)
    assert found.low == pytest.approx(0.75 - Q * math.sqrt(share * (1 - share) / 4))
    assert found.high == pytest.approx(1)
    assert (found.tested, found.drawn, found.classes_without_example, found.gain, found.stop) == (4, 4, (), None, False)


def test_the_others_count_by_what_they_speak_for_and_with_their_bias():
    right, drawn, weight = np.array([1, 0, 1, 0]), np.array([True, True, False, False]), np.array([1, 1, 30, 10])
    found = progress(np.zeros(4), 1 - right, drawn, weight, classes=1)
    one, other = 0.25 / 2, 0.25 * (0.75**2 + 0.25**2) + BIAS**2
    mean = (0.5 / one + 0.75 / other) / (1 / one + 1 / other)
    assert found.estimate == pytest.approx(mean)
    assert found.low == pytest.approx(mean - Q * math.sqrt(1 / (1 / one + 1 / other)))
    assert found.drawn == 2
    narrow = progress(np.zeros(4), 1 - right, drawn, weight, classes=1, level=0.5)
    assert narrow.high - mean == pytest.approx(norm.ppf(0.75) * math.sqrt(1 / (1 / one + 1 / other)))


def test_a_difference_is_paired():
    # Right and wrong together: no difference, and the three of four that differ all speak for the first.
    gain, low, high = difference([0, 0, 0, 0], [0, 0, 0, 1], [0, 1, 1, 0], [True] * 4, np.ones(4))
    variance = (3 + 2) / 6 - (1 / 6) ** 2
    half = Q * math.sqrt(variance / 4)
    assert (gain, low, high) == pytest.approx((0.25, 0.25 - half, 0.25 + half))
    gain, low, high = difference([0, -1], [0, 0], [1, 1], [True] * 2, np.ones(2))
    assert (gain, high) == (1, 1)
    assert low < 0


def test_what_the_present_model_knows_beside_the_tested_ones_is_added():
    tests = ([0, 0, 0, -1], [0, 1, 1, 1], [True] * 4, [5, 1, 3, 3])
    # Of the photographs without an answer 4, 0, 2 and 2; of those with it nothing is asked.
    more = REGAINED * (4 * 0.5 + 2 * 0.25 + 2 * 1) / 8
    plain, found = (progress(*tests, classes=1, changed=changed) for changed in (None, [0.5, 1, 0.25, 1]))
    assert found.estimate == pytest.approx(plain.estimate + more)
    assert found.high - found.estimate == pytest.approx(plain.high - plain.estimate)
    labels, guesses, drawn, speaks_for = tests
    before, after = (difference(labels, guesses, [1] * 4, drawn, speaks_for, changed=changed) for changed in (None, [0.5, 1, 0.25, 1]))
    assert after[0] == pytest.approx(before[0] + more)
    # Where nobody says how many photographs an answer speaks for, nothing is added.
    assert progress([0, 0], [0, 1], [True] * 2, [1, 1], classes=1, changed=[1, 1]).estimate == pytest.approx(0.5)


def test_many_others_never_say_more_than_their_bias_allows():
    found = progress(np.zeros(4000), np.arange(4000) % 2, np.zeros(4000), np.ones(4000), classes=1)
    assert found.high - found.estimate == pytest.approx(Q * BIAS, rel=0.01)


def test_none_of_these_is_no_test_and_no_example():
    found = progress([-1, 2, -1], [0, 2, 1], [True] * 3, np.ones(3), classes=4)
    assert (found.tested, found.estimate, found.classes_without_example) == (1, 1.0, (0, 1, 3))
    assert "3 of 4 classes have no example" in found.why


def test_without_an_answer_nothing_is_known():
    found = progress([], [], [], [], classes=2)
    assert math.isnan(found.estimate)
    assert (found.low, found.high, found.stop, found.classes_without_example) == (0, 1, False, (0, 1))
    assert "no answer has tested the model" in found.why


def test_the_curve_says_what_another_round_gains():
    curve = [(k, 0.9 - 0.6 / math.sqrt(k + 1)) for k in (10, 20, 40)]
    # Trust is share of right guesses over what the curve believes of the present model.
    found = progress([0, 0], [0, 0], [True, True], [1, 1], classes=1, curve=curve, another=20)
    trust = 0.75 / (0.9 - 0.6 / math.sqrt(41))
    assert found.gain == pytest.approx(trust * 0.6 * (1 / math.sqrt(41) - 1 / math.sqrt(61)))
    assert not found.stop
    assert progress([0, 0], [0, 0], [True, True], [1, 1], classes=1, curve=curve, another=20, worth=0.02).stop
    assert progress([0], [0], [True], [1], classes=1, curve=[(10, 0.6), (20, 0.5)]).gain == 0
    assert progress([0], [0], [True], [1], classes=1, curve=[(10, 0.6)]).gain is None


def test_belief_is_the_mean_probability_of_the_guesses():
    p = np.array([[0.7, 0.3], [0.4, 0.6]])
    assert believed_accuracy(p) == pytest.approx(0.65)
    assert believed_accuracy(p, [1, 1]) == pytest.approx(0.45)


def test_the_order_of_drawing_follows_the_photographs_and_the_seed():
    ids = [f"photograph {i}" for i in range(50)]
    order = random_order(ids)
    assert sorted(order) == list(range(50))
    assert [ids[i] for i in order] == [ids[::-1][i] for i in random_order(ids[::-1])]
    assert random_order(ids, 1) != order


def test_what_is_drawn_is_the_answered_beginning_of_the_order():
    order = [7, 3, 5, 0, 1, 2, 4, 6, 8, 9]
    assert drawn_answers(order, {7, 3, 5, 6}) == {7, 3, 5}
    assert drawn_answers(order, {6, 8}) == set()
    # One of five may be skipped.
    assert drawn_answers(order, {7, 3, 0, 1, 9}) == {7, 3, 0, 1}
    assert drawn_answers([], set()) == set()


def test_nine_intervals_of_ten_cover_the_truth_though_easy_photographs_are_asked_more():
    rng = np.random.default_rng(0)
    covered, off = [], []
    for _ in range(400):
        n, asked = 1000, 50
        odds = rng.uniform(0.1, 0.95, n)
        right = rng.random(n) < odds
        order = rng.permutation(n).tolist()
        # Four questions in five prefer photographs that are easy by up to a quarter.
        chosen = set(order[: asked // 5]) | set(rng.choice(n, asked - asked // 5, replace=False, p=(odds + 0.7) / (odds + 0.7).sum()).tolist())
        rows = np.array(sorted(chosen))
        drawn = drawn_answers(order, chosen)
        found = progress(np.zeros(len(rows)), ~right[rows], [i in drawn for i in rows], np.ones(len(rows)), classes=1)
        covered.append(found.low <= right.mean() <= found.high)
        off.append(found.estimate - right.mean())
    assert 0.88 <= np.mean(covered) <= 1
    assert 0 < np.mean(off) < 0.05


def test_every_fifth_question_is_drawn_whatever_came_before():
    assert drawn_places(0, 10) == [False] * 4 + [True] + [False] * 4 + [True]
    assert drawn_places(3, 3) == [False, True, False]
    assert sum(drawn_places(11, 1000)) == 200

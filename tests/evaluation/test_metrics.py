from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest
from sklearn.metrics import balanced_accuracy_score, confusion_matrix, f1_score, log_loss

from finelens.core.schemas import EVALUATION_KEYS
from finelens.errors import UserError
from finelens.evaluation.metrics import (
    accuracy,
    bootstrap_interval,
    class_accuracies,
    class_mean_accuracy,
    confusion,
    ece,
    evaluate_predictions,
    f1_scores,
    macro_f1,
    mcnemar,
    nll,
    paired_bootstrap,
    worst_10_percent,
)

# Class 0: 2 of 3 right; class 1: 0 of 1; class 2: 2 of 2; class 3 has no image but is predicted once.
TARGETS = np.array([0, 0, 0, 1, 2, 2])
PREDICTIONS = np.array([0, 0, 3, 0, 2, 2])


def test_by_hand():
    assert accuracy(TARGETS, PREDICTIONS) == pytest.approx(4 / 6)
    np.testing.assert_allclose(class_accuracies(TARGETS, PREDICTIONS, 4), [2 / 3, 0, 1, np.nan])
    assert class_mean_accuracy(TARGETS, PREDICTIONS, 4) == pytest.approx((2 / 3 + 0 + 1) / 3)
    np.testing.assert_allclose(f1_scores(TARGETS, PREDICTIONS, 4), [2 / 3, 0, 1, np.nan])
    assert macro_f1(TARGETS, PREDICTIONS, 4) == pytest.approx(5 / 9)
    assert worst_10_percent(TARGETS, PREDICTIONS, 4) == 0
    np.testing.assert_array_equal(confusion(TARGETS, PREDICTIONS, 4).toarray(), [[2, 0, 0, 1], [1, 0, 0, 0], [0, 0, 2, 0], [0, 0, 0, 0]])


def test_worst_tenth_of_the_classes_that_have_images():
    targets = np.repeat(np.arange(11), 4)
    predictions = targets.copy()
    predictions[[0, 1, 2, 4]] = 20  # class 0: 1 of 4, class 1: 3 of 4
    assert worst_10_percent(targets, predictions, 30) == pytest.approx((1 / 4 + 3 / 4) / 2)


pairs = st.integers(2, 6).flatmap(
    lambda c: st.tuples(st.just(c), st.lists(st.tuples(st.integers(0, c - 1), st.integers(0, c - 1)), min_size=1, max_size=40).map(np.array))
)


@given(pairs)
@pytest.mark.filterwarnings("ignore")
def test_class_means_agree_with_scikit_learn(case):
    n_classes, table = case
    targets, predictions = table.T
    present = np.unique(targets)
    assert class_mean_accuracy(targets, predictions, n_classes) == pytest.approx(balanced_accuracy_score(targets, predictions))
    assert macro_f1(targets, predictions, n_classes) == pytest.approx(
        f1_score(targets, predictions, labels=present, average="macro", zero_division=0)
    )
    np.testing.assert_array_equal(
        confusion(targets, predictions, n_classes).toarray(), confusion_matrix(targets, predictions, labels=range(n_classes))
    )


def test_ece_by_hand():
    # Bin (14/15, 1]: confidence 0.95 and 0.99, one of two right. Bin (8/15, 9/15]: confidence 0.6, right. The right end belongs to the bin.
    p = np.array([[0.95, 0.05], [0.99, 0.01], [0.6, 0.4]])
    assert ece([0, 1, 0], p) == pytest.approx((abs(1 - 1.94) + abs(1 - 0.6)) / 3)
    assert ece([0], [[1.0, 0.0]]) == 0
    assert ece([1], [[1.0, 0.0]]) == 1
    assert ece([0, 0], [[0.6, 0.4], [0.61, 0.39]]) == pytest.approx((0.4 + 0.39) / 2)
    # A confidence on the edge of two bins belongs to the lower one.
    assert ece([0, 1], [[0.5, 0.3, 0.2], [0.45, 0.3, 0.25]], bins=2) == pytest.approx((0.5 - 0.45) / 2)
    # Errors of opposite sign in one bin cancel; in two bins they do not.
    assert ece([0, 1], [[0.5, 0.5], [0.5, 0.5]], bins=1) == pytest.approx(0)


def test_ece_of_calibrated_predictions_is_small():
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.ones(5), size=20000)
    targets = (p.cumsum(axis=1) < rng.random((20000, 1))).sum(axis=1)
    assert ece(targets, p) < 0.02
    sharpened = p**3 / (p**3).sum(axis=1, keepdims=True)
    assert ece(targets, sharpened) > 0.15


def test_nll_agrees_with_scikit_learn_and_survives_zero():
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.ones(4), size=50)
    targets = rng.integers(0, 4, size=50)
    assert nll(targets, p) == pytest.approx(log_loss(targets, p, labels=range(4)))
    assert nll([1], [[1.0, 0.0]]) == pytest.approx(-math.log(1e-12))


def drawn_interval(values, n=4000):
    """The definition: resample images."""
    rng = np.random.default_rng(1)
    draws = values[rng.integers(0, len(values), size=(n, len(values)))].mean(axis=1)
    return np.quantile(draws, [0.025, 0.975])


def test_intervals_agree_with_resampling_images():
    rng = np.random.default_rng(0)
    a = rng.random(400) < 0.7
    b = np.where(rng.random(400) < 0.2, rng.random(400) < 0.5, a)
    np.testing.assert_allclose(bootstrap_interval(a, n=20000), drawn_interval(a.astype(float)), atol=0.006)
    np.testing.assert_allclose(paired_bootstrap(a, b, n=20000), drawn_interval(a.astype(float) - b), atol=0.006)


def test_all_right_is_no_certainty():
    # Wilson's interval, by hand: 1.96^2 / (12 + 1.96^2).
    assert bootstrap_interval(np.ones(12, bool)) == (pytest.approx(0.7575, abs=1e-3), 1.0)
    assert bootstrap_interval(np.zeros(12, bool)) == (0.0, pytest.approx(0.2425, abs=1e-3))


def test_pairing_makes_the_interval_narrow():
    rng = np.random.default_rng(0)
    b = rng.random(1000) < 0.5
    a = b.copy()
    a[np.flatnonzero(~b)[:20]] = True
    low, high = paired_bootstrap(a, b)
    assert 0 < low < 0.02 < high < 0.04


def test_intervals_depend_on_the_seed_alone():
    correct = np.arange(50) % 3 > 0
    assert bootstrap_interval(correct, seed=3) == bootstrap_interval(correct, seed=3)
    assert paired_bootstrap(correct, ~correct, seed=3) == paired_bootstrap(correct, ~correct, seed=3)
    assert paired_bootstrap(correct, correct) == (0.0, 0.0)


@pytest.mark.parametrize(("only_a", "only_b"), [(0, 1), (3, 7), (5, 5), (40, 61), (900, 1000)])
def test_mcnemar_is_the_exact_binomial_test(only_a, only_b):
    a = np.array([1] * only_a + [0] * only_b + [1] * 30 + [0] * 30, dtype=bool)
    b = np.array([0] * only_a + [1] * only_b + [1] * 30 + [0] * 30, dtype=bool)
    assert mcnemar(a, b) == pytest.approx(binomtest(only_a, only_a + only_b).pvalue, rel=1e-9)
    assert mcnemar(a, b) == mcnemar(b, a)


def test_mcnemar_of_equal_results():
    assert mcnemar([True, False], [True, False]) == 1


def test_paired_results_must_have_one_length():
    with pytest.raises(ValueError, match="differ in length"):
        mcnemar([True], [True, False])


def one_hot(predictions, n_classes, confidence=0.9):
    p = np.full((len(predictions), n_classes), (1 - confidence) / (n_classes - 1))
    p[np.arange(len(predictions)), predictions] = confidence
    return p


def test_evaluation():
    zero_shot = np.array([0, 1, 1, 1, 2, 0])
    result = evaluate_predictions(
        TARGETS, one_hot(PREDICTIONS, 4), ["a", "b", "c", "d"], zero_shot=zero_shot, branches={"cls": zero_shot, "fg": TARGETS}, n_failed=2
    )
    assert set(EVALUATION_KEYS) <= result.keys()
    assert result["accuracy"] == pytest.approx(4 / 6)
    assert result["class_mean_accuracy"] == pytest.approx(5 / 9)
    assert result["zero_shot_accuracy"] == pytest.approx(3 / 6)
    assert result["zero_shot_class_mean_accuracy"] == pytest.approx((1 / 3 + 1 + 1 / 2) / 3)
    assert (result["n"], result["n_failed"]) == (6, 2)
    assert result["absent_classes"] == ["d"]
    assert result["difference"] == pytest.approx(1 / 6)
    assert result["difference_interval"][0] <= 1 / 6 <= result["difference_interval"][1]
    assert result["accuracy_interval"][0] <= 4 / 6 <= result["accuracy_interval"][1]
    # Only the method is right on images 1 and 5, only zero-shot on image 3: P(at most 1 of 3) doubled is 1.
    assert result["mcnemar_p"] == 1
    assert result["branches"] == {"cls": pytest.approx(3 / 6), "fg": 1.0}
    assert result["per_class"][1] == {"class": "b", "n": 1, "accuracy": 0.0, "f1": 0.0, "zero_shot_accuracy": 1.0}
    assert result["per_class"][3] == {"class": "d", "n": 0, "accuracy": None, "f1": None, "zero_shot_accuracy": None}
    assert json.loads(json.dumps(result, allow_nan=False)) == result


def test_nothing_to_evaluate():
    with pytest.raises(UserError, match="no labelled image could be read"):
        evaluate_predictions([], np.zeros((0, 2)), ["a", "b"], zero_shot=[], n_failed=3)


def test_shapes_that_disagree_are_the_programmers_error():
    with pytest.raises(ValueError, match="shapes do not agree"):
        evaluate_predictions([0, 1], [[1.0, 0.0]], ["a", "b"], zero_shot=[0, 1])

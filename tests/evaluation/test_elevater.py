from __future__ import annotations

import numpy as np
import pytest

from finelens.evaluation.elevater import map_11_points, roc_auc


def test_eleven_points_by_hand():
    # Right, wrong, right: precision 1 up to recall 0.5 (six points), 2/3 up to 1 (five points).
    own, scores = np.array([True, False, True, False]), np.array([0.9, 0.8, 0.7, 0.1])
    by_hand = (6 * 1 + 5 * 2 / 3) / 11
    assert map_11_points(own[:, None], scores[:, None]) == pytest.approx(by_hand)
    # A class without an image is left out, one in perfect order has 1.
    both = np.stack([own, np.zeros(4, bool), np.array([False, True, False, False])], axis=1)
    three = np.stack([scores, scores, np.array([0.1, 0.8, 0.2, 0.3])], axis=1)
    assert map_11_points(both, three) == pytest.approx((by_hand + 1) / 2)


def test_equal_scores_are_no_order():
    own = np.array([True, False, False, True])
    # All alike: precision 1/2 at every recall, and the point at recall 0 that counts as 1.
    assert map_11_points(own[:, None], np.ones((4, 1))) == pytest.approx((10 * 0.5 + 1) / 11)
    assert map_11_points(own[::-1][:, None], np.ones((4, 1))) == map_11_points(own[:, None], np.ones((4, 1)))
    assert roc_auc(own, np.ones(4)) == 0.5


def test_roc_auc_counts_pairs():
    own, scores = np.array([True, True, False, False, False]), np.array([0.9, 0.4, 0.5, 0.4, 0.1])
    assert roc_auc(own, scores) == pytest.approx((3 + 0 + 0.5 + 1) / 6)
    assert roc_auc(~own, -scores) == pytest.approx(roc_auc(own, scores))


def test_as_scikit_learn_has_it():
    from sklearn.metrics import precision_recall_curve, roc_auc_score

    random = np.random.default_rng(0)
    for digits in (1, 3):
        own, scores = random.random(60) < 0.3, np.round(random.random(60), digits)
        assert roc_auc(own, scores) == pytest.approx(roc_auc_score(own, scores))
        precision, recall, _ = precision_recall_curve(own, scores)
        points = [precision[recall >= threshold].max() for threshold in np.linspace(0, 1, 11)]
        assert map_11_points(own[:, None], scores[:, None]) == pytest.approx(np.mean(points))

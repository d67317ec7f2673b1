"""Few-shot Gaussian discriminant analysis against a plain reference, and what it does where shots are few."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from finelens.errors import UserError
from finelens.protocol import Hints
from finelens.solvers import Gda
from tests.solvers.data import SCALE, cloud

X, W, Y = cloud([9, 12, 7, 11, 8], tilt=0.5)
N, D = X.shape
C = len(W)


def shots(per_class, classes=range(C), y=Y):
    rows = np.concatenate([(y == c).nonzero()[0][:per_class] for c in classes])
    return Hints(torch.as_tensor(rows), torch.as_tensor(y[rows]))


def fitted(hints, x=X, w=W, **options):
    return Gda(**options).fit(x, prototypes=w, logit_scale=SCALE, hints=hints)


@pytest.mark.parametrize("classes", [range(C), range(3)])
def test_reference(classes):
    hints = shots(4, classes)
    rows, y = hints.index.numpy(), hints.label.numpy()
    means = W + X.mean(0) - W.mean(0)
    for c in classes:
        means[c] = X[rows][y == c].mean(0)
    covariance = np.cov((X[rows] - means[y]).T)
    theta = D * np.linalg.pinv((len(y) - 1) * covariance + np.trace(covariance) * np.eye(D))
    gaussian = X @ (means @ theta).T - 0.5 * np.einsum("cd,de,ce->c", means, theta, means)
    text = SCALE * X @ W.T
    alpha = (text - text.mean(1, keepdims=True)).std() / (gaussian - gaussian.mean(1, keepdims=True)).std()
    logits = text + alpha * gaussian
    solver = fitted(hints)
    assert solver.alpha_ == pytest.approx(alpha, rel=1e-9)
    expected = np.exp(logits - logits.max(1, keepdims=True))
    np.testing.assert_allclose(solver.predict_proba(X), expected / expected.sum(1, keepdims=True), atol=1e-9)


def test_shots_help_where_texts_are_poor_and_more_help_more():
    gains = []
    for seed in range(4):
        x, w, y = cloud([30] * 6, spread=0.5, tilt=0.9, seed=seed)
        rest = np.setdiff1d(np.arange(len(y)), shots(8, range(6), y).index)
        zero_shot = ((x @ w.T).argmax(1) == y)[rest].mean()
        gains.append([(fitted(shots(k, range(6), y), x, w).predict(x) == y)[rest].mean() - zero_shot for k in (1, 8)])
    one, eight = np.mean(gains, axis=0)
    assert 0.01 < one < eight


def test_a_class_without_a_shot_keeps_its_text():
    """It is still found, where images and texts lie far apart as well."""
    gap = np.random.default_rng(7).normal(size=D)
    gap *= 1.5 / np.linalg.norm(gap)
    x, w, y = cloud([30] * 5, tilt=0.1)
    solver = fitted(shots(5, range(4), y), x + gap, w)
    missing = y == 4
    assert (solver.predict(x + gap) == 4)[missing].mean() > 0.8
    assert (solver.predict(x + gap) == 4)[~missing].mean() < 0.1


def test_order_of_images_classes_and_shots_carries_through():
    hints = shots(3)
    expected = fitted(hints).predict_proba(X)
    rows = np.random.default_rng(0).permutation(N)
    place = np.argsort(rows)
    moved = Hints(torch.as_tensor(place[hints.index.numpy()]), hints.label)
    np.testing.assert_allclose(fitted(moved, X[rows]).predict_proba(X), expected, atol=1e-9)
    order = np.array([2, 0, 4, 3, 1])
    renamed = Hints(hints.index, torch.as_tensor(np.argsort(order)[hints.label.numpy()]))
    np.testing.assert_allclose(fitted(renamed, w=W[order]).predict_proba(X), expected[:, order], atol=1e-9)


def test_chunks_do_not_matter():
    np.testing.assert_allclose(fitted(shots(3), chunk_size=5).predict_proba(X), fitted(shots(3)).predict_proba(X), atol=1e-10)


@pytest.mark.parametrize(
    ("x", "hints"),
    [
        (X, Hints(torch.tensor([4]), torch.tensor([2]))),  # one image in all: no covariance
        (X, shots(1)),
        (np.repeat(X[:5], 8, axis=0), Hints(torch.arange(40), torch.arange(40) // 8)),  # duplicates: no scatter
        (np.concatenate([X, np.zeros((3, D))]), Hints(torch.tensor([0, N]), torch.tensor([1, 0]))),
        (np.zeros((4, D)), Hints(torch.tensor([0, 1]), torch.tensor([0, 1]))),
        (X[:2], Hints(torch.tensor([1]), torch.tensor([4]))),  # fewer images than classes
    ],
)
def test_few_shots_stay_finite(x, hints):
    solver = fitted(hints, x)
    p = solver.predict_proba(X)
    assert np.isfinite(p).all()
    np.testing.assert_allclose(p.sum(1), 1, atol=1e-9)


def test_without_a_shot_of_a_listed_class_there_is_nothing_to_learn():
    for hints in (None, Hints(torch.tensor([0]), torch.tensor([-1]))):
        with pytest.raises(UserError, match="labelled images"):
            fitted(hints)

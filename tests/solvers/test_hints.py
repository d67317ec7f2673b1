"""Hints: classes that a person gave for some rows of a fit, in every solver."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from finelens.errors import UserError
from finelens.protocol import Hints
from tests.solvers.data import SCALE, SOLVERS, cloud

X, W, Y = cloud([9, 12, 7, 11], tilt=0.5)
NEW, _, _ = cloud([3, 3, 3, 3], seed=5)

each = pytest.mark.parametrize("name", SOLVERS)


def hints(index, label):
    return Hints(torch.as_tensor(index), torch.as_tensor(label))


def both(name, given, x=X, **options):
    """Answers for the images of the fit, and for others."""
    solver = SOLVERS[name](**options)
    p = solver.fit_predict_proba(x, prototypes=W, logit_scale=SCALE, hints=given)
    return p, solver.predict_proba(NEW)


@each
def test_a_hinted_image_is_answered_as_hinted(name):
    # Every image gets a class that it does not have.
    rows, wrong = np.arange(0, len(X), 3), (Y[::3] + 1) % 4
    p, new = both(name, hints(rows, wrong))
    np.testing.assert_array_equal(p[rows], np.eye(4)[wrong])
    for answers in (p, new):
        np.testing.assert_allclose(answers.sum(1), 1, atol=1e-6)
    # The statistics moved as well.
    assert np.abs(new - both(name, None)[1]).max() > 1e-6


@each
def test_hints_help_where_texts_are_poor(name):
    right = {True: 0, False: 0}
    for seed in range(3):
        x, w, y = cloud([30] * 5, tilt=0.6, seed=seed)
        rows = np.concatenate([(y == c).nonzero()[0][:8] for c in range(5)])
        rest = np.setdiff1d(np.arange(len(y)), rows)
        for given in right:
            solver = SOLVERS[name]()
            p = solver.fit_predict_proba(x, prototypes=w, logit_scale=SCALE, hints=hints(rows, y[rows]) if given else None)
            right[given] += (p.argmax(1) == y)[rest].sum()
    assert right[True] >= right[False]


@each
def test_images_of_no_class_are_left_out_of_the_statistics(name):
    none, named = np.array([0, 5, 6]), np.array([2, 7, 20])
    kept = np.setdiff1d(np.arange(len(X)), none)
    p, new = both(name, hints(np.concatenate([none, named]), np.concatenate([np.full(3, -1), Y[named]])))
    solver = SOLVERS[name]()
    place = np.searchsorted(kept, named)
    expected = solver.fit_predict_proba(X[kept], prototypes=W, logit_scale=SCALE, hints=hints(place, Y[named]))
    np.testing.assert_allclose(p[kept], expected, atol=1e-12)
    np.testing.assert_allclose(new, solver.predict_proba(NEW), atol=1e-12)
    np.testing.assert_allclose(p[none], solver.predict_proba(X[none]), atol=1e-12)


@each
def test_order_of_hints_does_not_matter(name):
    rows = np.array([3, 8, 1])
    for a, b in zip(both(name, hints(rows, Y[rows])), both(name, hints(rows[::-1].copy(), Y[rows][::-1].copy())), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-12)


@each
def test_empty_hints_are_none(name):
    for a, b in zip(both(name, Hints(torch.zeros(0).long(), torch.zeros(0).long())), both(name, None), strict=True):
        assert np.array_equal(a, b)


@each
@pytest.mark.parametrize("labels", [Y, np.zeros(len(Y), dtype=int)])
def test_all_images_may_be_hinted(name, labels):
    p, new = both(name, hints(np.arange(len(X)), labels))
    assert (p.argmax(1) == labels).all()
    assert np.isfinite(new).all()


@each
def test_more_hints_than_a_prior_allows(name):
    p, new = both(name, hints(np.arange(30), np.zeros(30, dtype=int)))
    assert np.isfinite(p).all()
    assert np.isfinite(new).all()


@pytest.mark.parametrize(
    ("index", "label", "message"),
    [
        ([0, 1], [0], "one class for each position"),
        ([0, 99], [0, 0], "different rows of X, from 0 to 38"),
        ([-1], [0], "different rows"),
        ([1, 1], [0, 0], "different rows"),
        ([0], [4], "classes from 0 to 3"),
        ([0], [-2], "classes from 0 to 3"),
        (np.arange(39), np.full(39, -1), "nothing to fit"),
    ],
)
def test_impossible_hints_are_refused(index, label, message):
    with pytest.raises(UserError, match=message):
        both("stata", hints(index, label))


def test_transport_brings_hinted_and_free_images_together_to_the_prior():
    rows = np.array([0, 4, 9])
    solver = SOLVERS["ot"](prior=[4, 3, 2, 1], tol=1e-9, max_iter=2000)
    p = solver.fit_predict_proba(X, prototypes=W, logit_scale=SCALE, hints=hints(rows, [2, 2, 3]))
    np.testing.assert_allclose(p.mean(0), [0.4, 0.3, 0.2, 0.1], atol=1e-7)
    assert (p[rows].argmax(1) == [2, 2, 3]).all()


def test_hinted_images_alone_decide_the_means_of_their_classes():
    """With every image hinted, the mixtures' statistics are those of the given classes, whatever the texts say."""
    given = hints(np.arange(len(X)), Y)
    solver = SOLVERS["transclip"]().fit(X, prototypes=W, logit_scale=SCALE, hints=given)
    means = np.stack([X[c == Y].mean(0) for c in range(4)])
    np.testing.assert_allclose(solver.means_, means / np.linalg.norm(means, axis=1, keepdims=True), atol=1e-12)
    solver = SOLVERS["stata"]().fit(X, prototypes=W, logit_scale=SCALE, hints=given)
    n = np.bincount(Y)[:, None]
    means = n / (n + 1) * means + 1 / (n + 1) * W
    np.testing.assert_allclose(solver.means_, means / np.linalg.norm(means, axis=1, keepdims=True), atol=1e-12)

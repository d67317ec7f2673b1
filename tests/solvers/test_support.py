"""SuS-X and CapS-Adapter against a plain reference: the votes of a support set from outside."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, softmax

from finelens.errors import UserError
from finelens.protocol import Hints, Support
from finelens.solvers import CapsAdapter, SusX
from tests.solvers.data import SCALE, cloud, unit

X, W, Y = cloud([20, 25, 15, 22, 3], tilt=0.4)
NEW, _, _ = cloud([4, 4, 4, 4, 4], seed=5)
N, D = X.shape
C = len(W)
# The classes' own directions, in photographs of another kind; class 4 has none.
KEYS = unit(np.stack([X[(c == Y)].mean(0) for c in range(4) for _ in range(3)]) + 0.1 * np.random.default_rng(3).normal(size=(12, D)))
LABELS = np.repeat(np.arange(4), 3)
CAPTIONS = unit(W[LABELS] + 0.1 * np.random.default_rng(4).normal(size=(12, D)))


def support(captions=False):
    return Support(torch.tensor(KEYS), torch.tensor(LABELS), torch.tensor(CAPTIONS) if captions else None)


def centred_std(logits):
    return (logits - logits.mean(1, keepdims=True)).std()


def per_class(scores, labels):
    """Mean over the keys of each class (N, C); a class without keys gets the mean of the others."""
    votes = np.stack([scores[:, labels == c].mean(1) if (labels == c).any() else np.full(len(scores), np.nan) for c in range(C)], axis=1)
    return np.where(np.isnan(votes), np.nanmean(votes, axis=1, keepdims=True), votes)


def reference(new, images, keys, labels):
    """The divergence of every pair, written out, with the released formula up to its rescaling."""
    beta = 1 / np.mean(1 - X @ keys.T)
    weights = []

    def votes(x):
        log_q, log_p = log_softmax(SCALE / 50 * x @ W.T, axis=1), log_softmax(SCALE / 50 * images @ W.T, axis=1)
        divergence = (np.exp(log_q)[:, None] * (log_q[:, None] - log_p)).sum(-1)  # (N, K)
        return per_class(np.exp(-beta * (1 - x @ keys.T)), labels), -per_class(divergence, labels)

    weights = [centred_std(SCALE * X @ W.T) / centred_std(part) / np.sqrt(2) for part in votes(X)]
    return softmax(SCALE * new @ W.T + sum(a * part for a, part in zip(weights, votes(new), strict=True)), axis=1)


def test_sus_x_reference():
    solver = SusX(support=support())
    p = solver.fit_predict_proba(X, prototypes=W, logit_scale=SCALE)
    np.testing.assert_allclose(p, reference(X, KEYS, KEYS, LABELS), atol=1e-9)
    np.testing.assert_allclose(solver.predict_proba(NEW), reference(NEW, KEYS, KEYS, LABELS), atol=1e-9)


def test_caps_adapter_reference():
    solver = CapsAdapter(support=support(captions=True), caption_share=0.3).fit(X, prototypes=W, logit_scale=SCALE)
    np.testing.assert_allclose(solver.predict_proba(NEW), reference(NEW, KEYS, 0.7 * KEYS + 0.3 * CAPTIONS, LABELS), atol=1e-9)


def test_without_its_captions_part_caps_adapter_is_sus_x():
    a = CapsAdapter(support=support(captions=True), caption_share=0.0).fit(X, prototypes=W, logit_scale=SCALE)
    b = SusX(support=support()).fit(X, prototypes=W, logit_scale=SCALE)
    np.testing.assert_allclose(a.predict_proba(NEW), b.predict_proba(NEW), atol=1e-12)


@pytest.mark.parametrize("solver", [SusX, CapsAdapter])
def test_a_good_support_set_helps_where_texts_are_poor(solver):
    texts = unit(W + 0.8 * np.random.default_rng(6).normal(size=W.shape) / 4)
    answers = solver(support=support(captions=True)).fit(X, prototypes=texts, logit_scale=SCALE).predict(X)
    assert (answers == Y).mean() > ((X @ texts.T).argmax(1) == Y).mean()


def test_hinted_images_join_the_support_set():
    rows = np.array([5, 1])
    order = np.argsort(Y[rows] * 100 + rows)
    solver = SusX(support=support()).fit(X, prototypes=W, logit_scale=SCALE, hints=Hints(torch.tensor(rows), torch.tensor(Y[rows])))
    keys, labels = np.concatenate([KEYS, X[rows[order]]]), np.concatenate([LABELS, Y[rows[order]]])
    np.testing.assert_allclose(solver.predict_proba(NEW), reference(NEW, keys, keys, labels), atol=1e-9)


def test_one_image_is_answered_alike_alone_and_among_many():
    """Released TIP-X rescales by the range over all test images, and its loop over hundreds leaves the last n % 100 rows without a divergence."""
    solver = SusX(support=support()).fit(X, prototypes=W, logit_scale=SCALE)
    many = np.concatenate([NEW, X, unit(np.random.default_rng(9).normal(size=(37, D)))])
    together = solver.predict_proba(many)
    np.testing.assert_allclose(np.concatenate([solver.predict_proba(row[None]) for row in many]), together, atol=1e-12)
    assert len(many) % 100


def test_order_of_the_support_set_does_not_matter():
    order = np.random.default_rng(0).permutation(12)
    shuffled = Support(torch.tensor(KEYS[order]), torch.tensor(LABELS[order]))
    a, b = (SusX(support=s).fit(X, prototypes=W, logit_scale=SCALE).predict_proba(NEW) for s in (support(), shuffled))
    np.testing.assert_allclose(a, b, atol=1e-10)


@pytest.mark.parametrize(
    ("solver", "given", "message"),
    [
        (SusX, None, "needs a support set"),
        (SusX, Support(torch.tensor(KEYS[:, :5]), torch.tensor(LABELS)), r"features \(K, 16\)"),
        (SusX, Support(torch.tensor(KEYS), torch.tensor(LABELS[:3])), "and K classes"),
        (SusX, Support(torch.tensor(KEYS[:0]), torch.tensor(LABELS[:0])), "and K classes"),
        (SusX, Support(torch.tensor(KEYS), torch.tensor(LABELS + 2)), "classes from 0 to 4"),
        (CapsAdapter, support(), "needs a caption for every image"),
    ],
)
def test_unusable_support_is_refused(solver, given, message):
    with pytest.raises(UserError, match=message):
        solver(support=given).fit(X, prototypes=W)

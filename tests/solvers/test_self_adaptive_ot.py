"""Self-adaptive transport: a plain reference, and what its limits are."""

from __future__ import annotations

import numpy as np
from scipy.special import softmax

from finelens.solvers import SelfAdaptiveOt
from tests.solvers.data import SCALE, cloud
from tests.solvers.test_joint_gmm import second_view

X, W, Y = cloud([9, 12, 7, 11], tilt=0.5)
N, C = len(X), len(W)
Z = second_view(Y)
TEXT = softmax(SCALE * X @ W.T, axis=1)


def unit_rows(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def plan(total, eps=0.01, steps=15):
    """Sinkhorn as the paper has it: columns to N / C, then rows to 1."""
    q = np.exp((total - total.max(1, keepdims=True)) / eps)
    q /= q.sum(1, keepdims=True)
    for _ in range(steps):
        q *= N / C / q.sum(0)
        q /= q.sum(1, keepdims=True)
    return q


def test_reference():
    views, rounds = [X, Z], 4
    top = np.argsort(-TEXT, axis=0)[:8]
    means = [unit_rows(np.stack([TEXT[top[:, c], c] @ view[top[:, c]] for c in range(C)])) for view in views]
    variances = [np.full(view.shape[1], 1 / view.shape[1]) for view in views]
    shares = np.full(2, 0.5)

    def said():
        return [
            softmax(-0.5 * ((x[:, None] - m) ** 2 / s).sum(-1) * 512 / (50 * x.shape[1]), axis=1)
            for x, m, s in zip(views, means, variances, strict=True)
        ]

    for _ in range(rounds):
        posteriors = said()
        z = plan(TEXT + sum(a * p for a, p in zip(shares, posteriors, strict=True)))
        agreed = np.array([(p.argmax(1) == z.argmax(1)).mean() for p in posteriors])
        shares = agreed / agreed.sum()
        means = [unit_rows(z.T @ x) for x in views]
        variances = [np.einsum("nc,ncd->d", z, (x[:, None] - m) ** 2) / N for x, m in zip(views, means, strict=True)]
    solver = SelfAdaptiveOt(rounds=rounds)
    np.testing.assert_allclose(solver.fit_predict_proba(views, prototypes=W, logit_scale=SCALE), z, atol=1e-9)
    np.testing.assert_allclose(solver.weights_, 2 * shares, atol=1e-12)
    total = TEXT + sum(a * p for a, p in zip(shares, said(), strict=True))
    np.testing.assert_allclose(solver.predict_proba(views), total / 2, atol=1e-9)
    # New images with the first view alone: the text and that view.
    first = TEXT + shares[0] * said()[0]
    np.testing.assert_allclose(solver.predict_proba(X), first / first.sum(1, keepdims=True), atol=1e-9)


def test_flat_likelihoods_leave_the_balanced_text_posterior():
    solver = SelfAdaptiveOt(temperature=1e12, eps=1.0)
    p = solver.fit_predict_proba(X, prototypes=W, logit_scale=SCALE)
    np.testing.assert_allclose(p, plan(TEXT, eps=1.0), atol=1e-6)
    np.testing.assert_allclose(p.sum(0), N / C, rtol=1e-3)
    assert np.ptp(TEXT.sum(0)) > 1


def test_an_encoder_that_knows_the_classes_weighs_more():
    x, w, y = cloud([30, 25, 35, 30], spread=0.4, tilt=0.5)
    other = second_view(y)
    noise = unit_rows(np.random.default_rng(0).normal(size=(len(y), 9)))
    _, second, third = SelfAdaptiveOt().fit([x, other, noise], prototypes=w, logit_scale=SCALE).weights_.tolist()
    assert third < 0.7 * second
    alone = SelfAdaptiveOt().fit_predict_proba(x, prototypes=w, logit_scale=SCALE).argmax(1) == y
    both = SelfAdaptiveOt().fit_predict_proba([x, other], prototypes=w, logit_scale=SCALE).argmax(1) == y
    assert both.mean() > alone.mean()

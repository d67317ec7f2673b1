"""InMaP against a plain reference, and its steps against what defines them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax

from finelens.solvers import InMap
from finelens.solvers.inmap import proxy_loss, sharpen
from tests.solvers.data import SCALE, cloud, unit

X, W, Y = cloud([9, 12, 7, 11])
N, D = X.shape
C = len(W)


def test_reference():
    """Balanced and sharpened targets; then any optimiser ends where ours does."""
    kernel, column = np.exp(SCALE * X @ W.T), np.ones(C)
    for _ in range(20):
        column = 1 / C / (kernel * column / (kernel * column).sum(1, keepdims=True) / column).mean(0)
    targets = kernel * column / (kernel * column).sum(1, keepdims=True)
    assert 0 < (targets.max(1) > 0.6).sum() < N
    targets = np.where(targets.max(1, keepdims=True) > 0.6, targets == targets.max(1, keepdims=True), targets)

    def loss(free):
        return -(targets * log_softmax(SCALE / 4 * X @ unit(free.reshape(C, D)).T, axis=1)).sum() / N

    found = minimize(loss, W.flatten(), method="BFGS", options={"gtol": 1e-7, "maxiter": 5000})
    solver = InMap(prior="uniform", max_iter=500)
    p = solver.fit_predict_proba(X, prototypes=W, logit_scale=SCALE)
    assert solver.loss_ == pytest.approx(found.fun, abs=1e-6)
    np.testing.assert_allclose(p, softmax(SCALE / 4 * X @ unit(found.x.reshape(C, D)).T, axis=1), atol=2e-3)
    np.testing.assert_allclose(solver.predict_proba(X), p, atol=1e-12)


def test_loss_never_rises_and_ends_below_that_of_the_texts():
    losses = [InMap(max_iter=rounds).fit(X, prototypes=W, logit_scale=SCALE).loss_ for rounds in (1, 2, 4, 8, 16, 32)]
    assert (np.diff(losses) <= 1e-12).all()
    assert losses[-1] < losses[0]


def test_gradient_by_finite_differences():
    rng = np.random.default_rng(0)
    free, targets = torch.tensor(2 * rng.normal(size=(C, D))), torch.tensor(rng.dirichlet(np.ones(C), size=N))
    x = torch.tensor(X)
    parts = list(zip(x.split(7), targets.split(7), strict=True))
    _, gradient = proxy_loss(parts, N, free, 5.0)
    for _ in range(5):
        step = torch.tensor(rng.normal(size=(C, D)))
        sides = [float(proxy_loss(parts, N, free + sign * 1e-5 * step, 5.0)[0]) for sign in (1, -1)]
        assert (sides[0] - sides[1]) / 2e-5 == pytest.approx(float((gradient * step).sum()), rel=1e-6, abs=1e-9)


def test_sure_rows_become_one_hot():
    rows = torch.tensor([[0.7, 0.2, 0.1], [0.6, 0.3, 0.1], [0.2, 0.2, 0.6]])
    expected = torch.tensor([[1.0, 0, 0], [0.6, 0.3, 0.1], [0.2, 0.2, 0.6]])
    torch.testing.assert_close(sharpen(rows, 0.65), expected)


def test_proxies_are_unit_and_a_class_without_text_has_none():
    w = np.concatenate([W, np.zeros((1, D))])
    solver = InMap().fit(X, prototypes=w, logit_scale=SCALE)
    np.testing.assert_allclose(solver.coef_.norm(dim=1) * 4 / SCALE, [1] * C + [0], atol=1e-12)


def test_temperatures_follow_the_models_scale():
    """The published 0.01 and 0.04 are those of a scale of 100."""
    solver = InMap().fit(X, prototypes=W, logit_scale=100.0)
    np.testing.assert_allclose(solver.coef_.norm(dim=1), 25, atol=1e-9)


@pytest.mark.parametrize("prior", ["uniform", [3, 1, 2, 2]])
def test_a_given_prior_is_what_the_targets_are_balanced_to(prior):
    solver = InMap(prior=prior, threshold=1.0, softness=1.0, max_iter=300).fit(X, prototypes=W, logit_scale=5.0)
    target = np.full(C, 1 / C) if prior == "uniform" else np.array(prior) / sum(prior)
    np.testing.assert_allclose(solver.prior_, target)
    np.testing.assert_allclose(solver.predict_proba(X).mean(0), target, atol=0.03)

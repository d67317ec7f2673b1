"""Solvers for streams: one pass, an answer at each arrival, a state that can be put away; and each against a plain reference."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, softmax
from sklearn.exceptions import NotFittedError

from finelens.errors import UserError
from finelens.protocol import Hints
from finelens.solvers import TDA, OnlineGda, OnZeta
from tests.solvers.data import ONLINE, SCALE, cloud, unit

X, W, Y = cloud([20, 25, 15, 22], tilt=0.4)
N, D = X.shape
C = len(W)

each = pytest.mark.parametrize("name", ONLINE)


def begun(name, w=W):
    return ONLINE[name]().begin(prototypes=w, logit_scale=SCALE)


def streamed(solver, x=X):
    return np.stack(list(solver.stream(x)))


@each
@pytest.mark.parametrize("stop", [1, 31, 32, 50])
def test_a_stream_that_was_put_away_goes_on_with_the_same_answers(name, stop):
    whole = begun(name)
    expected = streamed(whole)
    first = begun(name)
    before = streamed(first, X[:stop])
    state = first.state()
    # Going on with the first must not reach into the state that was taken.
    streamed(first, X[stop:][::-1])
    second = ONLINE[name]().load_state(state, classes=C, features=D)
    np.testing.assert_array_equal(np.concatenate([before, streamed(second, X[stop:])]), expected)
    for key, value in whole.state().items():
        assert torch.equal(value, second.state()[key]), key


@each
def test_an_answer_does_not_know_what_comes_later(name):
    other = np.concatenate([X[:20], X[40:][::-1]])
    np.testing.assert_array_equal(streamed(begun(name))[:20], streamed(begun(name), other)[:20])


@each
def test_batches_of_a_stream_do_not_matter(name):
    whole, parts = begun(name), ONLINE[name]()
    answers = streamed(whole)
    one_by_one = begun(name)
    np.testing.assert_array_equal(np.concatenate([streamed(one_by_one, row[None]) for row in X]), answers)
    for part in np.split(X, [3, 40, 41]):
        parts.partial_fit(part, prototypes=W, logit_scale=SCALE)
    for key, value in whole.state().items():
        assert torch.equal(value, parts.state()[key]), key


@each
def test_asking_changes_nothing(name):
    solver = begun(name)
    solver.partial_fit(X[:40])
    state = solver.state()
    solver.predict_proba(X)
    assert all(torch.equal(value, solver.state()[key]) for key, value in state.items())


@each
def test_a_fit_streams_the_rows_in_the_order_of_its_seed(name):
    order = torch.randperm(N, generator=torch.Generator().manual_seed(3)).numpy()
    solver, fitted = begun(name), ONLINE[name](seed=3)
    answers = fitted.fit_predict_proba(X, prototypes=W, logit_scale=SCALE)
    np.testing.assert_array_equal(answers[order], streamed(solver, X[order]))
    np.testing.assert_array_equal(fitted.predict_proba(X), solver.predict_proba(X))
    assert not np.array_equal(answers, ONLINE[name](seed=4).fit_predict_proba(X, prototypes=W, logit_scale=SCALE))


@each
def test_hinted_images_come_first(name):
    hints = Hints(torch.tensor([7, 30, 55]), torch.tensor([2, -1, 0]))
    solver = ONLINE[name]()
    solver.partial_fit(X[[55, 7, 30]], prototypes=W, logit_scale=SCALE, hints=Hints(torch.arange(3), torch.tensor([0, 2, -1])))
    kept = np.delete(np.arange(N), 30)
    rest = [row for row in kept[torch.randperm(N - 1, generator=torch.Generator().manual_seed(0)).numpy()] if row not in (7, 55)]
    expected = streamed(solver, X[rest])
    p = ONLINE[name]().fit_predict_proba(X, prototypes=W, logit_scale=SCALE, hints=hints)
    np.testing.assert_array_equal(p[rest], expected)


@each
def test_a_stream_that_never_began_is_refused(name):
    with pytest.raises(NotFittedError):
        next(ONLINE[name]().stream(X))
    with pytest.raises(UserError, match="needs prototypes"):
        ONLINE[name]().partial_fit(X)
    with pytest.raises(UserError, match="stream began with 16"):
        begun(name).partial_fit(X[:, :5])


def test_onzeta_reference():
    rho, v, expected = np.zeros(C), W.copy(), []
    for i, x in enumerate(X, start=1):
        p = softmax(SCALE * x @ W.T + rho)
        rho = np.maximum(0, rho - 20 / np.sqrt(i) * (p - 1 / C))
        q = softmax(SCALE / 4 * x @ v.T)
        beta = 0.8 * np.sqrt(i / (i + C))
        expected.append(beta * q + (1 - beta) * p)
        v = unit(v - 0.5 / np.sqrt(i) * SCALE / 4 * np.outer(q - p, x))
    solver = begun("onzeta")
    np.testing.assert_allclose(streamed(solver), expected, atol=1e-10)
    np.testing.assert_allclose(solver.rho_, rho, atol=1e-10)
    np.testing.assert_allclose(
        solver.predict_proba(X[:1])[0], beta * softmax(SCALE / 4 * X[0] @ v.T) + (1 - beta) * softmax(SCALE * X[0] @ W.T + rho)
    )


def test_onzeta_holds_up_a_class_that_texts_neglect():
    """The weights rho are there for the mean posterior: without them the last class, whose text is moved away, hardly occurs."""
    w = W.copy()
    w[3] = unit(w[3] - 2 * X[Y == 3].mean(0))
    mean = {balance: streamed(OnZeta(balance=balance, share=0.0).begin(prototypes=w, logit_scale=SCALE)).mean(0)[3] for balance in (0.0, 1.0)}
    assert mean[1.0] > mean[0.0]


def test_tda_reference():
    positive, negative = [[] for _ in range(C)], [[] for _ in range(C)]
    text_square = votes_square = 0.0
    expected = []
    for i, x in enumerate(X):
        text = SCALE * x @ W.T
        p = softmax(text)
        entropy, c = -(p * log_softmax(text)).sum() / np.log(C), p.argmax()
        positive[c] = sorted([*positive[c], (entropy, i)])[:3]
        if 0.2 < entropy < 0.5:
            negative[c] = sorted([*negative[c], (entropy, i, p > 0.03)], key=lambda item: item[0])[:2]
        keys = [(X[j], k) for k in range(C) for _, j in positive[k]]
        beta = 5 / max(1e-6, 1 - X[: i + 1].mean(0) @ np.mean([key for key, _ in keys], axis=0))
        votes = np.zeros(C)
        for key, k in keys:
            votes[k] += np.exp(-beta * (1 - x @ key))
        for _, j, mask in itertools.chain(*negative):
            votes -= 0.117 / 2 * np.exp(-beta / 5 * (1 - x @ X[j])) * mask
        text_square += ((text - text.mean()) ** 2).sum()
        votes_square += ((votes - votes.mean()) ** 2).sum()
        expected.append(softmax(text + np.sqrt(text_square / votes_square) * votes))
    assert any(negative)
    np.testing.assert_allclose(streamed(begun("tda")), expected, atol=1e-9)


def test_tda_never_drops_a_hinted_key():
    solver = TDA().partial_fit(X, prototypes=W, logit_scale=SCALE, hints=Hints(torch.tensor([0]), torch.tensor([2])))
    assert (solver.keys_[2] @ torch.tensor(X[0])).max() == pytest.approx(1)


def test_online_gda_reference():
    mass, sums, second = np.zeros(C), np.zeros((C, D)), np.zeros((D, D))
    coef, intercept, expected = SCALE * W, np.zeros(C), []
    for i, x in enumerate(X, start=1):
        gamma = softmax(coef @ x + intercept)
        expected.append(gamma)
        mass, sums, second = mass + gamma, sums + np.outer(gamma, x), second + np.outer(x, x)
        if i not in (2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64):
            continue
        seen, n, v = X[:i], mass[:, None], sums / mass[:, None]
        mu = n / (n + 1) * v + 1 / (n + 1) * (W + seen.mean(0) - W.mean(0))
        covariance = second / i - sum(m * np.outer(u, u) for m, u in zip(mass, v, strict=True)) / i
        theta = D * np.linalg.pinv((i - 1) * covariance + np.trace(covariance) * np.eye(D))
        weights, bias = mu @ theta, -0.5 * np.einsum("cd,de,ce->c", mu, theta, mu)
        text, gaussian = SCALE * seen @ W.T, seen @ weights.T + bias
        alpha = (text - text.mean(1, keepdims=True)).std() / (gaussian - gaussian.mean(1, keepdims=True)).std()
        coef, intercept = SCALE * W + alpha * weights, alpha * bias
    solver = begun("online-gda")
    np.testing.assert_allclose(streamed(solver), expected, atol=1e-8)
    np.testing.assert_allclose(solver.coef_, coef, atol=1e-6)


def test_the_covariance_is_that_within_the_classes():
    solver = OnlineGda().partial_fit(X, prototypes=W, logit_scale=SCALE, hints=Hints(torch.arange(N), torch.tensor(Y)))
    means = solver.sums_ / solver.mass_[:, None]
    np.testing.assert_allclose(means, [X[c == Y].mean(0) for c in range(C)], atol=1e-12)
    within = sum((X[i] - means[Y[i]].numpy())[:, None] * (X[i] - means[Y[i]].numpy()) for i in range(N)) / N
    covariance = solver.second_ / N - (solver.mass_[:, None] * means).T @ means / N
    np.testing.assert_allclose(covariance, within, atol=1e-12)

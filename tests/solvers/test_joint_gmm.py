"""The joint mixture: a plain reference, an objective that never falls, and what a second view is worth."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, softmax

from finelens.errors import UserError
from finelens.protocol import Hints
from finelens.solvers import Consensus, JointGmm, StatA
from finelens.solvers.known import Known
from finelens.solvers.mixture import Mixture, MixtureFit
from tests.solvers.data import SCALE, cloud, unit

X, W, Y = cloud([9, 12, 7, 11], tilt=0.5)
N, D = X.shape
C = len(W)
NOBODY = Known(torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64))


def second_view(y, width=9, spread=0.15, seed=3):
    """Features of another model: the same classes, another space."""
    rng = np.random.default_rng(seed)
    centres = unit(rng.normal(size=(y.max() + 1, width)))
    return unit(centres[y] + spread * rng.normal(size=(len(y), width)))


Z = second_view(Y)


def log_normal(x, means, variance):
    return -0.5 * ((x[:, None] - means) ** 2 / variance + np.log(variance)).sum(-1)


def fit(views, w=W, **options):
    return JointGmm(**options).fit(views, prototypes=w, logit_scale=SCALE)


def test_reference():
    log_y = log_softmax(SCALE * X @ W.T, axis=1)
    z, views = np.exp(log_y), [X, Z]
    top = np.argsort(-z, axis=0)[:8]
    anchors = [W + X.mean(0) - W.mean(0), unit(np.stack([z[top[:, c], c] @ Z[top[:, c]] for c in range(C)]))]
    means = list(anchors)
    variances = [np.einsum("nc,ncd->d", z, (x[:, None] - m) ** 2) / (N + C) for x, m in zip(views, means, strict=True)]

    def assign(rounds_weights):
        logits = log_y + sum(w * own for w, own in zip(rounds_weights, likelihoods, strict=True))
        return softmax(logits, axis=1)

    for step in range(11):
        likelihoods = [log_normal(x, m, s) * 512 / (50 * x.shape[1]) for x, m, s in zip(views, means, variances, strict=True)]
        if step == 10:
            break
        opinions = [np.exp(log_y), *(softmax(own, axis=1) for own in likelihoods)]
        agree = np.array([sum((opinions[v] * opinions[u]).sum() for u in range(3) if u != v) for v in (1, 2)])
        weights = agree / agree.mean()
        z = assign(weights)
        for v, x in enumerate(views):
            means[v] = (z.T @ x + anchors[v]) / (z.sum(0)[:, None] + 1)
            own = np.einsum("nc,ncd->d", z, (x[:, None] - means[v]) ** 2)
            variances[v] = (own + ((anchors[v] - means[v]) ** 2).sum(0)) / (N + C)
    solver = JointGmm()
    p = solver.fit_predict_proba(views, prototypes=W, logit_scale=SCALE)
    np.testing.assert_allclose(p, assign(weights), atol=1e-9)
    np.testing.assert_allclose(solver.weights_, weights, atol=1e-9)
    np.testing.assert_allclose(solver.predict_proba(views), p, atol=1e-9)
    # New images with the first view alone: text and the first mixture.
    first = log_y + weights[0] * likelihoods[0]
    np.testing.assert_allclose(solver.predict_proba(X), softmax(first, axis=1), atol=1e-9)


@pytest.mark.parametrize("prior", [None, torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64)])
def test_objective_never_falls_for_given_weights(prior):
    rng = np.random.default_rng(5)
    views = [torch.tensor(unit(rng.normal(size=(60, d)))) for d in (6, 4)]
    x = torch.cat(views, 1)
    log_y = torch.tensor(rng.normal(size=(60, C))).log_softmax(1)
    fit = MixtureFit(x, log_y, torch.zeros(C, 6), NOBODY, widths=[6, 4], anchor=2.0, confident=8, temperature=50.0, chunk_size=16)
    fit.anchors = anchors = torch.tensor(rng.normal(size=(C, 10)))
    weights, potentials = torch.tensor([1.4, 0.6], dtype=torch.float64), torch.zeros(C, dtype=torch.float64)
    mixture = Mixture(anchors, torch.ones(10, dtype=torch.float64), weights, potentials, [6, 4], 50.0)

    def objective(z):
        value = (z * log_y).sum() - torch.xlogy(z, z).sum()
        parts = zip(views, mixture.means.split([6, 4], 1), mixture.variances.split([6, 4]), anchors.split([6, 4], 1), (1.4, 0.6), strict=True)
        for own, means, variance, held, weight in parts:
            normal = torch.distributions.Normal(means, variance.sqrt())
            data = (z * normal.log_prob(own[:, None]).sum(-1)).sum() + 2.0 * normal.log_prob(held).sum()
            value = value + weight * 512 / (50 * own.shape[1]) * data
        return float(value)

    dual, values = potentials, []
    for _ in range(15):
        logits, dual = fit._assign(mixture, mixture.likelihoods(x), prior, dual, 1.0, 100)
        z = logits.softmax(1)
        if prior is not None:
            np.testing.assert_allclose(z.mean(0), prior, rtol=2e-3)
        values.append(objective(z))
        fit.update(mixture, z)
        values.append(objective(z))
    # Sinkhorn stops at 0.1 % of a class's mass: that much the feasible set moves.
    assert (np.diff(values) >= (-1e-9 if prior is None else -0.05)).all()
    assert values[-1] > values[0] + 1


def test_a_good_second_view_helps_and_weighs_more_than_a_useless_one():
    gains, weights = [], []
    for seed in range(4):
        x, w, y = cloud([25] * 8, spread=0.3, tilt=0.5, seed=seed)
        good, noise = second_view(y, seed=seed), unit(np.random.default_rng(seed).normal(size=(len(y), 9)))
        scores = [(fit(views, w).predict(views) == y).mean() for views in (x, [x, good])]
        gains.append(scores[1] - scores[0])
        weights.append(fit([x, good, noise], w).weights_.numpy())
    assert np.mean(gains) > 0.03
    assert all(weight[1] > weight[2] == 0 for weight in weights)
    np.testing.assert_allclose(np.mean(weights, axis=1), 2 / 3)


def test_order_of_images_carries_through_in_all_views():
    order = np.random.default_rng(1).permutation(N)
    expected = fit([X, Z]).predict_proba([X, Z])
    np.testing.assert_allclose(fit([X[order], Z[order]]).predict_proba([X, Z]), expected, atol=1e-9)
    np.testing.assert_allclose(fit([X, Z], chunk_size=5).predict_proba([X, Z]), expected, atol=1e-9)
    classes = np.array([2, 0, 3, 1])
    np.testing.assert_allclose(fit([X, Z], W[classes]).predict_proba([X, Z]), expected[:, classes], atol=1e-9)


def test_order_of_the_further_views_does_not_matter():
    other = second_view(Y, width=5, seed=8)
    np.testing.assert_allclose(fit([X, Z, other]).predict_proba([X, Z, other]), fit([X, other, Z]).predict_proba([X, other, Z]), atol=1e-9)


@pytest.mark.parametrize("prior", ["free", "estimated", "uniform", [4, 3, 2, 1]])
def test_prior_of_the_shared_posterior(prior):
    solver = JointGmm(prior=prior)
    p = solver.fit_predict_proba([X, Z], prototypes=W, logit_scale=SCALE)
    if prior == "uniform" or isinstance(prior, list):
        target = np.full(C, 1 / C) if prior == "uniform" else np.array(prior) / 10
        np.testing.assert_allclose(p.mean(0), target, rtol=5e-3)
    assert (solver.potentials_ == 0).all() == (prior == "free")
    np.testing.assert_allclose(solver.predict_proba([X, Z]), p, atol=1e-9)


def test_hints_reach_every_view():
    rows = np.arange(0, N, 2)
    given = Hints(torch.as_tensor(rows), torch.as_tensor((Y[rows] + 1) % C))
    p = JointGmm().fit_predict_proba([X, Z], prototypes=W, logit_scale=SCALE, hints=given)
    assert (p[rows].argmax(1) == (Y[rows] + 1) % C).all()
    # Images of no class leave every view.
    none = Hints(torch.arange(5), torch.full((5,), -1))
    expected = fit([X[5:], Z[5:]])
    left = JointGmm().fit([X, Z], prototypes=W, logit_scale=SCALE, hints=none)
    np.testing.assert_allclose(left.means_, expected.means_, atol=1e-12)


def test_odd_second_views_stay_finite():
    for other in (np.zeros((N, 3)), np.repeat(Z[:1], N, axis=0), np.ones((N, 1))):
        p = JointGmm().fit_predict_proba([X, other], prototypes=W, logit_scale=SCALE)
        assert np.isfinite(p).all()
    p = JointGmm(anchor=0.0).fit_predict_proba([X[:2], Z[:2]], prototypes=W, logit_scale=SCALE)
    assert np.isfinite(p).all()


def test_views_that_do_not_fit_are_refused_in_words():
    with pytest.raises(UserError, match="rows; give the same images"):
        fit([X, Z[:-1]])
    with pytest.raises(UserError, match=r"X\[1\] holds values that are not finite"):
        fit([X, np.full_like(Z, np.nan)])
    with pytest.raises(UserError, match=r"widths \[9\], but JointGmm was fitted on \[16, 9\]"):
        fit([X, Z]).predict(Z)
    with pytest.raises(UserError, match=r"only .*JointGmm"):
        StatA().fit([X, Z], prototypes=W)


def test_a_view_of_noise_is_not_listened_to():
    x, w, y = cloud([30, 40, 30], tilt=0.5)
    noise = unit(np.random.default_rng(0).normal(size=(len(x), 200)))
    good = second_view(y)
    for solver in (JointGmm, Consensus):
        alone = solver().fit([x], prototypes=w, logit_scale=SCALE)
        noisy = solver().fit([x, noise], prototypes=w, logit_scale=SCALE)
        assert noisy.weights_.tolist() == [1.0, 0.0]
        assert np.allclose(noisy.predict_proba([x, noise]), alone.predict_proba([x]), atol=1e-5)
        # It says nothing of new images either, and what has something to say is heard as without it.
        other = unit(np.random.default_rng(1).normal(size=(len(x), 200)))
        assert np.allclose(noisy.predict_proba([x, other]), alone.predict_proba([x]), atol=1e-5)
        both = solver().fit([x, good, noise], prototypes=w, logit_scale=SCALE)
        pair = solver().fit([x, good], prototypes=w, logit_scale=SCALE)
        assert both.weights_.tolist() == pytest.approx([*pair.weights_.tolist(), 0.0])
        assert np.allclose(both.predict_proba([x, good, noise]), pair.predict_proba([x, good]), atol=1e-5)

"""Each solver against a plain float64 reference, and its steps against what defines them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import logsumexp, softmax

from finelens.errors import UserError
from finelens.solvers import GdaEm, SinkhornOt, StatA, TransClip, ZLaP, sinkhorn
from finelens.solvers.assignments import update_assignments
from finelens.solvers.conjugate_gradient import conjugate_gradient
from finelens.solvers.gaussians import discriminant
from finelens.solvers.gda_em import _Rounds
from finelens.solvers.known import Known
from finelens.solvers.neighbours import symmetric_affinity, top_neighbours
from finelens.solvers.prior import estimate_prior
from finelens.solvers.sinkhorn import Plan
from finelens.solvers.stata import class_log_likelihood
from tests.solvers.data import SCALE, cloud, unit

X, W, _ = cloud([9, 12, 7, 11, 0])
N, D = X.shape
C = len(W)
LOG_Y = SCALE * X @ W.T - logsumexp(SCALE * X @ W.T, axis=1, keepdims=True)


def knn_graph(x, k):
    cosines = x @ x.T
    np.fill_diagonal(cosines, -np.inf)
    a = np.zeros_like(cosines)
    for i, row in enumerate(cosines):
        nearest = np.argsort(-row)[:k]
        a[i, nearest] = np.maximum(row[nearest], 0)
    return a + a.T


def mixture_reference(likelihood, m_step, state):
    """The outer loop of both mixtures, dense: 10 rounds of 5 updates, and one update more."""
    z, graph = np.exp(LOG_Y), knn_graph(X, 3) / 6
    for _ in range(10):
        fixed = LOG_Y + likelihood(*state) * 512 / (50 * D)
        for _ in range(5):
            z = softmax(fixed + graph @ z, axis=1)
        state = m_step(z)
    return softmax(LOG_Y + likelihood(*state) * 512 / (50 * D) + graph @ z, axis=1), state


def test_transclip_reference():
    z = np.exp(LOG_Y)
    top = np.argsort(-z, axis=0)[:8]
    means = unit(np.stack([z[top[:, c], c] @ X[top[:, c]] for c in range(C)]))

    def likelihood(mu, s):
        return -0.5 * ((X[:, None] - mu) ** 2 / s).sum(-1)

    def m_step(z):
        mu = unit(z.T @ X)
        return mu, np.einsum("nc,ncd->d", z, (X[:, None] - mu) ** 2) / N

    expected, state = mixture_reference(likelihood, m_step, (means, np.full(D, 1 / D)))
    solver = TransClip()
    np.testing.assert_allclose(solver.fit_predict_proba(X, prototypes=W, logit_scale=SCALE), expected, atol=1e-10)
    inductive = softmax(LOG_Y + likelihood(*state) * 512 / (50 * D), axis=1)
    np.testing.assert_allclose(solver.predict_proba(X), inductive, atol=1e-10)


def test_stata_reference():
    first = np.einsum("nc,ncd->d", np.exp(LOG_Y), (X[:, None] - W) ** 2) / N

    def likelihood(mu, s):
        return -0.5 * ((X[:, None] - mu) ** 2 / s + np.log(s)).sum(-1)

    def m_step(z):
        hits = np.bincount(z.argmax(1), minlength=C)
        beta = (hits / (hits + 1))[:, None]
        mass = z.sum(0)[:, None]
        mu = unit(beta * (z.T @ X) / mass + (1 - beta) * W)
        own = np.einsum("nc,ncd->cd", z, (X[:, None] - mu) ** 2) / mass
        return mu, beta * own + (1 - beta) * (first + (W - mu) ** 2)

    expected, _ = mixture_reference(likelihood, m_step, (W, np.tile(first, (C, 1))))
    np.testing.assert_allclose(StatA().fit_predict_proba(X, prototypes=W, logit_scale=SCALE), expected, atol=1e-10)


def test_gda_em_reference():
    text = SCALE * X @ W.T
    anchor = W + X.mean(0) - W.mean(0)
    gamma = np.exp(LOG_Y)
    for _ in range(3):
        n = gamma.sum(0)
        v = (gamma.T @ X) / n[:, None]
        mu = (n / (n + 1))[:, None] * v + (1 / (n + 1))[:, None] * anchor
        covariance = np.mean([(gamma[:, c, None] * (X - v[c])).T @ (X - v[c]) / n[c] for c in range(C)], axis=0)
        theta = D * np.linalg.pinv((N - 1) * covariance + np.trace(covariance) * np.eye(D))
        gaussian = X @ (mu @ theta).T - 0.5 * np.einsum("cd,de,ce->c", mu, theta, mu)
        alpha = (text - text.mean(1, keepdims=True)).std() / (gaussian - gaussian.mean(1, keepdims=True)).std()
        gamma = softmax(text + alpha * gaussian, axis=1)
    solver = GdaEm(max_iter=3, tol=0.0)
    np.testing.assert_allclose(solver.fit_predict_proba(X, prototypes=W, logit_scale=SCALE), gamma, atol=1e-9)
    assert solver.alpha_ == pytest.approx(alpha, rel=1e-9)
    assert solver.n_iter_ == 3


def test_zlap_reference():
    text = X @ W.T
    shares = ((text - text.min()) / (text.max() - text.min())) ** 5
    weight = np.zeros((N, N + C))
    cosines = X @ X.T
    np.fill_diagonal(cosines, -np.inf)
    for i in range(N):
        near, classes = np.argsort(-cosines[i])[:5], np.argsort(-text[i])[:5]
        weight[i, near] = np.maximum(cosines[i, near], 0) ** 5
        weight[i, N + classes] = shares[i, classes]
    graph = np.zeros((N + C, N + C))
    graph[:N] = weight
    graph += graph.T
    root = 1 / np.sqrt(graph.sum(1))
    scores = np.linalg.solve(np.eye(N + C) - 0.3 * root[:, None] * graph * root, np.eye(N + C)[:, N:])
    solver = ZLaP(tol=1e-12)
    expected = scores[:N] / scores[:N].sum(1, keepdims=True)
    np.testing.assert_allclose(solver.fit_predict_proba(X, prototypes=W), expected, atol=1e-9)
    # An image beyond the fit: its own edges, weighted by the nodes' degrees, on the fitted scores.
    new = unit(np.random.default_rng(3).normal(size=(1, D)) + 2 * X[:1])
    images, texts = (new @ X.T)[0], (new @ W.T)[0]
    near, classes = np.argsort(-images)[:5], np.argsort(-texts)[:5]
    share = np.clip((texts[classes] - text.min()) / (text.max() - text.min()), 0, 1) ** 5
    row = (np.maximum(images[near], 0) ** 5 * root[near]) @ scores[near] + (share * root[N + classes]) @ scores[N + classes]
    np.testing.assert_allclose(solver.predict_proba(new)[0], row / row.sum(), atol=1e-9)


@pytest.mark.parametrize("prior", ["uniform", [3, 1, 2, 2, 1]])
def test_sinkhorn_reference(prior):
    target = np.full(C, 1 / C) if prior == "uniform" else np.array(prior) / sum(prior)
    kernel = np.exp(SCALE * X @ W.T)
    column = np.ones(C)
    for _ in range(2000):
        row = 1 / N / (kernel @ column)
        column = target / (kernel.T @ row)
    expected = N * (1 / N / (kernel @ column))[:, None] * kernel * column
    solver = SinkhornOt(prior=prior, max_iter=2000, tol=1e-12)
    p = solver.fit_predict_proba(X, prototypes=W, logit_scale=SCALE)
    np.testing.assert_allclose(p, expected, atol=1e-8)
    np.testing.assert_allclose(p.mean(0), target, atol=1e-9)
    np.testing.assert_allclose(solver.predict_proba(X), p, atol=1e-12)


def test_sinkhorn_estimated_prior_is_the_toolkits():
    solver = SinkhornOt(tol=1e-9, max_iter=1000)
    p = solver.fit_predict_proba(X, prototypes=W, logit_scale=SCALE)
    np.testing.assert_allclose(p.mean(0), estimate_prior(torch.tensor(np.exp(LOG_Y))).numpy(), atol=1e-8)
    assert p.mean(0)[4] < 1 / C


def test_a_word_that_is_no_prior_is_refused():
    with pytest.raises(UserError, match=r"The 'prior' parameter of SinkhornOt must be a str among .* or an array-like\. Got 'even' instead"):
        SinkhornOt(prior="even").fit(X, prototypes=W)


@pytest.mark.parametrize("prior", [[1, 1], [1, 1, 1, 1, 0], [1, 1, 1, 1, float("nan")]])
def test_unusable_prior_is_refused(prior):
    with pytest.raises(UserError, match="prior must"):
        SinkhornOt(prior=prior).fit(X, prototypes=W)


def dual_value(logits, potentials, prior):
    return float(potentials @ prior - (logits + potentials).logsumexp(1).mean())


def test_sinkhorn_dual_never_falls():
    logits = torch.tensor(SCALE * X @ W.T)
    prior = torch.tensor([0.4, 0.1, 0.2, 0.25, 0.05], dtype=torch.float64)
    f, values = torch.zeros(C, dtype=torch.float64), []
    plan = Plan(logits, f, 7)
    for _ in range(30):
        values.append(dual_value(logits, f, prior))
        f = f + prior.log() - plan.mass(f).log()
    assert (np.diff(values) >= -1e-12).all()
    assert values[-1] > values[0]


@pytest.mark.parametrize(("lift", "far"), [(0.0, False), (80.0, True)])
def test_sinkhorn_takes_exponentials_anew_only_far_away(lift, far, monkeypatch):
    """A class that is ahead of all others by e^80 needs potentials that no single-precision sum would survive."""
    made = []
    monkeypatch.setattr(sinkhorn, "Plan", lambda *given: made.append(1) or Plan(*given))
    logits = torch.tensor(SCALE * X @ W.T).float() + lift * torch.eye(C)[0]
    prior = torch.full((C,), 1 / C, dtype=torch.float64)
    f, rounds = sinkhorn.balance(logits, prior, Known(*torch.zeros(2, 0, dtype=torch.int64)), max_iter=200, tol=1e-4, chunk_size=7)
    assert 2 <= rounds < 200
    torch.testing.assert_close((logits.double() + f).softmax(1).mean(0), prior, rtol=2e-4, atol=0)
    assert (len(made) > 1, len(made) <= 4) == (far, True)


def assignment_objective(log_prior, likelihood, graph, z, weight):
    smooth = weight / 2 * (z * torch.sparse.mm(graph, z)).sum()
    return float((z * (log_prior + likelihood)).sum() + smooth - torch.xlogy(z, z).sum())


def test_assignment_objective_never_falls_for_a_positive_semidefinite_graph():
    rng = np.random.default_rng(0)
    # Few random directions: the images compete for classes, and the smooth term decides much.
    factor = np.abs(rng.normal(size=(N, 3)))
    graph = torch.tensor(factor @ factor.T).to_sparse()
    likelihood = torch.tensor(rng.normal(size=(N, C)))
    prior = torch.tensor(LOG_Y)
    z = torch.tensor(rng.dirichlet(np.ones(C), size=N))
    values = []
    for _ in range(25):
        values.append(assignment_objective(prior, likelihood, graph, z, 0.3))
        z = update_assignments(prior, likelihood, graph, z, neighbour_weight=0.3, steps=1).exp()
    assert (np.diff(values) >= -1e-9).all()
    assert values[-1] > values[0] + 1


def test_stata_variances_maximise_the_anchored_likelihood():
    """Their gradient vanishes in ``n E[log N(x; mu, s)] - a KL(N(text, first) || N(mu, s))`` with n hits and posterior-weighted expectation."""
    solver, x, w = StatA(anchor=2.0), torch.tensor(X), torch.tensor(W)
    z = torch.tensor(softmax(3 * LOG_Y, axis=1))
    first = torch.full((D,), 0.05, dtype=torch.float64)
    solver.means_ = w
    solver._m_step(x, z, w, first)
    s = solver.variances_.clone().requires_grad_(True)
    mu, hits = solver.means_, torch.bincount(z.argmax(1), minlength=C).double()[:, None]
    data = -0.5 * (((x[:, None] - mu) ** 2 * (z / z.sum(0))[:, :, None]).sum(0) / s + s.log())  # (C, D)
    divergence = 0.5 * ((first + (w - mu) ** 2) / s + s.log())
    (hits * data - 2.0 * divergence).sum().backward()
    assert s.grad.abs().max() < 1e-8 * (hits / s.detach()).max()


def test_stata_keeps_a_class_without_images_at_its_text():
    x, w, _ = cloud([25, 25, 0], tilt=0.1)
    solver = StatA().fit(x, prototypes=w, logit_scale=100.0)
    assert 2 not in solver.predict(x)
    np.testing.assert_allclose(solver.means_[2], w[2], atol=1e-12)
    assert np.ptp(solver.means_[0].numpy() - w[0]) > 1e-3


def test_stata_first_variance_does_not_depend_on_the_number_of_copies():
    """A deviation divided by N once per chunk would shrink as images are added."""
    w = np.concatenate([W[:4], unit(-X.mean(0, keepdims=True))])
    few, many = (StatA(rounds=1, chunk_size=16).fit(np.tile(X, (m, 1)), prototypes=w, logit_scale=SCALE) for m in (1, 8))
    assert 4 not in few.predict(X)
    np.testing.assert_allclose(few.variances_[4], many.variances_[4], rtol=1e-6)


def test_discriminant_is_the_log_odds_of_gaussians():
    rng = np.random.default_rng(1)
    factor = rng.normal(size=(D, 4))
    covariance, means = factor @ factor.T / 50, rng.normal(size=(3, D))
    theta = D * np.linalg.pinv(9 * covariance + np.trace(covariance) * np.eye(D))
    w, b = (t.numpy() for t in discriminant(torch.tensor(means), torch.tensor(covariance), 10))
    density = np.stack([-0.5 * np.einsum("nd,de,ne->n", X - m, theta, X - m) for m in means], axis=1)
    scores = X @ w.T + b
    np.testing.assert_allclose(scores - scores[:, :1], density - density[:, :1], atol=1e-9)


def test_gda_em_gives_text_and_gaussians_the_same_standard_deviation():
    solver = GdaEm().fit(X, prototypes=W, logit_scale=SCALE)
    text = SCALE * X @ W.T
    gaussian = X @ solver.coef_.numpy().T + solver.intercept_.numpy() - text
    spread = [(logits - logits.mean(1, keepdims=True)).std() for logits in (text, gaussian)]
    assert spread[0] == pytest.approx(spread[1], rel=1e-9)


def test_gda_em_class_without_mass_keeps_its_text_mean():
    solver = GdaEm()
    hard = Known(torch.arange(N), torch.arange(N) % 4)
    means, covariance = solver._m_step(_Rounds(torch.tensor(X), hard, C, 10, torch.float64).in_full(), torch.tensor(W))
    np.testing.assert_allclose(means[4], W[4])
    own = [np.cov(X[np.arange(N) % 4 == c].T, bias=True) for c in range(4)]
    np.testing.assert_allclose(covariance, np.mean(own, axis=0), atol=1e-12)


def test_log_likelihood_is_that_of_a_diagonal_gaussian():
    rng = np.random.default_rng(4)
    means, variances = torch.tensor(rng.normal(size=(C, D))), torch.tensor(rng.uniform(0.1, 2, size=(C, D)))
    normal = torch.distributions.Normal(means, variances.sqrt())
    expected = normal.log_prob(torch.tensor(X)[:, None]).sum(-1) + D / 2 * np.log(2 * np.pi)
    np.testing.assert_allclose(class_log_likelihood(torch.tensor(X), means, variances), expected, atol=1e-10)


def test_neighbours_are_the_nearest_others():
    x = torch.tensor(np.concatenate([X, X[:1]]))
    values, index = top_neighbours(x, x, 3, chunk_size=7, same=True)
    assert not (index == torch.arange(len(x))[:, None]).any()
    assert index[0, 0] == len(X)
    assert index[len(X), 0] == 0
    np.testing.assert_allclose(values[:, 0].numpy(), np.sort((x @ x.T).numpy() - 2 * np.eye(len(x)), axis=1)[:, -1])
    dense = symmetric_affinity(torch.tensor(X), 3, chunk_size=5).to_dense()
    np.testing.assert_allclose(dense, knn_graph(X, 3), atol=1e-12)


def test_fewer_keys_than_neighbours():
    x = torch.tensor(X[:2])
    assert top_neighbours(x, x, 5, chunk_size=4, same=True)[1].tolist() == [[1], [0]]
    assert top_neighbours(x[:1], x[:1], 5, chunk_size=4, same=True)[0].shape == (1, 0)
    assert symmetric_affinity(x[:1], 3, chunk_size=4).to_dense().tolist() == [[0.0]]


def test_conjugate_gradient_solves_every_column():
    rng = np.random.default_rng(2)
    factor = rng.normal(size=(12, 12))
    a = torch.tensor(factor @ factor.T + np.eye(12))
    b = torch.tensor(rng.normal(size=(12, 4)))
    b[:, 2] = 0
    x = conjugate_gradient(lambda v: a @ v, b, 1e-12)
    np.testing.assert_allclose(x, np.linalg.solve(a, b), atol=1e-9)

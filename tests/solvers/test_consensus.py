"""Consensus: each part against its equations, and the whole."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from scipy.special import softmax
from sklearn.metrics import cohen_kappa_score

from finelens.errors import UserError
from finelens.protocol import Hints
from finelens.solvers import Consensus, JointGmm
from finelens.solvers.columns import centred_views, searched_columns
from finelens.solvers.neighbours import smoothed, top_neighbours
from finelens.solvers.opinions import EvenText, moments_of
from finelens.solvers.presence import all_present, asked_neighbours, information, neighbour_agreement
from finelens.solvers.return_rule import ReturnRule
from finelens.solvers.ridge import ridge_head
from tests.solvers.data import SCALE, cloud, unit

X, W, Y = cloud([9, 12, 7, 11], tilt=0.5)
NEW, _, _ = cloud([3, 3, 3, 3], seed=5)
N, C = len(X), len(W)


def second_view(y, width=9, spread=0.15, seed=3):
    rng = np.random.default_rng(seed)
    centres = unit(rng.normal(size=(y.max() + 1, width)))
    return unit(centres[y] + spread * rng.normal(size=(len(y), width)))


Z, NEW_Z = second_view(Y), second_view(np.arange(12) % C, seed=4)


def fitted(views=(X, Z), w=W, hints=None, **options):
    return Consensus(**options).fit(list(views), prototypes=w, logit_scale=SCALE, hints=hints)


def centred(logits):
    return logits - logits.mean(1, keepdims=True)


def test_views_side_by_side_have_mean_cosines():
    x = torch.tensor(np.concatenate([X, Z], 1))
    centre = x.mean(0)
    looks = centred_views(x, centre, [X.shape[1], Z.shape[1]]).numpy()
    parts = [unit(view - view.mean(0)) for view in (X, Z)]
    np.testing.assert_allclose(looks @ looks.T, sum(part @ part.T for part in parts) / 2, atol=1e-12)
    np.testing.assert_allclose(centred_views(torch.tensor(X), centre, [X.shape[1], Z.shape[1]]) * 2**0.5, parts[0], atol=1e-12)


def test_neighbours_in_a_bank_are_others():
    rows = torch.arange(0, N, 3)
    x = torch.tensor(X)
    near = top_neighbours(x, x[rows], 4, chunk_size=7, rows=rows)[1]
    cosines = X @ X[rows].T
    cosines[rows, np.arange(len(rows))] = -np.inf
    np.testing.assert_array_equal(near, np.argsort(-cosines, axis=1)[:, :4])


def test_smoothed_views_lie_halfway_to_their_neighbours():
    keys, near = torch.tensor(np.concatenate([X, Z], 1)), torch.tensor([[1, 2], [5, 0]])
    found = smoothed(keys[:2], keys, near, [X.shape[1], Z.shape[1]]).numpy()
    expected = [np.concatenate([unit(v[i] + (v[a] + v[b]) / 2) for v in (X, Z)]) for i, (a, b) in enumerate(near.tolist())]
    np.testing.assert_allclose(found, expected, atol=1e-12)
    np.testing.assert_allclose(
        smoothed(keys[:2, : X.shape[1]], keys, near, [X.shape[1], Z.shape[1]]), found[:, : X.shape[1]] * [[1], [1]], atol=1e-12
    )
    assert smoothed(keys, keys, near[:, :0], [X.shape[1], Z.shape[1]]) is keys


def test_neighbour_agreement_is_cohens_kappa():
    labels = np.random.default_rng(0).integers(0, 3, 30)
    # On a ring each image is neighbour as often as any other, so both raters have the same shares.
    near = np.stack([(np.arange(30) + step) % 30 for step in (1, -1, 2)], axis=1)
    expected = cohen_kappa_score(np.repeat(labels, 3), labels[near].ravel())
    assert neighbour_agreement(torch.tensor(labels), torch.tensor(near), 3) == pytest.approx(expected)
    assert neighbour_agreement(torch.tensor(labels), torch.tensor(near[:, :0]), 3) == 0
    assert neighbour_agreement(torch.zeros(30, dtype=torch.int64), torch.tensor(near), 3) == 0


def test_agreement_is_asked_of_half_a_class_and_two_at_least():
    near = torch.zeros(60, 5, dtype=torch.int64)
    assert [asked_neighbours(near, classes).shape[1] for classes in (1, 10, 60)] == [5, 3, 2]


def test_even_labels_pass_where_they_keep_the_neighbours_together():
    near = torch.tensor([[1], [0], [3], [2], [5], [4]])
    free = torch.tensor([0, 0, 0, 0, 1, 1])
    assert all_present(free, torch.tensor([0, 0, 2, 2, 1, 1]), near, 3, tolerance=0.95)
    assert not all_present(free, torch.tensor([0, 0, 0, 2, 1, 2]), near, 3, tolerance=0.95)


@pytest.mark.parametrize("seed", range(3))
def test_masses_are_even_only_where_classes_are_present(seed):
    x, w, _ = cloud([30] * 6, spread=0.2, tilt=0.4, seed=seed)
    assert fitted([x], w).evenness_ == 1.0
    x, w, _ = cloud([60, 60, 60, 0, 0, 0, 0, 0, 0, 0], spread=0.2, tilt=0.4, seed=seed)
    assert fitted([x], w).evenness_ == 0.0
    # Too few images a class to tell.
    assert fitted([x[:19]], w).evenness_ == 0.0


@pytest.mark.parametrize("columns", [6, 60])
def test_ridge_is_that_of_a_direct_solve(columns):
    """Six directions are found in eight steps, by the images again and again (60 columns) as by their second moments (6)."""
    rng = np.random.default_rng(1)
    x, target = rng.normal(size=(40, 6)) @ rng.normal(size=(6, columns)) + 2, rng.dirichlet(np.ones(3), size=40)
    centre = x - x.mean(0)
    weight = 3 * (centre**2).sum(1).mean()
    expected = np.linalg.solve(centre.T @ centre + weight * np.eye(columns), centre.T @ (target - target.mean(0)))
    head, bias = ridge_head(torch.tensor(x), torch.tensor(target), penalty=3.0, steps=8, chunk_size=7)
    np.testing.assert_allclose(head, expected, atol=1e-10)
    np.testing.assert_allclose(bias, -x.mean(0) @ expected, atol=1e-10)
    # Images that are all alike teach nothing.
    head, _ = ridge_head(torch.ones(4, 6), torch.tensor(target[:4]).float(), penalty=3.0, steps=6, chunk_size=7)
    assert torch.isfinite(head).all()


def test_return_rule_by_hand():
    x = torch.eye(3, dtype=torch.float64)[[0, 0, 1]]
    a = torch.tensor([[0.8, 0.1, 0.1], [0.6, 0.3, 0.1], [0.4, 0.5, 0.1]], dtype=torch.float64)
    p = torch.tensor([[0.5, 0.4, 0.1], [0.5, 0.3, 0.2], [0.2, 0.7, 0.1]], dtype=torch.float64)
    rule = ReturnRule.learn(x, a, p, share=0.5, chunk_size=2)
    sums = a.T @ x
    np.testing.assert_allclose(rule.means, sums / sums.norm(dim=1, keepdim=True))
    near = (x @ rule.means.T).numpy()
    # The text names class 0 twice: there class 1 gains 0.3, and class 2 gains 0.1. Both images lie nearest to the mean of 0.
    assert near[0].argmax() == near[1].argmax() == 0
    np.testing.assert_allclose(rule.shares[0], [0, 0.5, 0.5])
    # The third image is named 1; class 1 itself gains, which is no gain over the text.
    np.testing.assert_allclose(rule.shares[1], 0)
    q, returned = rule.apply(x, a, p, chunk_size=2)
    np.testing.assert_allclose(q, [[0.65, 0.25, 0.1], [0.55, 0.3, 0.15], [0.2, 0.7, 0.1]])
    np.testing.assert_allclose(returned, [0.15, 0.05, 0])
    # An image that is answered otherwise and lies nearer there keeps all.
    moved = torch.tensor([[0.1, 0.8, 0.1]], dtype=torch.float64)
    np.testing.assert_allclose(rule.apply(x[2:], a[:1], moved, chunk_size=2)[0], moved)


def test_a_return_of_nothing_changes_nothing():
    p = torch.softmax(torch.randn(9, 4, generator=torch.Generator().manual_seed(0)), 1)
    a, x = p.flip(1), torch.eye(9)
    q, returned = ReturnRule.learn(x, a, p, share=0.0, chunk_size=4).apply(x, a, p, chunk_size=4)
    np.testing.assert_allclose(q, p)
    assert not returned.any()
    np.testing.assert_allclose(ReturnRule.learn(x, a, p, share=1.0, chunk_size=4).apply(x, a, p, chunk_size=4)[0].sum(1), 1, atol=1e-6)


@pytest.mark.parametrize("before", [False, True], ids=["now", "a model of before"])
def test_new_images_by_the_equations(before):
    solver = fitted(neighbours=3)
    assert solver.late_state == {"spread_", "searched_"}
    if before:
        # Such a model does not hold these; neighbours were looked for in all views.
        solver.spread_, solver.searched_ = torch.zeros(0, dtype=torch.float64), torch.zeros(0, dtype=torch.int64)
    spread = np.ones(C) if before else solver.spread_.numpy()
    searched = slice(0 if before else X.shape[1], None)
    s = {name: tensor.numpy() for name, tensor in solver.state().items()}
    d = X.shape[1]
    new, bank = np.concatenate([NEW, NEW_Z], 1), np.concatenate([X, Z], 1)
    np.testing.assert_allclose(s["bank_"], bank)
    text = SCALE * NEW @ W.T

    def looks(x):
        return np.concatenate([unit(part) for part in np.split(x - s["centre_"], [d], axis=1)], 1) / 2**0.5

    near = np.argsort(-looks(new)[:, searched] @ looks(bank)[:, searched].T, axis=1)[:, :3]
    smooth = np.concatenate([unit(part) for part in np.split(new + bank[near].mean(1), [d], axis=1)], 1)

    def mixture(x, prefix):
        means, variance, weights = (s[f"{prefix}{name}_"] for name in ("means", "variances", "weights"))
        logits = SCALE * x[:, :d] @ W.T * spread + s[f"{prefix}potentials_"]
        for columns, weight in zip((slice(0, d), slice(d, None)), weights, strict=True):
            square = ((x[:, None, columns] - means[:, columns]) ** 2 / variance[columns]).sum(-1)
            logits = logits - weight * 512 / (50 * means[:, columns].shape[1]) * square / 2
        return logits

    affinity = np.exp(s["beta_"] * (NEW @ s["keys_"].T - 1))
    votes = np.stack([affinity[:, s["labels_"] == c].mean(1) for c in range(C)], axis=1)
    members = [mixture(new, ""), mixture(smooth, "smooth_"), text * spread + s["potentials_"] + s["alpha_"] * votes]
    total = sum(centred(member) / size for member, size in zip(members, s["sizes_"][:3], strict=True)) / 3
    head = centred(looks(new) @ s["head_"] + s["bias_"])
    total = (total / s["sizes_"][3] + head / s["sizes_"][4]) / 2
    size = s["sizes_"][5]
    p = softmax(2 * size * (s["share_"] * total + (1 - s["share_"]) * centred(text) / size), axis=1)
    rule = ReturnRule(torch.tensor(s["centroids_"]), torch.tensor(s["returns_"]))
    expected = rule.apply(*(torch.tensor(part) for part in (looks(new), softmax(text, axis=1), p)), chunk_size=99)[0]
    np.testing.assert_allclose(solver.predict_proba([NEW, NEW_Z]), expected, atol=1e-9)
    np.testing.assert_allclose(size, np.sqrt((centred(SCALE * X @ W.T) ** 2).mean()))


def test_spreads_of_the_classes_are_drawn_together_as_far_as_masses_are_even():
    t = np.random.default_rng(0).normal(size=(200, 3)) * [1, 2, 6] + [0, 5, -1]
    text = torch.tensor(t)
    mean, variance = moments_of(text)
    np.testing.assert_allclose(mean, t.mean(0))
    np.testing.assert_allclose(variance, t.var(0))
    ratio = t.std(0).mean() / t.std(0)
    np.testing.assert_allclose(EvenText.of(mean, variance, 1.0)(text), (t - t.mean(0)) * ratio**0.5, atol=1e-12)
    np.testing.assert_allclose(EvenText.of(mean, variance, 0.5)(text), (t - t.mean(0)) * ratio**0.25 + t.mean(0) / 2, atol=1e-12)
    np.testing.assert_allclose(EvenText.of(mean, variance, 0.0)(text), t, atol=1e-12)
    # A class that says nothing is not made to shout.
    quiet = EvenText.of(mean, variance * torch.tensor([0, 1, 1]), 1.0).spread
    assert 1 < quiet[0] < 3.3
    assert (fitted().spread_ != 1).all()
    assert (fitted(tolerance=9.0).spread_ == 1).all()


def test_neighbours_are_looked_for_beside_the_view_of_the_texts():
    assert fitted().searched_.tolist() == [0, 1]
    assert fitted([X]).searched_.tolist() == [1]
    rng = np.random.default_rng(0)
    x, w, _ = cloud([30] * 6, spread=0.2, tilt=0.4)
    noise = unit(rng.normal(size=(len(x), 40)))
    solver = fitted([x, noise], w)
    assert solver.weights_[1] == 0
    assert solver.searched_.tolist() == [1, 0]
    looks = torch.tensor(np.concatenate([X, Z], 1))
    np.testing.assert_allclose(searched_columns(looks, [0, 1], [X.shape[1], Z.shape[1]]), 2**0.5 * Z)
    np.testing.assert_array_equal(searched_columns(looks[:, : X.shape[1]], [0, 1], [X.shape[1], Z.shape[1]]), X)
    assert searched_columns(looks, [1, 1], [X.shape[1], Z.shape[1]]) is looks


def test_free_masses_on_unsmoothed_images_are_those_of_the_joint_mixture():
    solver = fitted(tolerance=9.0, rounds=10)
    reference = JointGmm().fit([X, Z], prototypes=W, logit_scale=SCALE)
    for name in ("means_", "variances_", "weights_", "potentials_"):
        np.testing.assert_array_equal(getattr(solver, name), getattr(reference, name))


def test_reloaded_alone_and_in_a_batch():
    x, z = torch.tensor(X).float(), torch.tensor(Z).float()
    solver = fitted([x, z], torch.tensor(W).float())
    new = [torch.tensor(NEW).float(), torch.tensor(NEW_Z).float()]
    p = solver.predict_proba(new)
    state = {name: tensor.clone() for name, tensor in solver.state().items()}
    again = Consensus().load_state(state, classes=C, features=solver.n_features_in_)
    assert torch.equal(again.predict_proba(new), p)
    alone = torch.cat([solver.predict_proba([view[i : i + 1] for view in new]) for i in range(len(NEW))])
    torch.testing.assert_close(alone, p, atol=1e-6, rtol=0)
    first = solver.predict_proba(new[0])
    assert torch.isfinite(first).all()
    torch.testing.assert_close(first.sum(1), torch.ones(len(NEW)))


@pytest.mark.parametrize("labels", [[0, 1, 2, 3], [-1, -1, 0, 1]])
def test_hints_hold_and_strangers_stay_out(labels):
    given = Hints(torch.arange(4), torch.tensor(labels))
    p = Consensus().fit_predict_proba([X, Z], prototypes=W, logit_scale=SCALE, hints=given)
    assert np.isfinite(p).all()
    assert all(p[i, label] == 1 for i, label in enumerate(labels) if label >= 0)
    assert len(fitted(hints=given).bank_) == N - sum(label < 0 for label in labels)


def test_all_images_hinted():
    p = Consensus().fit_predict_proba([X, Z], prototypes=W, logit_scale=SCALE, hints=Hints(torch.arange(N), torch.tensor(Y)))
    np.testing.assert_array_equal(p, np.eye(C)[Y])


@pytest.mark.parametrize("n", [1, 2, 3, 7])
def test_a_few_images_of_two_views(n):
    assert np.isfinite(fitted([X[:n], Z[:n]]).predict_proba([NEW, NEW_Z])).all()


def test_duplicates_and_one_class():
    assert np.isfinite(fitted([np.repeat(X[:1], 50, axis=0)]).predict_proba(NEW)).all()
    np.testing.assert_allclose(fitted(w=W[:1]).predict_proba([NEW, NEW_Z]), 1)


def test_a_bank_is_part_of_the_images():
    solver = fitted(bank=10)
    np.testing.assert_allclose(solver.bank_[:, : X.shape[1]], X[np.arange(10) * N // 10])
    assert len(solver.keys_) <= 10
    assert (solver.predict([X, Z]) == Y).mean() > 0.8


def test_images_that_are_nobodys_neighbours_leave_the_text_its_share():
    rng = np.random.default_rng(2)
    solver = fitted([unit(rng.normal(size=(12, 200)))], unit(rng.normal(size=(6, 200))))
    assert solver.agreement_ < 0.5
    assert float(solver.share_) == pytest.approx(2 * solver.agreement_)
    assert float(fitted().share_) == 1.0


def test_notes_say_what_was_decided():
    masses, agreement, returned = fitted().notes()
    assert masses.startswith("class sizes (class masses): even")
    assert "100 % of the answer is from the images" in agreement
    assert returned.endswith("went back to the class that the text names")


def test_views_that_do_not_fit_are_refused_in_words():
    with pytest.raises(UserError, match=r"widths \[9\], but Consensus was fitted on \[16, 9\]"):
        fitted().predict(Z)


def test_information_is_what_an_image_says_of_its_class():
    sure = torch.eye(4, dtype=torch.float64).repeat(3, 1)
    assert information(sure) == 1
    assert information(torch.full((5, 4), 0.25)) == 0
    half = torch.tensor([[0.5, 0.5, 0, 0], [0, 0, 0.5, 0.5]]).repeat(4000, 1)
    assert information(half) == 0.5


def test_text_that_tells_nothing_keeps_its_answers():
    flat = unit(W + 100 * W.mean(0))
    solver = fitted(w=flat)
    assert solver.told_ < 0.01
    assert float(solver.share_) == 0
    np.testing.assert_array_equal(solver.predict(X), (X @ flat.T).argmax(1))
    assert float(fitted().share_) > 0


def test_the_bank_is_centred_once_for_many_questions(monkeypatch):
    solver, centred_rows = fitted(), []

    def count(x, *given):
        centred_rows.append(len(x))
        return centred_views(x, *given)

    monkeypatch.setattr("finelens.solvers.consensus.centred_views", count)
    first = [solver.predict_log_proba([X[i : i + 2], Z[i : i + 2]]) for i in (0, 2, 4)]
    assert centred_rows == [len(solver.bank_), 2, 2, 2]
    # What a copy is asked, or a model from the disk, is made anew, and so is the bank when somebody writes into it.
    other = pickle.loads(pickle.dumps(solver))
    assert np.array_equal(other.predict_log_proba([X[:2], Z[:2]]), first[0])
    assert len(pickle.dumps(other)) == len(pickle.dumps(solver))
    solver.bank_[:] = solver.bank_.flip(0)
    solver.predict_log_proba([X[:2], Z[:2]])
    assert centred_rows[4:] == [len(solver.bank_), 2, len(solver.bank_), 2]
    # The first feature space alone has columns of its own.
    assert solver.predict_log_proba(X[:2]).shape == first[0].shape

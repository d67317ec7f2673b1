"""Key-value caches against plain references."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import softmax

from finelens.protocol import Hints
from finelens.solvers import TipAdapter, TipAdapterF
from finelens.solvers.keys import class_votes, confident_rows, one_hot
from tests.solvers.data import SCALE, cloud

X, W, Y = cloud([20, 25, 15, 22, 0], tilt=0.4)
NEW, _, _ = cloud([4, 4, 4, 4, 4], seed=5)
N, D = X.shape
C = len(W)


def centred_std(logits):
    return (logits - logits.mean(1, keepdims=True)).std()


def votes(x, keys, labels, beta, own=None):
    """Mean affinity with each class's keys; own[i] is the key that does not vote on row i."""
    out = np.zeros((len(x), C))
    for i, row in enumerate(x):
        for c in range(C):
            mine = [np.exp(-beta * (1 - row @ key)) for j, (key, label) in enumerate(zip(keys, labels, strict=True)) if label == c and own != (i, j)]
            out[i, c] = np.mean(mine) if mine else np.nan
        out[i] = np.where(np.isnan(out[i]), np.nanmean(out[i]), out[i])
    return out


def reference(x, rows, labels, new):
    keys, text = x[rows], SCALE * x @ W.T
    beta = 1 / np.mean(1 - x @ keys.T)
    loo = votes(x, keys, labels, beta)
    for j, i in enumerate(rows):
        loo[i] = votes(x[i : i + 1], keys, labels, beta, own=(0, j))[0]
    alpha = centred_std(text) / centred_std(loo)
    return softmax(SCALE * new @ W.T + alpha * votes(new, keys, labels, beta), axis=1)


def test_tip_adapter_without_hints():
    p = softmax(SCALE * X @ W.T, axis=1)
    answer = p.argmax(1)
    rows = np.concatenate([sorted((answer == c).nonzero()[0], key=lambda i: -p[i].max())[:5] for c in range(C)]).astype(int)
    solver = TipAdapter(shots=5)
    given = solver.fit_predict_proba(X, prototypes=W, logit_scale=SCALE)
    np.testing.assert_allclose(given, reference(X, rows, answer[rows], X), atol=1e-9)
    np.testing.assert_allclose(solver.predict_proba(NEW), reference(X, rows, answer[rows], NEW), atol=1e-9)
    assert solver.notes() == [f"cache: label-free, {len(rows)} keys from the most confident images, no labels, for {len(set(answer))} of 5 classes"]


def test_tip_adapter_with_hints():
    rows, labels = np.array([0, 3, 4, 30, 31]), np.array([2, 1, 1, 0, 4])
    solver = TipAdapter()
    solver.fit(X, prototypes=W, logit_scale=SCALE, hints=Hints(torch.tensor(rows), torch.tensor(labels)))
    np.testing.assert_allclose(solver.predict_proba(NEW), reference(X, rows, labels, NEW), atol=1e-9)
    assert solver.notes() == ["cache: few-shot, 5 keys from hinted images, for 4 of 5 classes"]


@pytest.mark.parametrize("scale", [5.0, 100.0])
def test_votes_have_the_standard_deviation_of_the_text_logits(scale):
    """So one default serves every logit scale: answers of the cache part do not fade at a model's larger scale."""
    solver = TipAdapter().fit(X, prototypes=W, logit_scale=scale)
    part = solver.alpha_.item() * solver._votes(torch.tensor(X), torch.searchsorted(torch.arange(N), key_rows(solver))).numpy()
    assert centred_std(part) == pytest.approx(centred_std(scale * X @ W.T), rel=1e-9)


def key_rows(solver):
    return torch.stack([(torch.tensor(X) @ key).argmax() for key in solver.keys_])


def test_shots_are_the_most_confident_of_each_answer():
    logits = torch.tensor([[3.0, 0], [5, 0], [4, 0], [0, 1], [0, 2]])
    rows, labels = confident_rows(logits, 2)
    assert rows.tolist() == [1, 2, 4, 3]
    assert labels.tolist() == [0, 0, 1, 1]


def test_a_class_without_keys_gets_the_mean_vote():
    affinity = torch.tensor([[1.0, 3.0, 8.0]])
    values = one_hot(torch.tensor([0, 0, 2]), 3, affinity)
    assert class_votes(affinity, values).tolist() == [[2, 5, 8]]
    # The image is the only key of class 2, then one of two keys of class 0.
    assert class_votes(affinity, values, torch.tensor([2])).tolist() == [[2, 2, 2]]
    assert class_votes(affinity, values, torch.tensor([1])).tolist() == [[1, 4.5, 8]]
    assert class_votes(affinity[:, :0], values[:0]).tolist() == [[0, 0, 0]]


def test_trained_keys_follow_plain_adamw():
    """Twenty full-batch steps of AdamW on the cross-entropy, written out; 2 keys a class fit one batch."""
    rows, labels = np.arange(10), np.arange(10) % C
    solver = TipAdapterF()
    solver.fit(X, prototypes=W, logit_scale=SCALE, hints=Hints(torch.tensor(rows), torch.tensor(labels)))
    order = np.argsort(labels, kind="stable")
    images, labels = X[rows][order], labels[order]
    keys, first, second = images.copy(), np.zeros((10, D)), np.zeros((10, D))
    alpha, beta, lr0 = solver.alpha_.item(), solver.beta_.item(), 1e-3 * np.sqrt(512 / D)
    shares = np.eye(C)[labels] / np.bincount(labels)
    for step in range(20):
        lr = lr0 * (1 + np.cos(np.pi * step / 20)) / 2
        affinity = np.exp(-beta * (1 - images @ keys.T))
        p = softmax(SCALE * images @ W.T + alpha * affinity @ shares, axis=1)
        error = (p - np.eye(C)[labels]) / 10
        gradient = (alpha * beta * affinity * (error @ shares.T)).T @ images
        first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
        keys *= 1 - 0.01 * lr
        keys -= lr * first / (1 - 0.9 ** (step + 1)) / (np.sqrt(second / (1 - 0.999 ** (step + 1))) + 1e-4)
    np.testing.assert_allclose(solver.keys_, keys, atol=1e-8)


def test_training_fits_the_keys_and_follows_the_seed():
    hints = Hints(torch.arange(40), torch.tensor(Y[:40]))

    def keys(**options):
        return TipAdapterF(batch_size=8, **options).fit(X, prototypes=W, logit_scale=SCALE, hints=hints)

    again, other = keys(), keys(seed=1)
    assert torch.equal(keys().keys_, again.keys_)
    assert not torch.equal(other.keys_, again.keys_)
    plain = TipAdapter().fit(X, prototypes=W, logit_scale=SCALE, hints=hints)

    def loss(solver):
        return -solver.predict_log_proba(X[:40])[np.arange(40), Y[:40]].mean()

    assert loss(again) < loss(plain)

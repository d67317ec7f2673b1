"""Running class means: a plain reference, and what their limits are."""

from __future__ import annotations

import numpy as np
import torch
from scipy.special import log_softmax, softmax

from finelens.protocol import Hints
from finelens.solvers import Pta
from tests.solvers.data import SCALE, cloud, unit

X, W, Y = cloud([20, 25, 15, 22], tilt=0.4)
TEXT = SCALE * X @ W.T


def streamed(**options):
    return np.stack(list(Pta(**options).begin(prototypes=W, logit_scale=SCALE).stream(X)))


def centred_square(logits):
    return ((logits - logits.mean()) ** 2).sum()


def test_reference():
    sums, total, text_square, image_square = np.zeros_like(W), np.zeros(X.shape[1]), 0.0, 0.0
    for i, (x, answer) in enumerate(zip(X, streamed(), strict=True)):
        p = softmax(TEXT[i])
        sums[p.argmax()] += p.max() * x
        total += x
        cosines = x @ unit(sums + W + total / (i + 1) - W.mean(0)).T
        text_square, image_square = text_square + centred_square(TEXT[i]), image_square + centred_square(cosines)
        np.testing.assert_allclose(np.log(answer), log_softmax(TEXT[i] + np.sqrt(text_square / image_square) * cosines), atol=1e-9)


def test_without_a_say_it_is_zero_shot():
    np.testing.assert_allclose(streamed(blend=0.0), softmax(TEXT, axis=1), atol=1e-12)


def test_means_that_are_held_are_the_texts_at_the_images_centre():
    solver = Pta(anchor=1e12).begin(prototypes=W, logit_scale=SCALE).partial_fit(X)
    cosines = X @ unit(W + X.mean(0) - W.mean(0)).T
    text, images = (float(value) for value in solver.squares_)
    np.testing.assert_allclose(np.log(solver.predict_proba(X)), log_softmax(TEXT + np.sqrt(text / images) * cosines, axis=1), atol=1e-6)


def test_a_hinted_image_counts_fully_for_its_class():
    solver = Pta().begin(prototypes=W, logit_scale=SCALE).partial_fit(X[:1], hints=Hints(torch.tensor([0]), torch.tensor([2])))
    np.testing.assert_allclose(solver.sums_, np.eye(4)[2][:, None] * X[0], atol=1e-12)

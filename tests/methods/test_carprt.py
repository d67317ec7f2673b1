"""Prompt weights of each class: a plain reference, and what their limits are."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from finelens.errors import UserError
from finelens.methods.carprt import CarprtConfig, prompt_weights
from finelens.protocol import Hints

N, C, P, E = 60, 4, 3, 8
RNG = torch.Generator().manual_seed(0)
CENTRES = F.normalize(torch.randn(C, E, generator=RNG, dtype=torch.float64), dim=1)
X = F.normalize(CENTRES.repeat(N // C, 1) + 0.3 * torch.randn(N, E, generator=RNG, dtype=torch.float64), dim=1)
PROMPTS = F.normalize(CENTRES[:, None] + 0.5 * torch.randn(C, P, E, generator=RNG, dtype=torch.float64), dim=2)
SCALE = 20.0


def plain(x, prompts, scale, labels=None):
    scores = torch.zeros(C, P, dtype=torch.float64)
    for c in range(C):
        for p in range(P):
            won = []
            for i, row in enumerate(x):
                logits = scale * row @ prompts[:, p].T
                named = int(logits.argmax()) if labels is None or i not in labels else labels[i]
                if named == c:
                    won.append(float(logits[c]))
            scores[c, p] = sum(won) / len(won) if won else -torch.inf
    return scores.softmax(1)


def test_reference():
    torch.testing.assert_close(prompt_weights(X, PROMPTS, SCALE), plain(X, PROMPTS, SCALE))


def test_hinted_images_count_for_their_class_under_every_prompt():
    hints = Hints(torch.tensor([0, 5, 7]), torch.tensor([2, 0, -1]))
    kept = [i for i in range(N) if i != 7]
    labels = {kept.index(0): 2, kept.index(5): 0}
    found = prompt_weights(X, PROMPTS, SCALE, hints)
    torch.testing.assert_close(found, plain(X[kept], PROMPTS, SCALE, labels))
    assert not torch.equal(found, prompt_weights(X, PROMPTS, SCALE))


def test_without_images_of_a_class_all_its_prompts_count_alike_and_one_that_names_none_counts_nothing():
    away = PROMPTS.clone()
    away[3] = -10 * CENTRES.sum(0)
    away[2, 1] = -CENTRES[2]
    weights = prompt_weights(X[torch.arange(N) % C != 3], away, SCALE)
    torch.testing.assert_close(weights[3], torch.full((P,), 1 / P, dtype=torch.float64))
    assert weights[2, 1] == 0


def test_a_high_temperature_is_the_mean_of_the_prompts():
    alike = prompt_weights(X, PROMPTS, SCALE / 1e9)
    torch.testing.assert_close(alike, torch.full((C, P), 1 / P, dtype=torch.float64))
    assert (prompt_weights(X, PROMPTS, SCALE).sum(1) - 1).abs().max() < 1e-12


def test_options_are_checked():
    with pytest.raises(UserError, match=r"method\.temperature"):
        CarprtConfig(temperature=0)

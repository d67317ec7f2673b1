from __future__ import annotations

import pytest
import torch

from finelens.evaluation.diversity import PromptEffect, diversity, effective, evenly


def pairs(n=60, d=8, e=5, seed=0):
    made = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=made, dtype=torch.float64), torch.randn(n, e, generator=made, dtype=torch.float64)


def test_copies_of_their_texts_have_nothing_of_their_own():
    t = torch.eye(4, dtype=torch.float64).repeat(5, 1)
    found = diversity(t, t)
    assert found.share == pytest.approx(1)
    assert found.own == pytest.approx(1)
    # Four texts equally often are four directions.
    assert found.by_text == pytest.approx(4) == found.all


def test_a_text_that_is_always_the_same_accounts_for_the_mean_alone():
    x, _ = pairs()
    found = diversity(x, torch.ones(60, 3))
    mean = torch.nn.functional.normalize(x, dim=1).mean(0)
    assert found.by_text == pytest.approx(1)
    assert found.share == pytest.approx(float(mean @ mean))


def test_texts_at_right_angles_to_the_images_in_the_mean_account_for_nothing():
    # Every image with both texts: no text says anything of its image.
    x = torch.eye(3, dtype=torch.float64).repeat(2, 1)
    t = torch.tensor([[1.0]] * 3 + [[-1.0]] * 3)
    found = diversity(x, t)
    assert found.share == pytest.approx(0, abs=1e-12)
    assert found.own == pytest.approx(3)


def test_what_is_removed_and_what_stays_add_up():
    x, t = pairs()
    unit = torch.nn.functional.normalize(x, dim=1)
    found = diversity(3 * x, t)
    left = PromptEffect.learn(x, t).remove(x, t)
    # What stays is no linear function of the texts, and its covariance is the Schur complement.
    assert torch.allclose(left.T @ torch.nn.functional.normalize(t, dim=1), torch.zeros(8, 5, dtype=torch.float64), atol=1e-10)
    assert float((left**2).sum() / 60) == pytest.approx(1 - found.share)
    assert effective(left) == pytest.approx(found.own)
    assert effective(unit) == pytest.approx(found.all)
    # Length says nothing.
    assert diversity(x, t).share == pytest.approx(found.share)


def test_the_equations_as_they_are_written():
    for x, t in (pairs(), pairs(7, 9, 3), pairs(6, 4, 12)):
        found, n = diversity(x, t), len(x)
        x, t = (torch.nn.functional.normalize(rows, dim=1) for rows in (x, t))
        explained = (x.T @ t / n) @ torch.linalg.pinv(t.T @ t / n, hermitian=True) @ (t.T @ x / n)
        for matrix, score in ((x.T @ x / n - explained, found.own), (explained, found.by_text), (x.T @ x / n, found.all)):
            values = torch.linalg.eigvalsh(matrix).clamp_min(0)
            if values.sum() > 1e-9:
                assert torch.special.entr(values / values.sum()).sum().exp().item() == pytest.approx(score)
        assert explained.trace().item() == pytest.approx(found.share)


def test_few_are_taken_evenly():
    assert len(range(501)[evenly(501)]) == 251
    assert range(500)[evenly(500)] == range(500)


def test_more_texts_than_they_span():
    x, t = pairs()
    assert diversity(x, torch.cat([t, t], dim=1)).share == pytest.approx(diversity(x, t).share)
    assert effective(torch.zeros(3, 3)) == 1

"""The cut of microCLIP on tokens whose clusters are known."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from finelens.methods.microclip import ncut as ncut_module
from finelens.methods.microclip.ncut import ncut_saliency
from tests.methods.tiny import unit_rows


def two_kinds(n: int, small: int, seed: int = 0, noise: float = 0.8) -> Tensor:
    """Tokens (1, n, 32) around two directions, the first ``small`` of them around one."""
    centres = unit_rows(2, 32, seed=seed)
    tokens = torch.cat([centres[:1].expand(small, -1), centres[1:].expand(n - small, -1)])
    return (tokens + noise * unit_rows(n, 32, seed=seed + 1))[None]


@pytest.mark.parametrize("seed", range(5))
def test_mask_follows_a_permutation_of_the_tokens(seed):
    tokens = two_kinds(49, 12, seed)
    order = torch.randperm(49, generator=torch.Generator().manual_seed(seed))
    before, after = ncut_saliency(tokens), ncut_saliency(tokens[:, order])
    assert not before.fallback.any()
    assert torch.equal(before.mask[:, order], after.mask)
    torch.testing.assert_close(before.vector[:, order], after.vector, atol=1e-9, rtol=0)


@pytest.mark.parametrize("seed", range(3))
def test_mask_does_not_depend_on_the_sign_that_the_solver_returns(monkeypatch, seed):
    tokens = torch.cat([two_kinds(25, small, seed) for small in (6, 10)])
    before = ncut_saliency(tokens)
    solve = ncut_module._eigen

    def negated(adjacent):
        degree, values, vectors = solve(adjacent)
        return degree, values, -vectors

    monkeypatch.setattr(ncut_module, "_eigen", negated)
    after = ncut_saliency(tokens)
    assert torch.equal(before.mask, after.mask)
    assert torch.equal(before.vector, after.vector)
    seed_entry = before.vector.gather(1, before.vector.abs().argmax(1, keepdim=True))
    assert (seed_entry > 0).all()


def test_mask_does_not_depend_on_the_number_of_solvers():
    tokens = torch.cat([two_kinds(25, small, small) for small in (4, 7, 10, 12, 8)])
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found.append(ncut_saliency(tokens))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    alone, shared = found
    assert torch.equal(alone.mask, shared.mask)
    torch.testing.assert_close(alone.vector, shared.vector, atol=1e-12, rtol=0)


def test_mask_does_not_depend_on_the_batch():
    tokens = torch.cat([two_kinds(25, small, small) for small in (4, 7, 10, 12)])
    together = ncut_saliency(tokens)
    alone = [ncut_saliency(one[None]) for one in tokens]
    assert torch.equal(together.mask, torch.cat([result.mask for result in alone]))


def test_disconnected_graph_gives_one_cluster():
    tokens = torch.zeros(1, 49, 8)
    tokens[0, :12, 0], tokens[0, 12:, 1] = 2.0, 3.0
    result = ncut_saliency(tokens)
    assert not result.fallback.any()
    assert torch.equal(result.mask[0], torch.arange(49) < 12)


@pytest.mark.parametrize("released_code", [False, True])
@pytest.mark.parametrize("zeros", [9, 3, 1])
def test_zero_tokens_give_no_nan(zeros, released_code):
    tokens = unit_rows(1, 9, 8)
    tokens[:, :zeros] = 0
    result = ncut_saliency(tokens, released_code=released_code)
    assert torch.isfinite(result.vector).all()
    assert torch.isfinite(result.density).all()
    assert released_code or result.mask.any()
    assert released_code or zeros < 9 or (result.fallback.all() and result.mask.all())


@pytest.mark.parametrize("n", [1, 2, 4, 16])
def test_complete_graph_selects_all_tokens(n):
    result = ncut_saliency(torch.ones(2, n, 8) + 0.01 * unit_rows(2, n, 8))
    assert result.fallback.all()
    assert result.mask.all()

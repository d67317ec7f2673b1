"""The cut of microCLIP on tokens whose clusters are known."""

from __future__ import annotations

import math

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


def rule_of_before(tokens: Tensor) -> tuple[Tensor, Tensor]:
    """The decided side as it was taken before ties were settled, and the images (B,) bool on which rounding had no say in it."""
    unit = torch.nn.functional.normalize(tokens, dim=-1)
    degree, values, vectors = ncut_module._eigen(unit @ unit.transpose(1, 2) > ncut_module.TAU)
    vector = vectors[..., 1] / degree.sqrt()
    vector = vector * vector.gather(1, vector.abs().argmax(1, keepdim=True)).sign()
    separated = values[:, 2] - values[:, 1] > ncut_module.MIN_GAP
    no_tie = (vector.amax(1) + vector.amin(1) > 1e-9) & ((vector - vector.mean(1, keepdim=True)).abs().amin(1) > 1e-9)
    return (vector > vector.mean(1, keepdim=True)) | ~separated[:, None], no_tie | ~separated


@pytest.mark.parametrize("n", [9, 16, 49, 196])
def test_the_decided_side_is_what_it_was_wherever_it_was_determined(n):
    tokens = torch.cat([*(two_kinds(n, n // 4, seed) for seed in range(8)), unit_rows(8, n, 32, seed=n) + 0.1])
    before, determined = rule_of_before(tokens)
    assert determined.sum() >= 13
    assert torch.equal(ncut_saliency(tokens).mask[determined], before[determined])
    assert torch.equal(ncut_saliency(tokens, side="as-solved").mask, before)


def test_the_mean_like_side_is_that_of_the_many():
    for seed in range(5):
        tokens = two_kinds(49, 12, seed, noise=0.3)
        decided, like = ncut_saliency(tokens), ncut_saliency(tokens, side="mean-like")
        assert torch.equal(decided.mask[0], torch.arange(49) < 12)
        assert torch.equal(like.mask, ~decided.mask)
        torch.testing.assert_close(like.vector, -decided.vector)


def masks_by_rounding(monkeypatch, tokens: Tensor, side: str) -> list[Tensor]:
    """Masks (N,) of one image for solvers that differ in sign and in the last digits."""
    solve, found = ncut_module._eigen, []
    for sign in (1, -1):
        for seed in range(4):
            noise = 1e-12 * unit_rows(1, tokens.shape[1], tokens.shape[1], seed=seed).double()

            def rounded(adjacent, sign=sign, noise=noise):
                degree, values, vectors = solve(adjacent)
                return degree, values, sign * vectors + noise

            monkeypatch.setattr(ncut_module, "_eigen", rounded)
            found.append(ncut_saliency(tokens, side=side).mask[0])
    return found


@pytest.mark.parametrize(("side", "longer", "first"), [("decided", 0, True), ("decided", 1, True), ("mean-like", 0, True), ("mean-like", 1, False)])
def test_two_sides_that_tie_are_told_apart_whatever_the_solver_rounds(monkeypatch, side, longer, first):
    # Two kinds of as many patches: the largest entries of either sign are equal. The mean leans to the longer tokens, or to neither.
    tokens = torch.zeros(1, 16, 8)
    tokens[0, :8, 0], tokens[0, 8:, 1] = 1.0, 1.0 + longer
    assert all(torch.equal(mask, (torch.arange(16) < 8) == first) for mask in masks_by_rounding(monkeypatch, tokens, side))


def test_patches_at_the_mean_are_not_salient_whatever_the_solver_rounds(monkeypatch):
    # Three kinds in a row, each joined to the next: the middle one is on neither side.
    tokens = torch.zeros(1, 9, 2)
    for kind, angle in enumerate((0.0, 1.2, 2.4)):
        tokens[0, 3 * kind : 3 * kind + 3] = torch.tensor([math.cos(angle), math.sin(angle)])
    assert all(torch.equal(mask, torch.arange(9) < 3) for mask in masks_by_rounding(monkeypatch, tokens, "decided"))
    assert len({tuple(mask.tolist()) for mask in masks_by_rounding(monkeypatch, tokens, "as-solved")}) > 1


def test_likeness_that_is_not_finite_leaves_the_decided_patch_to_decide():
    vector = torch.tensor([[0.1, -0.9, 0.2, 0.3]], dtype=torch.float64)
    likeness = torch.full_like(vector, torch.nan)
    for side in ("decided", "mean-like"):
        assert ncut_module._sign(vector, likeness, side, ncut_module.TIE).item() == -1
        assert ncut_module._sign(torch.zeros_like(vector), likeness, side, ncut_module.TIE).item() == 0

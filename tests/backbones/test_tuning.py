from __future__ import annotations

import pytest
import torch
from torch import nn

from finelens.backbones.tuning import NORM_TYPES, Scope, parse_scope, select_parameters
from finelens.backbones.vit import VisionTransformer, ViTConfig
from finelens.errors import UserError


@pytest.fixture(scope="module")
def vit_b32() -> VisionTransformer:
    with torch.device("meta"):
        return VisionTransformer(ViTConfig(224, 32, 768, 12, 12, 512))


def select(tower: VisionTransformer, scope: str) -> dict[str, nn.Parameter]:
    blocks, final = tower.depth_groups()
    return select_parameters(tower, scope, trunk=tower, blocks=blocks, final=final)


def count(parameters: dict[str, nn.Parameter]) -> int:
    return sum(p.numel() for p in parameters.values())


def test_norm_scope_of_a_12_layer_vit_b32_has_39936_numbers(vit_b32):
    chosen = select(vit_b32, "norm")
    assert count(chosen) == 39_936
    assert len(chosen) == 2 * (2 * 12 + 2)
    assert "ln_pre.weight" in chosen


@pytest.mark.parametrize(("k", "numbers"), [(1, 3 * 1536), (3, 7 * 1536), (12, 25 * 1536)])
def test_last_k_norm_is_the_last_blocks_and_the_final_norm(vit_b32, k, numbers):
    chosen = select(vit_b32, f"last-{k}-norm")
    assert count(chosen) == numbers
    assert "ln_pre.weight" not in chosen
    assert "ln_post.bias" in chosen
    assert f"transformer.resblocks.{12 - k}.ln_1.weight" in chosen
    assert f"transformer.resblocks.{11 - k}.ln_1.weight" not in chosen


def test_all_is_every_parameter_and_none_is_none(vit_b32):
    assert select(vit_b32, "all").keys() == dict(vit_b32.named_parameters()).keys()
    assert select(vit_b32, "none") == {}


@pytest.mark.parametrize(
    "scope", ["norms", "last-0-norm", "last-13-norm", "last-x-norm", "last--1-norm", "", "lora", "lora-0", "lora-12345", "svd-2"]
)
def test_unknown_scope_lists_those_that_exist(vit_b32, scope):
    with pytest.raises(UserError, match=r"norm, last-k-norm with k from 1 to 12, lora-r with a rank r such as lora-4, svd, all, none$"):
        select(vit_b32, scope)


def test_tower_without_depth_does_not_offer_depth():
    for scope in ("last-1-norm", "lora-4", "svd"):
        with pytest.raises(UserError, match=r"one of norm, all, none$"):
            parse_scope(scope, 0)
    assert parse_scope("norm", 0) == Scope("norm")


def test_names_come_from_the_root_and_stay_inside_the_trunk():
    trunk = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.GroupNorm(2, 4))
    root = nn.ModuleDict({"visual": trunk, "text": nn.LayerNorm(3)})
    chosen = select_parameters(root, "norm", trunk=trunk, blocks=[], final=[])
    assert list(chosen) == ["visual.1.weight", "visual.1.bias", "visual.2.weight", "visual.2.bias"]
    assert "visual.0.weight" in select_parameters(root, "all", trunk=trunk, blocks=[], final=[])
    assert "text.weight" not in select_parameters(root, "all", trunk=trunk, blocks=[], final=[])


def test_norm_without_affine_pair_adds_nothing():
    trunk = nn.Sequential(nn.LayerNorm(3, elementwise_affine=False))
    assert isinstance(trunk[0], NORM_TYPES)
    assert select_parameters(trunk, "norm", trunk=trunk, blocks=[], final=[]) == {}

from __future__ import annotations

import open_clip
import pytest
import torch
import torch.nn.functional as F
from open_clip.transformer import QuickGELU
from open_clip.transformer import VisionTransformer as Reference

from finelens.backbones.vit import VisionTransformer, ViTConfig


def reference(config: ViTConfig, seed: int = 0) -> Reference:
    torch.manual_seed(seed)
    model = Reference(
        config.image_size,
        config.patch_size,
        config.width,
        config.layers,
        config.heads,
        config.mlp_ratio,
        output_dim=config.output_dim,
        no_ln_pre=not config.ln_pre,
        pool_type=config.pool,
        final_ln_after_pool=config.norm_after_pool,
        act_layer=QuickGELU if config.quick_gelu else torch.nn.GELU,
    )
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.data += 0.3 * torch.randn_like(parameter)
    return model.eval()


def value_path(model: Reference, images: torch.Tensor) -> torch.Tensor:
    """The last block's value path written out with open_clip's own modules, token by token as the specification has it."""
    x = model._embeds(images)
    for block in model.transformer.resblocks[:-1]:
        x = block(x)
    last = model.transformer.resblocks[-1]
    weight, bias = last.attn.in_proj_weight.chunk(3)[2], last.attn.in_proj_bias.chunk(3)[2]
    r = x + last.attn.out_proj(F.linear(last.ln_1(x), weight, bias))
    return model.ln_post(r + last.mlp(last.ln_2(r)))[:, 1:]


def loaded(config: ViTConfig, seed: int = 0) -> tuple[VisionTransformer, Reference]:
    model = reference(config, seed)
    return VisionTransformer.from_state(vars(config), model.state_dict()).eval(), model


BASE = {"image_size": 48, "patch_size": 16, "width": 32, "layers": 3, "heads": 4, "output_dim": 24}
VARIANTS = {
    "quick_gelu": {"quick_gelu": True},
    "gelu": {},
    "wide mlp": {"mlp_ratio": 4.9231},
    "average pool": {"pool": "avg"},
    "clipa": {"pool": "avg", "norm_after_pool": True, "ln_pre": False},
    "one block": {"layers": 1},
}


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS.keys())
def test_equals_open_clip_tower(variant):
    config = ViTConfig(**{**BASE, **variant})
    tower, model = loaded(config)
    images = torch.randn(5, 3, 48, 48)
    with torch.no_grad():
        pooled, patches = tower(images, patches=True)
        torch.testing.assert_close(tower.project(pooled), model(images), atol=1e-5, rtol=0)
        torch.testing.assert_close(patches, value_path(model, images), atol=1e-5, rtol=0)
        assert patches.shape == (5, 9, 32)


def test_activation_matters():
    config = ViTConfig(**BASE)
    tower, model = loaded(config)
    other = VisionTransformer.from_state({**vars(config), "quick_gelu": True}, model.state_dict())
    images = torch.randn(2, 3, 48, 48)
    with torch.no_grad():
        assert (tower(images)[0] - other(images)[0]).abs().max() > 1e-3


def test_layer_norm_gradients_equal_open_clip():
    tower, model = loaded(ViTConfig(**BASE, quick_gelu=True))
    images, direction = torch.randn(4, 3, 48, 48), torch.randn(24)
    (tower.project(tower(images)[0]) @ direction).sum().backward()
    (model(images) @ direction).sum().backward()
    ours, theirs = dict(tower.named_parameters()), dict(model.named_parameters())
    norms = [name for name in ours if ".ln_" in name or name.startswith("ln_")]
    assert len(norms) == 2 * (2 * 3 + 2)
    for name in norms:
        torch.testing.assert_close(ours[name].grad, theirs[name].grad, atol=2e-5, rtol=1e-4)


def test_both_paths_send_gradient_to_the_final_norm():
    tower, _ = loaded(ViTConfig(**BASE))
    images = torch.randn(2, 3, 48, 48)
    pooled, patches = tower(images, patches=True)
    from_cls = torch.autograd.grad(pooled.sum(), tower.ln_post.bias, retain_graph=True)[0]
    from_patches = torch.autograd.grad(patches.sum(), tower.ln_post.bias)[0]
    assert from_cls.unique().tolist() == [2.0]
    assert from_patches.unique().tolist() == [18.0]


def test_patches_only_when_asked_and_only_in_the_last_block(monkeypatch):
    tower, _ = loaded(ViTConfig(**BASE))
    rows = []
    for block in tower.transformer.resblocks:
        block.mlp.register_forward_hook(lambda module, args, output: rows.append(args[0].shape[1]))
    with torch.no_grad():
        assert tower(torch.randn(1, 3, 48, 48))[1] is None
        assert rows == [10, 10, 1]
        rows.clear()
        tower(torch.randn(1, 3, 48, 48), patches=True)
        assert rows == [10, 10, 1, 9]


def test_prompts_follow_the_class_token_and_leave_the_patch_count():
    tower, model = loaded(ViTConfig(**BASE))
    images, prompts = torch.randn(2, 3, 48, 48), torch.randn(4, 32)
    with torch.no_grad():
        x = model._embeds(images)
        x = torch.cat((x[:, :1], prompts.expand(2, -1, -1), x[:, 1:]), dim=1)
        expected = model.ln_post(model.transformer(x))[:, 0]
        pooled, patches = tower(images, patches=True, prompts=prompts)
    torch.testing.assert_close(pooled, expected, atol=1e-5, rtol=0)
    assert patches.shape == (2, 9, 32)
    assert (pooled - tower(images)[0]).abs().max() > 1e-3


def test_prompts_receive_gradient():
    tower, _ = loaded(ViTConfig(**BASE))
    tower.requires_grad_(False)
    prompts = torch.zeros(2, 32, requires_grad=True)
    tower(torch.randn(2, 3, 48, 48), prompts=prompts)[0].sum().backward()
    assert prompts.grad.abs().min() > 0


def test_norms_run_in_float32_inside_a_bfloat16_tower():
    tower, _ = loaded(ViTConfig(**BASE, quick_gelu=True))
    images = torch.randn(8, 3, 48, 48)
    with torch.no_grad():
        exact = tower.tokens(images, patches=True)
        with torch.autocast("cpu", torch.bfloat16):
            mixed = tower.tokens(images, patches=True)
        pure = tower.bfloat16().tokens(images.bfloat16(), patches=True)
    for low in (mixed, pure):
        assert low.global_.dtype == torch.float32
        assert (exact.global_ * low.global_).sum(-1).min() > 0.999
        assert F.cosine_similarity(exact.patches, low.patches.float(), dim=-1).min() > 0.999
    wide = torch.full((1, 32), 1000.0, dtype=torch.bfloat16) + torch.arange(32).bfloat16() * 8
    expected = F.layer_norm(wide.float(), (32,), tower.ln_post.weight.float(), tower.ln_post.bias.float(), 1e-5).bfloat16()
    assert torch.equal(tower.ln_post(wide), expected)


def test_state_dict_round_trip_to_open_clip():
    tower, model = loaded(ViTConfig(**BASE))
    fresh = reference(ViTConfig(**BASE), seed=7)
    fresh.load_state_dict(tower.state_dict(), strict=True)
    images = torch.randn(2, 3, 48, 48)
    with torch.no_grad():
        assert torch.equal(fresh(images), model(images))


def test_loading_copies():
    tower, model = loaded(ViTConfig(**BASE))
    before = model.ln_post.weight.clone()
    tower.ln_post.weight.data.zero_()
    assert torch.equal(model.ln_post.weight, before)


def test_wrong_image_size_is_named():
    tower, _ = loaded(ViTConfig(**BASE))
    with pytest.raises(ValueError, match=r"\(64, 64\).*\(48, 48\)"):
        tower(torch.zeros(1, 3, 64, 64))


@pytest.mark.parametrize("change", [{"heads": 5}, {"has_proj": False}, {"class_token": False}])
def test_impossible_architecture_is_refused(change):
    with pytest.raises(ValueError, match=r"must"):
        ViTConfig(**{**BASE, **change})


def test_vit_b32_has_open_clip_names_and_shapes():
    with torch.device("meta"):
        theirs = open_clip.CLIP(**open_clip.get_model_config("ViT-B-32")).visual.state_dict()
        ours = VisionTransformer(ViTConfig(224, 32, 768, 12, 12, 512)).state_dict()
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in theirs.items()}

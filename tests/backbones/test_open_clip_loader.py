from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load, save

from finelens.backbones.open_clip_loader import OpenClipBackbone
from finelens.backbones.registry import load_backbone, rebuild_image_tower
from finelens.errors import UserError
from finelens.protocol import NotAvailableError
from tests.backbones.checkpoints import open_clip_model, write_tiny_resnet, write_tiny_timm, write_tiny_vit


@pytest.fixture(scope="module")
def vit_folder(tmp_path_factory):
    return write_tiny_vit(tmp_path_factory.mktemp("vit"))


@pytest.fixture(scope="module")
def resnet_folder(tmp_path_factory):
    return write_tiny_resnet(tmp_path_factory.mktemp("resnet"))


@pytest.fixture(scope="module")
def timm_folder(tmp_path_factory):
    return write_tiny_timm(tmp_path_factory.mktemp("timm"), "test_vit3", image_size=160, timm_pool="map", timm_proj="linear")


@pytest.fixture(scope="module")
def vit(vit_folder) -> OpenClipBackbone:
    return load_backbone(f"local:{vit_folder}")


@pytest.fixture(scope="module")
def resnet(resnet_folder) -> OpenClipBackbone:
    return load_backbone(f"local:{resnet_folder}")


@pytest.mark.parametrize("quick_gelu", [True, False])
def test_vit_equals_open_clip_in_both_activations(tmp_path, quick_gelu):
    folder = write_tiny_vit(tmp_path, quick_gelu=quick_gelu)
    backbone, model = load_backbone(f"local:{folder}"), open_clip_model(folder)
    images = torch.randn(3, 3, 64, 64)
    with torch.no_grad():
        tokens = backbone.encode_image(images, patches=True)
        torch.testing.assert_close(tokens.global_, model.encode_image(images, normalize=True), atol=1e-6, rtol=0)
        torch.testing.assert_close(F.normalize(backbone.project(tokens.cls), dim=-1), tokens.global_, atol=1e-6, rtol=0)
    assert (tokens.cls.shape, tokens.patches.shape) == ((3, 64), (3, 16, 64))
    assert (backbone.width, backbone.dim, backbone.grid, backbone.has_token_sequence) == (64, 48, (4, 4), True)
    assert not backbone.is_convolutional
    assert backbone.visual.config.quick_gelu is quick_gelu


def test_resnet_pools_as_open_clip_and_projects_cells(resnet, resnet_folder):
    model, images = open_clip_model(resnet_folder), torch.randn(3, 3, 64, 64)
    with torch.no_grad():
        tokens = resnet.encode_image(images, patches=True)
        torch.testing.assert_close(tokens.global_, model.encode_image(images, normalize=True), atol=1e-6, rtol=0)
        features = model.visual.forward_intermediates(images, indices=[4], intermediates_only=True)["image_intermediates"][0]
        torch.testing.assert_close(tokens.patches, features.flatten(2).transpose(1, 2))
        torch.testing.assert_close(tokens.cls, features.mean(dim=(2, 3)))
        pool = model.visual.attnpool
        torch.testing.assert_close(resnet.project(tokens.patches), pool.c_proj(pool.v_proj(tokens.patches)))
    assert (resnet.width, resnet.dim, resnet.grid, resnet.has_token_sequence) == (256, 48, (2, 2), False)
    assert resnet.is_convolutional


def test_resnet_has_no_prompts(resnet):
    with pytest.raises(NotAvailableError, match="ViT"):
        resnet.encode_image(torch.zeros(1, 3, 64, 64), prompts=torch.zeros(2, 256))


def test_resnet_norm_scope_is_batch_norm_pairs_with_frozen_statistics(resnet):
    chosen = resnet.tunable("norm")
    norms = [m for m in resnet.visual.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert sum(p.numel() for p in chosen.values()) == sum(2 * m.num_features for m in norms)
    assert len(resnet.tunable("last-1-norm")) == 2 * 4  # three convolutions and the shortcut
    before = resnet.visual.bn1.running_mean.clone()
    resnet.train()
    resnet.encode_image(torch.randn(4, 3, 64, 64) + 5)
    assert not resnet.training
    assert torch.equal(resnet.visual.bn1.running_mean, before)


@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_everything_starts_frozen_and_tunable_names_are_state_names(kind, request):
    backbone = request.getfixturevalue(kind)
    assert not any(p.requires_grad for p in backbone.parameters())
    state = backbone.image_state()
    for scope in ("norm", "last-2-norm", "all"):
        chosen = backbone.tunable(scope)
        assert chosen
        assert all(torch.equal(state[name], parameter) for name, parameter in chosen.items())
    with pytest.raises(UserError, match="last-k-norm"):
        backbone.tunable("everything")


def test_preprocessing_and_scale_are_read(tmp_path):
    settings = {"mean": [0.5, 0.4, 0.3], "std": [0.1, 0.2, 0.3], "interpolation": "bilinear", "resize_mode": "squash"}
    folder = write_tiny_vit(tmp_path, preprocess=settings, init_logit_scale=2.0, init_logit_bias=-10.0)
    backbone = load_backbone(f"local:{folder}")
    preprocess = backbone.preprocess
    assert (preprocess.image_size, preprocess.resize_size) == (64, 64)
    assert (preprocess.mean, preprocess.std) == ((0.5, 0.4, 0.3), (0.1, 0.2, 0.3))
    assert (preprocess.interpolation, preprocess.resize_mode) == ("bilinear", "squash")
    assert backbone.logit_scale == pytest.approx(7.389056, rel=1e-5)
    assert backbone.logit_bias == -10.0


@pytest.mark.parametrize(("key", "value"), [("resize_mode", "longest"), ("interpolation", "random")])
def test_unsupported_preprocessing_is_named(tmp_path, key, value):
    folder = write_tiny_vit(tmp_path, preprocess={key: value})
    with pytest.raises(UserError, match=rf"{key} is '{value}'; supported"):
        load_backbone(f"local:{folder}")


@pytest.mark.parametrize("vision", [{"ls_init_value": 0.1}, {"attentional_pool": True}, {"qk_norm": True}, {"act_kwargs": {"approximate": "tanh"}}])
def test_vit_variants_without_our_value_path_are_refused(tmp_path, vision):
    folder = write_tiny_vit(tmp_path, quick_gelu=False, vision=vision)
    with pytest.raises(UserError, match="variant"):
        load_backbone(f"local:{folder}")


@pytest.mark.parametrize("kind", ["vit", "resnet", "timm"])
def test_image_side_survives_json_and_safetensors(kind, request):
    original = load_backbone(f"local:{request.getfixturevalue(f'{kind}_folder')}")
    config = json.loads(json.dumps(original.image_config()))
    state = load(save(original.image_state()))
    rebuilt = rebuild_image_tower(config, state)
    size = original.preprocess.image_size
    images = torch.randn(2, 3, size, size)
    with torch.no_grad():
        before, after = original.encode_image(images, patches=True), rebuilt.encode_image(images, patches=True)
        assert torch.equal(original.project(before.patches), rebuilt.project(after.patches))
    assert torch.equal(before.global_, after.global_)
    assert torch.equal(before.patches, after.patches)
    assert rebuilt.image_config() == original.image_config()
    assert rebuilt.preprocess == original.preprocess
    assert list(rebuilt.image_state()) == list(original.image_state())
    assert not any(p.requires_grad for p in rebuilt.parameters())


def test_rebuilt_tower_does_not_share_memory(vit):
    state = {name: tensor.clone() for name, tensor in vit.image_state().items()}
    rebuilt = rebuild_image_tower(vit.image_config(), state)
    rebuilt.visual.ln_post.weight.data.zero_()
    assert state["visual.ln_post.weight"].abs().sum() > 0


def test_rebuilt_tower_has_no_text(vit):
    rebuilt = rebuild_image_tower(vit.image_config(), vit.image_state())
    tokens = vit.tokenize(["a"])
    calls = [
        lambda: rebuilt.encode_text(["a"]),
        lambda: rebuilt.tokenize(["a"]),
        lambda: rebuilt.count_tokens(["a"]),
        lambda: rebuilt.embed_tokens(tokens),
        lambda: rebuilt.encode_token_embeddings(torch.zeros(1, 77, 32), tokens),
    ]
    for call in calls:
        with pytest.raises(NotAvailableError, match="load the original backbone"):
            call()


def test_saved_state_that_does_not_fit_is_refused(vit):
    state = vit.image_state()
    del state["visual.proj"]
    with pytest.raises(UserError, match="does not fit"):
        rebuild_image_tower(vit.image_config(), state)


def test_timm_tower_equals_open_clip(timm_folder):
    backbone, model = load_backbone(f"local:{timm_folder}"), open_clip_model(timm_folder)
    images = torch.randn(2, 3, 160, 160)
    with torch.no_grad():
        tokens = backbone.encode_image(images, patches=True)
        torch.testing.assert_close(tokens.global_, model.encode_image(images, normalize=True), atol=1e-6, rtol=0)
        projected = backbone.project(tokens.patches)
    assert projected.shape == (*tokens.patches.shape[:2], backbone.dim)
    assert backbone.grid[0] * backbone.grid[1] == tokens.patches.shape[1]
    assert projected.isfinite().all()
    with pytest.raises(NotAvailableError, match="test_vit3"):
        backbone.encode_image(images, prompts=torch.zeros(1, backbone.width))


@pytest.mark.parametrize(
    ("architecture", "vision"),
    [
        ("test_vit", {"timm_pool": "token", "timm_proj": None}),
        ("test_vit2", {"timm_pool": "avg", "timm_proj": "linear"}),
        ("test_convnext", {"timm_pool": "", "timm_proj": "mlp"}),
        ("test_efficientnet", {"timm_pool": "avg", "timm_proj": None}),
    ],
)
def test_timm_project_of_cls_is_the_global_feature_for_average_and_token_pooling(tmp_path, architecture, vision):
    folder = write_tiny_timm(tmp_path, architecture, image_size=160, **vision)
    backbone = load_backbone(f"local:{folder}")
    images = torch.randn(2, 3, 160, 160)
    with torch.no_grad():
        tokens = backbone.encode_image(images, patches=True)
        torch.testing.assert_close(tokens.global_, open_clip_model(folder).encode_image(images, normalize=True), atol=1e-5, rtol=0)
        torch.testing.assert_close(F.normalize(backbone.project(tokens.cls), dim=-1), tokens.global_, atol=1e-5, rtol=0)
        single = torch.stack([backbone.project(token) for token in tokens.patches[0]])
        torch.testing.assert_close(backbone.project(tokens.patches)[0], single, atol=1e-5, rtol=1e-4)
    assert backbone.tunable("norm").keys() > backbone.tunable("last-1-norm").keys()


def test_timm_tower_whose_pool_is_the_projection_is_named(tmp_path):
    folder = write_tiny_timm(tmp_path, "test_byobnet", image_size=160, timm_pool="rot_attn", timm_proj="")
    with pytest.raises(UserError, match=r"test_byobnet.*rot_attn"):
        load_backbone(f"local:{folder}")

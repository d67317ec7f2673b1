from __future__ import annotations

import pytest
import torch

from finelens.backbones.open_clip_loader import OpenClipBackbone
from finelens.backbones.vit import VisionTransformer, ViTConfig

pytestmark = pytest.mark.golden

MEAN, STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]


@pytest.fixture(scope="module")
def stored(golden):
    return golden.tensors("01_encoder")


@pytest.fixture(scope="module")
def config(golden) -> ViTConfig:
    entry = dict(golden.group("model")["config"])
    grid, n_patches = entry.pop("grid"), entry.pop("n_patches")
    config = ViTConfig(**entry)
    assert (config.side, config.side**2) == (grid, n_patches)
    return config


@pytest.fixture
def backbone(golden, config) -> OpenClipBackbone:
    visual = {name: tensor for name, tensor in golden.model().items() if name.startswith("visual.")}
    preprocess = {"image_size": 80, "resize_size": 80, "mean": MEAN, "std": STD, "interpolation": "bicubic", "resize_mode": "shortest"}
    saved = {"kind": "open_clip_vit", "name": "golden", "tower": vars(config), "preprocess": preprocess}
    return OpenClipBackbone.image_only({**saved, "logit_scale": 100.0, "logit_bias": 0.0, "context_length": 77}, visual)


def test_normalised_input(backbone, stored):
    torch.testing.assert_close(backbone.normalise(stored["images_u8"])[0], stored["x_norm_first"], atol=1e-6, rtol=0)


def test_encoder_float32(backbone, stored):
    with torch.no_grad():
        tokens = backbone.encode_image(backbone.normalise(stored["images_u8"]), patches=True)
    torch.testing.assert_close(tokens.global_, stored["f_cls"], atol=2e-6, rtol=0)
    torch.testing.assert_close(tokens.cls, stored["c"], atol=5e-5, rtol=0)
    torch.testing.assert_close(tokens.patches, stored["v"], atol=5e-5, rtol=0)


def test_encoder_float64(backbone, stored):
    backbone.double()
    with torch.no_grad():
        tokens = backbone.encode_image(backbone.normalise(stored["images_u8"]), patches=True)
    torch.testing.assert_close(tokens.global_, stored["f_cls_f64"], atol=1e-10, rtol=0)
    torch.testing.assert_close(tokens.cls, stored["c_f64"], atol=1e-10, rtol=0)
    torch.testing.assert_close(tokens.patches[0], stored["v_f64_img0"], atol=1e-10, rtol=0)


def test_asking_for_patches_does_not_change_the_global_feature(backbone, stored):
    images = backbone.normalise(stored["images_u8"])
    with torch.no_grad():
        plain = backbone.encode_image(images)
    assert plain.patches is None
    torch.testing.assert_close(plain.global_, stored["f_cls_plain_call"], atol=2e-6, rtol=0)


def test_bare_tower_takes_the_stored_state_and_gives_it_back(golden, config):
    visual = {name.removeprefix("visual."): tensor for name, tensor in golden.model().items() if name.startswith("visual.")}
    tower = VisionTransformer(config)
    tower.load_state_dict(visual, strict=True)
    assert {name: tensor.shape for name, tensor in tower.state_dict().items()} == {name: tensor.shape for name, tensor in visual.items()}
    assert all(torch.equal(tower.state_dict()[name], tensor) for name, tensor in visual.items())

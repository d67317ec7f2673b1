"""Image encoders by name: the features are the library's own, and what is missing or foreign is refused."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from finelens.backbones import hub
from finelens.backbones.registry import absolute_spec, is_encoder_spec, load_backbone, load_encoder
from finelens.errors import UserError
from finelens.feature_store.encoder import tower_digest
from tests.backbones.encoder_checkpoints import DINOS, write_dino, write_timm


def noise(side: int) -> torch.Tensor:
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", ["test_vit", "test_resnet.r160_in1k", "test_convnext"])
def test_features_are_those_of_timm(tmp_path, name):
    model = write_timm(tmp_path / "weights.safetensors", name)
    encoder = load_encoder(f"timm:{name}@{tmp_path / 'weights.safetensors'}")
    data = timm.data.resolve_model_data_config(model)
    assert (encoder.preprocess.image_size, encoder.preprocess.resize_size) == (160, 168)
    assert (encoder.preprocess.mean, encoder.preprocess.interpolation) == (data["mean"], data["interpolation"])
    with torch.no_grad():
        expected, found = model(noise(160)), encoder.encode_image(noise(160))
    torch.testing.assert_close(found.cls, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.global_, torch.nn.functional.normalize(expected, dim=-1), atol=1e-5, rtol=0)
    assert encoder.dim == expected.shape[1]


@pytest.mark.parametrize("kind", DINOS)
def test_features_are_those_of_transformers(tmp_path, kind):
    model = write_dino(tmp_path / "dino", kind)
    encoder = load_encoder(f"transformers:{tmp_path / 'dino'}")
    v3 = kind.startswith("DINOv3")
    assert (encoder.preprocess.image_size, encoder.preprocess.resize_size) == (64, 64 if v3 else 72)
    assert (encoder.preprocess.resize_mode, encoder.preprocess.interpolation) == (("squash", "bilinear") if v3 else ("shortest", "bicubic"))
    with torch.no_grad():
        expected = model(pixel_values=noise(64)).pooler_output.flatten(1)
        found = encoder.encode_image(noise(64)).cls
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_a_folder_of_timm_is_the_file_with_its_configuration(tmp_path):
    write_timm(tmp_path / "weights.safetensors", "test_vit")
    model = timm.create_model("test_vit", num_classes=10)
    model.load_state_dict(load_file(tmp_path / "weights.safetensors"))
    timm.models.save_for_hf(model, str(tmp_path / "folder"), safe_serialization=True)
    one, other = load_encoder(f"timm:test_vit@{tmp_path / 'weights.safetensors'}"), load_encoder(f"timm:{tmp_path / 'folder'}")
    assert tower_digest(one) == tower_digest(other)
    assert one.name != other.name
    other.preprocess = replace(other.preprocess, mean=(0.4, 0.5, 0.5))
    assert tower_digest(one) != tower_digest(other)


def test_the_image_side_of_a_dual_encoder_serves_too(tiny_vit):
    own, whole = load_encoder(f"local:{tiny_vit}"), load_backbone(f"local:{tiny_vit}")
    torch.testing.assert_close(own.encode_image(noise(64)).global_, whole.encode_image(noise(64)).global_, atol=0, rtol=0)
    assert own.text is None


def test_weights_that_lack_something_are_refused(tmp_path):
    """timm itself would leave what is missing at random values, since the classifier was taken off."""
    file = tmp_path / "weights.safetensors"
    write_timm(file, "test_vit")
    state = load_file(file)
    del state["blocks.0.attn.proj.weight"]
    save_file(state, file)
    with pytest.raises(UserError, match=r'weights.safetensors does not fit the model: Missing key.*"blocks.0.attn.proj.weight"'):
        load_encoder(f"timm:test_vit@{file}")


def test_what_cannot_be_had_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "hub_reachable", lambda: False)
    for spec, said in (
        ("timm:test_vit.r160_in1k", "no model hub can be reached.*use timm:NAME@FILE.safetensors"),
        ("timm:tset_vit", "timm has no model 'tset_vit'; nearest: test_vit"),
        ("timm:test_vit@nowhere.safetensors", "no weights; expected nowhere.safetensors"),
        ("timm:test_vit@weights.pth", "pickle checkpoints are refused.*weights.safetensors"),
        (f"timm:{tmp_path}", "no config.json there"),
        ("transformers:facebook/dinov2-small", "no model hub can be reached"),
        ("tim:test_vit", "unknown encoder 'tim:test_vit'; did you mean timm. The forms are: timm:NAME"),
    ):
        with pytest.raises(UserError, match=said):
            load_encoder(spec)


def test_an_image_encoder_is_no_backbone(tmp_path):
    write_dino(tmp_path / "dino", "Dinov2")
    with pytest.raises(UserError, match="has no text tower; give it beside a CLIP model, with --extra-encoder"):
        load_backbone(f"transformers:{tmp_path / 'dino'}")


def test_a_configuration_of_another_writer_is_the_same_model(tmp_path):
    write_dino(tmp_path / "dino", "Dinov2")
    before = tower_digest(load_encoder(f"transformers:{tmp_path / 'dino'}"))
    path = tmp_path / "dino/config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "transformers_version": "9.0"}))
    assert tower_digest(load_encoder(f"transformers:{tmp_path / 'dino'}")) == before
    path.write_text(json.dumps({**config, "layer_norm_eps": 1e-3}))
    assert tower_digest(load_encoder(f"transformers:{tmp_path / 'dino'}")) != before


def test_specifications_mean_the_same_from_everywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dino").mkdir()
    assert absolute_spec("timm:test_vit@w.safetensors") == f"timm:test_vit@{tmp_path}/w.safetensors"
    assert absolute_spec("timm:dino") == f"timm:{tmp_path}/dino"
    for kept in ("timm:test_vit", "timm:hf-hub:timm/vit@main", "transformers:facebook/dinov2-small", "embedded"):
        assert absolute_spec(kept) == kept
    assert [is_encoder_spec(text) for text in ("timm:a", "embedded", "a.npy", "cls", "timm:", "C:\\a.npy")] == [
        True,
        True,
        False,
        False,
        False,
        False,
    ]

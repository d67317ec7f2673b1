"""LLM2CLIP: the image side of a folder in its layout is loaded, prototypes stand for the language model's texts, and its code is never run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import load_file, save_file

import finelens
from finelens import api
from finelens.backbones.registry import load_backbone, load_encoder
from finelens.errors import UserError
from tests.toy import CLASSES, QUIET, write_classes, write_photos

VISION = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 48, "patch_size": 16}
RUNS = "raise SystemExit('code of a repository was run')\n"


def write(folder: Path, *, scale: bool = True, processor: bool = False) -> torch.nn.Module:
    """Files as the repository has them: no tokenizer, no image processor, code. Returns transformers' own image side."""
    torch.manual_seed(0)
    model = transformers.CLIPVisionModelWithProjection(transformers.CLIPVisionConfig(**VISION, projection_dim=20)).eval()
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    folder.mkdir(parents=True)
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items() if not name.endswith("position_ids")}
    state |= {"text_adapter.adaptor.0.weight": torch.randn(8, 8), "text_adapter.adaptor.0.bias": torch.randn(8)}
    state |= {"logit_scale": torch.tensor(3.0)} if scale else {}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    config = {
        "architectures": ["LLM2CLIPModel"],
        "auto_map": {"AutoConfig": "configuration_clip.CLIPConfig", "AutoModel": "modeling_clip.LLM2CLIPModel"},
        "logit_scale_init_value": 2.6592,
        "model_type": "clip",
        "projection_dim": 20,
        "text_config": {"model_type": "clip_text_model"},
        "vision_config": {"dropout": 0.0, "model_type": "clip_vision_model", "projection_dim": 20, **VISION},
    }
    (folder / "config.json").write_text(json.dumps(config))
    for name in ("configuration_clip.py", "modeling_clip.py"):
        (folder / name).write_text(RUNS)
    if processor:
        size = {"size": {"shortest_edge": 64}, "crop_size": {"height": 48, "width": 48}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
        transformers.CLIPImageProcessor(**size).save_pretrained(folder)
    return model


def test_the_image_side_is_transformers_own(tmp_path):
    theirs = write(tmp_path / "llm2clip")
    backbone = load_backbone(f"transformers:{tmp_path / 'llm2clip'}")
    noise = torch.randn(3, 3, 48, 48)
    with torch.no_grad():
        torch.testing.assert_close(backbone.encode_image(noise).global_, F.normalize(theirs(noise).image_embeds, dim=1), atol=1e-5, rtol=0)
    assert backbone.logit_scale == pytest.approx(np.exp(3.0))
    assert (backbone.preprocess.image_size, backbone.preprocess.resize_size) == (48, 48)
    assert backbone.preprocess.mean == pytest.approx((0.48145466, 0.4578275, 0.40821073))
    assert load_encoder(f"transformers:{tmp_path / 'llm2clip'}").dim == 20
    with pytest.raises(UserError, match=r"its texts go through a language model; give what that makes of the classes, with --prototypes"):
        backbone.encode_text(["a cat"])


def test_a_processor_in_the_folder_is_used_and_a_scale_that_lacks_is_said(tmp_path, caplog):
    write(tmp_path / "own", scale=False, processor=True)
    backbone = load_backbone(f"transformers:{tmp_path / 'own'}")
    assert (backbone.preprocess.resize_size, backbone.preprocess.mean) == (64, (0.5, 0.5, 0.5))
    assert backbone.logit_scale == 100
    assert "no logit_scale among the weights; 100 is taken" in caplog.text


def test_photographs_with_prototypes_are_adapted_to_and_predicted(tmp_path):
    write(tmp_path / "llm2clip")
    spec, photos = f"transformers:{tmp_path / 'llm2clip'}", write_photos(tmp_path / "photos", per_class=3)
    classes = write_classes(tmp_path / "classes.txt")
    with pytest.raises(UserError, match="with --prototypes"):
        finelens.adapt(photos, classes, tmp_path / "none", backbone=spec, console=QUIET)
    np.save(tmp_path / "texts.npy", np.random.default_rng(0).normal(size=(len(CLASSES), 20)).astype(np.float32))
    given = {"backbone": spec, "prototypes": tmp_path / "texts.npy", "console": QUIET}
    for method in ("zero-shot", "consensus"):
        found = finelens.adapt(photos, classes, tmp_path / method, method=method, **given)
        assert len(found.rows) == 12
        answers = finelens.load(tmp_path / method).predict_proba(sorted(photos.rglob("*.png")))
        assert np.isfinite(answers).all()
    explained = api.explain(tmp_path / "consensus", photos / CLASSES[0] / "0.png", console=QUIET)
    assert explained.without_texts == "the run has prototypes in the place of texts"
    with pytest.raises(UserError, match=r"--to transformers cannot hold the backbone .* its texts go through a language model"):
        finelens.export(tmp_path / "zero-shot", tmp_path / "out", to="transformers", console=QUIET)


def test_lacking_weights_of_the_image_side_are_refused(tmp_path):
    write(tmp_path / "half")
    state = {name: tensor for name, tensor in load_file(tmp_path / "half/model.safetensors").items() if "visual_projection" not in name}
    save_file(state, tmp_path / "half/model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"the weights lack visual_projection.* give a whole CLIPVisionModelWithProjection"):
        load_backbone(f"transformers:{tmp_path / 'half'}")

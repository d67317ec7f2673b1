"""Dual encoders in transformers' layout against transformers' own forward, for every family."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from finelens import api
from finelens.backbones import transformers_source
from finelens.backbones.align_tower import AlignTower
from finelens.backbones.registry import absolute_spec, load_backbone, rebuild_image_tower
from finelens.backbones.vit import VisionTransformer
from finelens.errors import UserError
from finelens.images.views import centre_view
from finelens.protocol import Backbone, NotAvailableError
from tests.backbones.transformers_checkpoints import FAMILIES, SIDE, TEXTS, their_image_features, their_model, their_text_features, write_tiny
from tests.toy import QUIET, fit_toy, picture, pictures, quick

VITS = [family for family in FAMILIES if family != "align"]
PLAIN_TEXT = ["clip", "metaclip_2", "siglip"]
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    parent = tmp_path_factory.mktemp("transformers")
    return {family: write_tiny(parent / family, family) for family in FAMILIES}


@pytest.fixture(scope="module")
def backbones(folders) -> dict[str, Backbone]:
    return {family: load_backbone(f"transformers:{folder}") for family, folder in folders.items()}


@pytest.fixture(scope="module")
def theirs(folders) -> dict[str, torch.nn.Module]:
    return {family: their_model(folder) for family, folder in folders.items()}


@pytest.mark.parametrize("family", FAMILIES)
def test_features_of_pixels_and_texts_are_those_of_transformers(family, folders, backbones, theirs):
    backbone, images = backbones[family], torch.randn(3, 3, SIDE, SIDE)
    expected = their_image_features(theirs[family], images)
    assert expected.std(dim=0).mean() > 1e-3
    with torch.no_grad():
        tokens = backbone.encode_image(images, patches=True)
    torch.testing.assert_close(tokens.global_, expected, atol=1e-5, rtol=0)
    texts = their_text_features(theirs[family], folders[family], TEXTS)
    assert texts.std(dim=0).mean() > 1e-2
    torch.testing.assert_close(backbone.encode_text(TEXTS), texts, atol=1e-5, rtol=0)
    rows, columns = backbone.grid
    assert tokens.patches.shape == (3, rows * columns, backbone.width)
    assert backbone.dim == expected.shape[1] == texts.shape[1]
    assert isinstance(backbone.visual, AlignTower if family == "align" else VisionTransformer)


def test_scale_bias_and_preprocessing_are_those_of_the_model(backbones):
    found = {family: (backbone.logit_scale, backbone.logit_bias) for family, backbone in backbones.items()}
    assert found.pop("align") == pytest.approx((16.0, 0.0))
    assert found.pop("siglip") == pytest.approx((7.389056, -5.0))
    assert all(own == pytest.approx((7.389056, 0.0)) for own in found.values())
    resizes = {family: (b.preprocess.resize_mode, b.preprocess.interpolation) for family, b in backbones.items()}
    assert (resizes["clip"], resizes["siglip"], resizes["align"]) == (("shortest", "bicubic"), ("squash", "bicubic"), ("squash", "bilinear"))
    assert (backbones["align"].preprocess.resize_size, backbones["align"].preprocess.image_size) == (58, SIDE)
    assert {family: b.context_length for family, b in backbones.items()} == {
        "clip": 77,
        "metaclip_2": 30,
        "siglip": 30,
        "altclip": 30,
        "chinese_clip": 40,
        "align": 40,
    }


@pytest.mark.parametrize("family", FAMILIES)
def test_files_are_preprocessed_as_the_image_processor_says(family, folders, backbones, theirs):
    """Both resize bytes, by kernels that round differently: pixels differ by a level or two, and nothing is shifted or cropped."""
    backbone, image = backbones[family], picture(1, 0, 70, 90)
    processor = transformers.AutoImageProcessor.from_pretrained(folders[family])
    expected = processor(images=Image.fromarray(image), return_tensors="pt")["pixel_values"]
    view = centre_view(torch.from_numpy(image).permute(2, 0, 1), backbone.preprocess)
    ours = backbone.normalise(view[None])
    assert ours.shape == expected.shape
    levels = (ours - expected) * 255 * torch.tensor(backbone.preprocess.std).view(3, 1, 1)
    assert levels.abs().max() < 2.5
    assert levels.abs().mean() < 0.3
    torch.testing.assert_close(backbone.encode_image(ours).global_, their_image_features(theirs[family], expected), atol=0.02, rtol=0)


def test_an_odd_rest_is_cut_one_pixel_further_than_transformers_does(folders, backbones):
    """47 columns are left over: transformers starts the crop at 23, finelens at 24, as torchvision and open_clip do."""
    image = picture(0, 0, SIDE, SIDE + 47)
    processor = transformers.AutoImageProcessor.from_pretrained(folders["clip"])
    theirs = processor(images=Image.fromarray(image), return_tensors="pt")["pixel_values"][0]
    ours = backbones["clip"].normalise(centre_view(torch.from_numpy(image).permute(2, 0, 1), backbones["clip"].preprocess))
    torch.testing.assert_close(ours[:, :, :-1], theirs[:, :, 1:], atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_image_side_is_rebuilt_from_json_and_tensors(family, backbones):
    backbone, images = backbones[family], torch.randn(2, 3, SIDE, SIDE)
    config = json.loads(json.dumps(backbone.image_config()))
    rebuilt = rebuild_image_tower(config, backbone.image_state())
    with torch.no_grad():
        assert torch.equal(rebuilt.encode_image(images).global_, backbone.encode_image(images).global_)
    assert rebuilt.preprocess == backbone.preprocess


@pytest.mark.parametrize("family", VITS)
def test_a_vit_has_its_value_path_and_every_scope(family, backbones):
    backbone, images = backbones[family], torch.randn(2, 3, SIDE, SIDE)
    for scope in ("norm", "last-1-norm", "all"):
        assert all(torch.equal(backbone.image_state()[name], value) for name, value in backbone.tunable(scope).items())
    assert backbone.tunable("svd")
    backbone.merge()
    state = backbone.visual.state_dict()
    with torch.no_grad():
        x = backbone.encode_prefix(images, 1)
        last = backbone.visual.transformer.blocks[-1]
        y, width = last.ln_1(x), backbone.width
        value = y @ last.attn.in_proj_weight[2 * width :].T + last.attn.in_proj_bias[2 * width :]
        r = x + last.attn.out_proj(value)
        expected = backbone.visual.ln_post(r + last.mlp(last.ln_2(r)))[:, backbone.visual.n_class :]
        torch.testing.assert_close(backbone.encode_image(images, patches=True).patches, expected, atol=1e-5, rtol=0)
    assert ("class_embedding" in state) == (family != "siglip")


def test_siglip_projects_a_token_as_if_it_were_the_only_one(backbones, theirs):
    tokens = torch.randn(2, 5, 32)
    with torch.no_grad():
        expected = theirs["siglip"].vision_model.head(tokens.reshape(10, 1, 32)).reshape(2, 5, 32)
        torch.testing.assert_close(backbones["siglip"].project(tokens), expected, atol=1e-5, rtol=0)


def test_patches_may_leave_a_rest_of_the_image(tmp_path):
    """So does SigLIP so400m at 384 pixels with patches of 14."""
    folder = write_tiny(tmp_path, "siglip", vision={"patch_size": 14})
    backbone, images = load_backbone(f"transformers:{folder}"), torch.randn(2, 3, SIDE, SIDE)
    with torch.no_grad():
        torch.testing.assert_close(backbone.encode_image(images).global_, their_image_features(their_model(folder), images), atol=1e-5, rtol=0)
    assert backbone.grid == (3, 3)


@pytest.mark.parametrize("activation", ["gelu", "gelu_pytorch_tanh"])
def test_the_activation_is_that_of_the_weights(tmp_path, activation):
    """And the end token of released CLIP, 2, means the largest id."""
    own = {"hidden_act": activation}
    folder = write_tiny(tmp_path, "clip", vision=own, text={**own, "eos_token_id": 2})
    backbone, images, model = load_backbone(f"transformers:{folder}"), torch.randn(2, 3, SIDE, SIDE), their_model(folder)
    with torch.no_grad():
        torch.testing.assert_close(backbone.encode_image(images).global_, their_image_features(model, images), atol=1e-5, rtol=0)
    torch.testing.assert_close(backbone.encode_text(TEXTS), their_text_features(model, folder, TEXTS), atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", PLAIN_TEXT)
def test_learned_context_enters_a_plain_text_tower(family, backbones):
    backbone = backbones[family]
    tokens = backbone.tokenize(TEXTS)
    embeddings = backbone.embed_tokens(tokens).detach().requires_grad_()
    features = backbone.encode_token_embeddings(embeddings, tokens)
    torch.testing.assert_close(features, backbone.encode_text(TEXTS), atol=1e-5, rtol=0)
    features.square().sum().backward()
    assert embeddings.grad is not None


@pytest.mark.parametrize("family", ["altclip", "chinese_clip", "align"])
def test_what_another_text_tower_lacks_is_said(family, backbones):
    with pytest.raises(NotAvailableError, match="no standard CLIP text tower; use a method without learned text context"):
        backbones[family].embed_tokens(backbones[family].tokenize(TEXTS))


def test_what_a_convolutional_tower_lacks_is_said(backbones):
    with pytest.raises(NotAvailableError, match="takes no visual prompts"):
        backbones["align"].encode_image(torch.zeros(1, 3, SIDE, SIDE), prompts=torch.zeros(1, 24))


def test_norms_of_a_convolutional_tower_get_gradients(folders):
    backbone = load_backbone(f"transformers:{folders['align']}")
    norms = backbone.tunable("norm")
    for parameter in norms.values():
        parameter.requires_grad_()
    backbone.encode_image(torch.randn(2, 3, SIDE, SIDE)).global_[0, 0].backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in norms.values())
    assert len(norms) == 2 * sum(isinstance(module, torch.nn.BatchNorm2d) for module in backbone.visual.modules())


@pytest.mark.parametrize("family", FAMILIES)
def test_special_tokens_in_a_text_are_text(family, folders, backbones):
    special = transformers.AutoTokenizer.from_pretrained(folders[family]).all_special_tokens
    written, apart = [f"a {token} b" for token in special], [f"a {token[0]} {token[1:]} b" for token in special]
    assert torch.equal(backbones[family].tokenize(written), backbones[family].tokenize(apart))
    assert backbones[family].count_tokens([*TEXTS, "a" + 200 * " b"])[-1] > backbones[family].context_length
    assert backbones[family].count_tokens([]) == []


def test_self_training_runs_with_attention_pooling(folders):
    spec = f"transformers:{folders['siglip']}"
    prepared, _, log = fit_toy(spec, "microclip", pictures(1), options=quick(epochs=1))
    assert len(log.losses) == 1
    assert np.isfinite(log.losses).all()
    norms, before = prepared.engine.backbone.tunable("norm"), load_backbone(spec).image_state()
    assert any(not torch.equal(before[name], tensor) for name, tensor in norms.items())


def test_a_run_answers_as_transformers_does(folders, theirs, photos, classes, tmp_path):
    """From files to answers: the classes that transformers' cosines give, without the model's folder."""
    folder = shutil.copytree(folders["clip"], tmp_path / "model")
    options = {"training": {"precision": "float32"}}
    api.zero_shot(photos, classes, tmp_path / "run", backbone=f"transformers:{folder}", options=options, console=QUIET)
    shutil.rmtree(folder)
    loaded = api.load_run(tmp_path / "run")
    assert loaded._config.backbone == f"transformers:{folder}"
    found = loaded.predictions(photos, zero_shot=False)
    processor = transformers.AutoImageProcessor.from_pretrained(folders["clip"])
    names = [record.name for record in found.records]
    pixels = [processor(images=Image.open(photos / name).convert("RGB"), return_tensors="pt")["pixel_values"] for name in names]
    head = loaded.model.zero_shot_heads["templates"]
    expected = 7.389056 * their_image_features(theirs["clip"], torch.cat(pixels)) @ head.T
    rows = [record.index for record in found.records]
    torch.testing.assert_close(found.logits["logits"][rows], expected, atol=0.05, rtol=0)


def test_a_hub_model_is_pinned_to_the_commit_that_was_loaded(monkeypatch, folders, tmp_path):
    snapshot = shutil.copytree(folders["clip"], tmp_path / "snapshots" / COMMIT)
    asked = []

    def serve(repository, *, revision, allow_patterns, ignore_patterns):
        asked.append((repository, revision, "model*.safetensors" in allow_patterns, any("bin" in pattern for pattern in allow_patterns)))
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", serve)
    assert load_backbone("transformers:org/model").name == f"transformers:org/model@{COMMIT}"
    assert asked == [("org/model", None, False, False), ("org/model", COMMIT, True, False)]


def test_names_of_folders_and_of_repositories(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "model").mkdir(parents=True)
    assert absolute_spec("transformers:org/model") == f"transformers:{tmp_path}/org/model"
    assert absolute_spec("transformers:org/other@main") == "transformers:org/other@main"
    assert transformers_source.is_folder("./org/other")
    assert not transformers_source.is_folder("org/other")


def test_shards_are_read(folders, backbones, tmp_path):
    folder = shutil.copytree(folders["clip"], tmp_path / "shards")
    (folder / "model.safetensors").unlink()
    their_model(folders["clip"]).save_pretrained(folder, max_shard_size="40KB")
    assert (folder / "model.safetensors.index.json").is_file()
    assert torch.equal(load_backbone(f"transformers:{folder}").encode_text(TEXTS), backbones["clip"].encode_text(TEXTS))


def _edit(path: Path, **changes) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: _edit(f / "config.json", model_type="siglip2"), "NaFlex.*fixed-resolution SigLIP 2"),
        (lambda f: _edit(f / "config.json", model_type="blip"), "'blip' is not supported; supported: clip, metaclip_2"),
        (lambda f: (f / "config.json").unlink(), "config.json: no such file"),
        (lambda f: (f / "config.json").write_text("{"), "not readable as JSON"),
        (lambda f: (f / "model.safetensors").unlink(), "no weights; expected model.safetensors"),
        (lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"), "pickle checkpoints are refused.*weights_only=True"),
        (lambda f: (f / "model.safetensors").write_bytes(b"\0" * 9), "the model cannot be loaded"),
        (lambda f: (f / "adapter_config.json").write_text("{}"), "an adapter of another model"),
        (lambda f: [p.unlink() for p in f.glob("*") if p.name.startswith(("token", "vocab", "merges"))], "no tokenizer: it needs tokenizer.json"),
        (lambda f: [(f / name).unlink() for name in ("tokenizer.json", "merges.txt")], "no tokenizer: it needs tokenizer.json"),
        (lambda f: (f / "tokenizer.json").write_text("{}"), "its tokenizer cannot be loaded"),
        (lambda f: (f / "preprocessor_config.json").unlink(), "its image processor cannot be loaded"),
        (lambda f: _edit(f / "preprocessor_config.json", do_resize=False), "preprocessor do_resize is False"),
        (lambda f: _edit(f / "preprocessor_config.json", do_center_crop=False), "preprocessor size is .*shortest_edge with a centre crop"),
        (lambda f: _edit(f / "preprocessor_config.json", resample=1), "preprocessor resample is .*bicubic"),
        (
            lambda f: _edit(f / "preprocessor_config.json", crop_size={"height": 40, "width": 40}),
            "makes 40 pixels and vision_config.image_size is 48",
        ),
    ],
)
def test_what_cannot_be_used_is_refused_with_the_remedy(folders, tmp_path, change, message):
    folder = shutil.copytree(folders["clip"], tmp_path / "model")
    change(folder)
    with pytest.raises(UserError, match=message):
        load_backbone(f"transformers:{folder}")


def test_a_vision_model_alone_is_refused(folders, theirs, tmp_path):
    folder = shutil.copytree(folders["clip"], tmp_path / "half")
    model = their_model(folders["clip"])
    state = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("text_model.encoder")}
    model.save_pretrained(folder, state_dict=state)
    with pytest.raises(UserError, match=r"the weights lack text_model.encoder.* give a whole CLIPModel"):
        load_backbone(f"transformers:{folder}")


def test_an_unknown_folder_is_named():
    with pytest.raises(UserError, match=r"no such folder.*or ORG/REPO"):
        load_backbone("transformers:./nowhere")

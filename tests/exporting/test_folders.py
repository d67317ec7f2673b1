"""Folders in the layout of open_clip and of transformers answer through these libraries as the run does."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import open_clip
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

import finelens
from finelens import api
from finelens.backbones.registry import load_backbone
from finelens.errors import UserError
from finelens.exporting import open_clip_folder, transformers_folder, write
from finelens.exporting.heads import NotAHeadError, linear_head
from finelens.exporting.licences import licence_of
from finelens.runs.classifier import load_run
from tests.backbones.transformers_checkpoints import write_tiny
from tests.toy import CLASSES, QUIET, options_for, write_classes, write_photos


@pytest.fixture(scope="module")
def world(tmp_path_factory, tiny_vit) -> SimpleNamespace:
    """Runs on photographs, each made when it is first asked for."""
    parent = tmp_path_factory.mktemp("folders")
    photos, classes = write_photos(parent / "photos", per_class=2), write_classes(parent / "classes.txt")

    def run(method: str, backbone: str = f"local:{tiny_vit}") -> Path:
        out = parent / f"{method}-{Path(backbone).name}"
        if not out.exists():
            options = options_for(method, epochs=1, lr=1e-2)
            api.adapt(photos, classes, out, method=method, backbone=backbone, options=options, console=QUIET)
        return out

    return SimpleNamespace(run=run, parent=parent)


def asked(run: Path) -> tuple[Tensor, Tensor]:
    """Views that the export did not compare, and the run's probabilities."""
    classifier = load_run(run)
    side = classifier.backbone.preprocess.image_size
    views = torch.randint(0, 256, (5, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    return views, classifier(views).softmax(1)


def pixels(run: Path, views: Tensor) -> Tensor:
    return load_run(run).backbone.normalise(views)


@pytest.mark.parametrize("method", ["dpa", "gda-em"])
def test_open_clip_answers_as_the_run(method, world, tmp_path, tiny_vit):
    """dpa trains the image tower and unit class vectors; gda-em gives a head with biases. The text tower stays what it was."""
    run, out = world.run(method), tmp_path / "out"
    found = finelens.export(run, out, to="open_clip", console=QUIET)
    assert (found.images, found.equal) == (8, 8)
    assert found.files is not None
    assert found.files.equal == 8
    views, wanted = asked(run)
    model, _ = open_clip.create_model_from_pretrained(f"local-dir:{out}")
    head = load_file(out / "classifier.safetensors")
    with torch.no_grad():
        features = model.eval().encode_image(pixels(run, views), normalize=True)
        logits = model.logit_scale.exp() * features @ head["weight"] + head["bias"]
    assert torch.allclose(logits.softmax(1), wanted, atol=1e-4)
    assert head["weight"].shape == (48, len(CLASSES))
    told = json.loads((out / "classifier.json").read_text())
    assert told["class_names"] == list(CLASSES)
    assert (told["target"], told["licence"]) == ("open_clip", None)
    assert sorted(told["files"]) == ["classifier.safetensors", "open_clip_config.json", "open_clip_model.safetensors"]
    state, before = (load_file(folder / "open_clip_model.safetensors") for folder in (out, tiny_vit))
    moved = {name for name, tensor in before.items() if not torch.equal(tensor, state[name])}
    assert bool(moved) == (method == "dpa")
    assert all(name.startswith("visual.") for name in moved)
    assert all(torch.equal(state[name], tensor) for name, tensor in load_run(run).backbone.image_state().items())


@pytest.mark.parametrize(("method", "family"), [("dpa", None), ("gda-em", "siglip"), ("zero-shot", "align")])
def test_transformers_answers_as_the_run(method, family, world, tmp_path):
    """An open_clip ViT becomes a CLIPModel; a model of transformers stays what it was."""
    run = world.run(method) if family is None else world.run(method, f"transformers:{write_tiny(tmp_path / family, family)}")
    out = tmp_path / "out"
    found = finelens.export(run, out, to="transformers", console=QUIET)
    assert (found.images, found.equal) == (8, 8)
    assert found.files is not None
    assert found.files.largest < 1e-2
    views, wanted = asked(run)
    model = transformers.AutoModel.from_pretrained(out).eval()
    assert model.config.model_type == (family or "clip")
    assert model.config.id2label == dict(enumerate(CLASSES))
    head = load_file(out / "classifier.safetensors")
    with torch.no_grad():
        features = model.get_image_features(pixel_values=pixels(run, views)).pooler_output
    logits = torch.nn.functional.normalize(features, dim=-1) @ head["weight"].T + head["bias"]
    assert torch.allclose(logits.softmax(1), wanted, atol=1e-4)


def test_a_pipeline_that_answers_otherwise_is_found(world, tmp_path, monkeypatch):
    right = transformers_folder.their_names

    def wrong(theirs, own):
        found = right(theirs, own)
        return {name: tensor.flip(0) if "position_embedding" in name and len(tensor) == 77 else tensor for name, tensor in found.items()}

    monkeypatch.setattr(transformers_folder, "their_names", wrong)
    with pytest.raises(UserError, match="pipeline answers otherwise than the two towers"):
        finelens.export(world.run("dpa"), tmp_path / "out", to="transformers", console=QUIET)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("method", "reason"),
    [
        ("consensus", "it looks at the image tower's token as well"),
        ("zlap", "it is no linear function of the image feature"),
    ],
)
def test_a_head_that_is_not_linear_is_refused_by_name(method, reason, world, tmp_path):
    with pytest.raises(UserError, match=f"the answer of method {method} is none: {reason}"):
        finelens.export(world.run(method), tmp_path / "out", to="open_clip", console=QUIET)
    assert not list(tmp_path.iterdir())


def test_towers_that_a_world_does_not_have_are_refused_by_name(tiny_resnet):
    resnet = load_backbone(f"local:{tiny_resnet}")
    with pytest.raises(UserError, match=r"--to transformers cannot hold the image tower of local:.*, of kind open_clip_resnet"):
        transformers_folder.refuse(resnet)
    open_clip_folder.refuse(resnet)
    for to, target in (("open_clip", open_clip_folder), ("transformers", transformers_folder)):
        with pytest.raises(UserError, match=f"--to {to} cannot hold the backbone embedded: it is a convolutional network"):
            target.refuse(SimpleNamespace(name="embedded"))


def test_what_the_source_forbids_is_said_and_a_source_that_changed_or_went_is_refused(world, tmp_path, tiny_vit, capsys):
    folder = shutil.copytree(tiny_vit, tmp_path / "clip-refine")
    run, out = world.run("zero-shot", f"local:{folder}"), tmp_path / "out"
    finelens.export(run, out, to="open_clip")
    assert "clip-refine by its name stands under software licence agreement for evaluation (NTT), which rules out" in capsys.readouterr().err
    card = (out / "MODEL_CARD.md").read_text()
    assert (run / "MODEL_CARD.md").read_text() in card
    assert "**Warning:** that licence rules out anything but evaluation" in card
    assert json.loads((out / "classifier.json").read_text())["licence"]["source"].startswith("github.com/yshinya6/clip-refine")
    state = load_file(folder / "open_clip_model.safetensors")
    save_file({**state, "visual.conv1.weight": state["visual.conv1.weight"] + 1}, folder / "open_clip_model.safetensors")
    with pytest.raises(UserError, match=r"no longer the model that the run started from \(visual.conv1.weight differs\)"):
        finelens.export(run, out, to="open_clip", overwrite=True, console=QUIET)
    shutil.rmtree(folder)
    with pytest.raises(UserError, match="no such folder"):
        finelens.export(run, out, to="open_clip", overwrite=True, console=QUIET)
    # What was there stays.
    assert (out / "open_clip_model.safetensors").is_file()


def test_an_exported_folder_is_replaced_only_if_it_holds_nothing_else(tmp_path):
    (tmp_path / "classifier.json").write_text(json.dumps({"files": ["open_clip_config.json"]}))
    (tmp_path / "open_clip_config.json").touch()
    write._check_folder(tmp_path, overwrite=True)
    (tmp_path / "mine.txt").touch()
    with pytest.raises(UserError, match=r"exists; give a new folder$"):
        write._check_folder(tmp_path, overwrite=True)


def test_the_read_off_head_is_the_methods_own(world):
    model = load_run(world.run("zero-shot")).model
    head = linear_head(model, torch.zeros(0, 48))
    task, scale = model.task, model.engine.backbone.logit_scale
    assert torch.allclose(head.weight, scale * task.head / model.temperature, rtol=1e-4, atol=1e-4)
    assert head.bias.abs().max() < 1e-4
    with pytest.raises(NotAHeadError, match="differs by"):
        linear_head(load_run(world.run("zlap")).model, torch.zeros(0, 48))


@pytest.mark.parametrize(
    ("backbone", "name", "forbids"),
    [
        ("open_clip:MobileCLIP2-B/dfndr2b", "apple-amlr", "research"),
        ("open_clip:ViT-B-16/dfn2b", "apple-amlr", "research"),
        ("hf-hub:apple/MobileCLIP-S1-OpenCLIP@" + "a" * 40, "apple-amlr", "research"),
        ("local:/models/clip-refine-b32", "NTT", "evaluation"),
        ("open_clip:ViT-B-32/metaclip_400m", "CC BY-NC 4.0", "commercial"),
        ("open_clip:ViT-B-32/openai", "MIT", ""),
        ("open_clip:ViT-B-16/datacomp_xl_s13b_b90k", "MIT", ""),
        ("open_clip:ViT-B-16-SigLIP2/webli", "Apache-2.0", ""),
        ("embedded", "Apache-2.0", ""),
    ],
)
def test_licences_by_name(backbone, name, forbids):
    licence = licence_of(backbone)
    assert licence is not None
    assert name in licence.name
    assert forbids in licence.forbids
    assert bool(forbids) == bool(licence.forbids)


def test_a_folder_of_ones_own_has_no_licence_that_is_known():
    assert licence_of("local:/models/openai") is None
    assert licence_of("transformers:/models/laion/b32") is None

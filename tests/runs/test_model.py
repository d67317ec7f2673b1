"""A model folder: everything comes back, and what does not fit is refused in words."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from finelens.core.schemas import SCHEMA_VERSION
from finelens.engine.device import choose_device
from finelens.errors import UserError
from finelens.runs.model import Model, adapted_tensors, load_model, save_model
from tests.toy import CLASSES, fit_toy, pictures, quick


@pytest.fixture(scope="module")
def model(tiny_vit) -> Model:
    return fit_toy(tiny_vit, "microclip", pictures(), options=quick())[1].model


@pytest.fixture
def folder(model, tmp_path):
    save_model(tmp_path / "model", model)
    return tmp_path / "model"


def without_digests(folder):
    """As models were written before they had digests: what does not fit is refused all the same."""
    document = json.loads((folder / "model.json").read_text())
    del document["sha256"]
    (folder / "model.json").write_text(json.dumps(document))
    return folder


def views(count: int = 3) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, 64, 64), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


def test_everything_comes_back(model, folder):
    again = load_model(folder)
    assert (again.class_names, again.method, again.training) == (CLASSES, "microclip", model.training)
    assert again.method_options == model.method_options
    assert again.base.keys() == model.base.keys()
    assert again.engine.backbone.image_config() == model.engine.backbone.image_config()
    with torch.no_grad():
        for branch, logits in model.logits(views()).items():
            assert torch.equal(again.logits(views())[branch], logits)
    assert all(not p.requires_grad for p in again.engine.backbone.parameters())


def test_a_copy_of_the_folder_is_a_model(folder, tmp_path, monkeypatch):
    """No path of the training machine, no text tower and no network is needed."""
    shutil.copytree(folder, tmp_path / "elsewhere")
    shutil.rmtree(folder)
    monkeypatch.setattr("finelens.backbones.registry.load_backbone", lambda spec: pytest.fail(spec))
    assert load_model(tmp_path / "elsewhere").logits(views())["logits"].shape == (3, 4)


def test_saving_twice_gives_the_same_bytes(model, folder, tmp_path):
    save_model(tmp_path / "again", model)
    save_model(tmp_path / "reloaded", load_model(folder))
    for file in ("model.json", "model.safetensors", "zero_shot.safetensors"):
        assert (tmp_path / "again" / file).read_bytes() == (folder / file).read_bytes()
        assert (tmp_path / "reloaded" / file).read_bytes() == (folder / file).read_bytes()


def test_unadapted_model_is_restored_and_put_back(model):
    adapted = {name: tensor.detach().clone() for name, tensor in adapted_tensors(model.engine.backbone, "norm").items()}
    before, zero_shot = model.logits(views()), model.zero_shot_logits(views())
    assert any(not torch.equal(adapted[name], model.base[name]) for name in adapted)
    assert all(torch.equal(tensor, adapted[name]) for name, tensor in adapted_tensors(model.engine.backbone, "norm").items())
    assert torch.equal(before["logits"], model.logits(views())["logits"])
    assert set(zero_shot) == {"templates", "descriptions"}


def test_unadapted_model_is_put_back_after_an_error(model, monkeypatch):
    before = model.logits(views())["logits"]
    with monkeypatch.context() as patch:
        patch.setattr(model.engine, "encode_frozen", lambda images: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            model.zero_shot_logits(views())
    assert torch.equal(model.logits(views())["logits"], before)


def test_no_memory_of_training_is_saved(folder):
    names = set(load_file(folder / "model.safetensors"))
    assert not {name for name in names if "posteriors" in name or "optimizer" in name or "log_marginal" in name}
    assert {"task.head", "task.frozen_head", "task.soap.query"} <= names


def test_unfinished(tmp_path):
    with pytest.raises(UserError, match="the run is not finished"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format": "other"}, "not the description of a finelens model"),
        ({"schema_version": SCHEMA_VERSION + 1}, "written by a newer finelens"),
        ({"method": "microclop"}, "did you mean microclip"),
        ({"class_names": ["cat"]}, "do not fit together"),
        ({"method_options": {"gama": 1}}, "did you mean method.gamma"),
        ({"training": {"epochs": "many"}}, "training.epochs"),
        ({"backbone": {"kind": "unheard-of"}}, "unknown kind 'unheard-of'"),
        ({"class_names": None}, "do not fit together"),
        ({"backbone": {}}, "unknown kind None"),
        ({"backbone": []}, "do not fit together"),
    ],
)
def test_description_that_does_not_fit(folder, change, words):
    document = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps({**document, **change}))
    with pytest.raises(UserError, match=words):
        load_model(folder)


@pytest.mark.parametrize("content", ["[1, 2]", "{", "null"])
def test_description_that_is_no_object(folder, content):
    (folder / "model.json").write_text(content)
    with pytest.raises(UserError, match=r"model\.json"):
        load_model(folder)


@pytest.mark.parametrize("key", ["class_names", "backbone", "training", "method_options", "method"])
def test_description_that_lacks_a_key(folder, key):
    document = json.loads((folder / "model.json").read_text())
    del document[key]
    (folder / "model.json").write_text(json.dumps(document))
    with pytest.raises(UserError, match=f"do not fit together.*{key}"):
        load_model(folder)


@pytest.mark.parametrize("lost", ["task.head", "task.soap.value", "backbone.visual.ln_post.weight", "head.templates"])
def test_tensor_that_is_lost(folder, lost):
    path = folder / ("zero_shot.safetensors" if lost.startswith("head") else "model.safetensors")
    without_digests(folder)
    tensors = load_file(path)
    del tensors[lost]
    save_file(tensors, path)
    with pytest.raises(UserError, match=r"do(es)? not fit"):
        load_model(folder)


def test_base_that_is_lost(folder):
    without_digests(folder)
    tensors = load_file(folder / "zero_shot.safetensors")
    name = next(name for name in tensors if name.startswith("base."))
    del tensors[name]
    save_file(tensors, folder / "zero_shot.safetensors")
    with pytest.raises(UserError, match="do not fit"):
        load_model(folder)


def test_tensor_of_another_shape(folder):
    without_digests(folder)
    tensors = load_file(folder / "model.safetensors")
    save_file({**tensors, "task.head": torch.zeros(5, 48)}, folder / "model.safetensors")
    with pytest.raises(UserError, match="do not fit together"):
        load_model(folder)


@pytest.mark.parametrize("file", ["model.safetensors", "zero_shot.safetensors"])
def test_weights_that_are_not_the_model_s_own(folder, file):
    """One bit of one number: a valid file, and another model."""
    load_model(without_digests(shutil.copytree(folder, folder.parent / "before")))
    data = bytearray((folder / file).read_bytes())
    data[-1] ^= 1
    (folder / file).write_bytes(data)
    with pytest.raises(UserError, match=rf"{file} is not the file that model.json names \(SHA-256 differs\)"):
        load_model(folder)


@pytest.mark.parametrize("digests", [None, [], {"model.safetensors": 3}])
def test_digests_that_are_none(folder, digests):
    document = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps({**document, "sha256": digests}))
    with pytest.raises(UserError):
        load_model(folder)


@pytest.mark.parametrize("file", ["model.safetensors", "zero_shot.safetensors"])
def test_weights_that_are_lost_or_cut(folder, file):
    data = (folder / file).read_bytes()
    (folder / file).write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match=file):
        load_model(folder)
    (folder / file).unlink()
    with pytest.raises(UserError, match=file):
        load_model(folder)


def test_devices():
    assert choose_device("cpu") == torch.device("cpu")
    with pytest.raises(UserError, match="unknown device 'gpu'"):
        choose_device("gpu")
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="use --device cpu"):
            choose_device("cuda:0")
    for name in ("meta", "xpu", f"cuda:{torch.cuda.device_count()}", ""):
        with pytest.raises(UserError, match=f"device '{name}'"):
            choose_device(name)


def test_what_the_fit_looks_like_comes_back_and_models_of_before_have_none(model, folder):
    again = load_model(folder)
    assert torch.equal(again.familiarity.bank, model.familiarity.bank)
    assert torch.equal(again.familiarity.levels, model.familiarity.levels)
    kept = {name: tensor for name, tensor in load_file(folder / "zero_shot.safetensors").items() if not name.startswith("seen.")}
    save_file(kept, folder / "zero_shot.safetensors")
    assert load_model(without_digests(folder)).familiarity is None

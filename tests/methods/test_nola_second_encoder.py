"""The second encoder of NoLA, whose features the labelling network learns from."""

from __future__ import annotations

import pytest
import timm
import torch
from safetensors.torch import save_file

from finelens import api
from finelens.backbones.embedded import EmbeddedBackbone
from finelens.backbones.image_encoders import ImageEncoder
from finelens.backbones.registry import load_encoder
from finelens.core.options import from_mapping, to_plain
from finelens.engine.engine import Engine
from finelens.errors import UserError
from finelens.images.batches import centre_batches
from finelens.methods import nola
from finelens.methods.nola.config import NolaConfig
from finelens.methods.nola.second_encoder import second_features
from finelens.methods.nola.task import Nola
from finelens.protocol import TargetFeatures
from finelens.training.config import TrainingConfig
from finelens.training.loop import Interrupted
from tests.methods.nola_world import B, C, P
from tests.methods.tiny import FLOAT32, Pictures, random_batch, random_heads, separating_rows, target_features, without_texts
from tests.toy import QUIET, digest, quick, stop_after

TIMM = "test_vit"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Random weights of a tiny timm model, its classifier included, as a hub would serve them."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = timm.create_model(TIMM, pretrained=False)
    path = tmp_path_factory.mktemp("timm") / "model.safetensors"
    save_file(model.state_dict(), path)
    return path


def with_views(engine, pictures: Pictures) -> TargetFeatures:
    features = target_features(engine, pictures)
    return TargetFeatures(features.global_, features.cls, views=lambda preprocess: (v for _, v in centre_batches(pictures, preprocess, 4)))


def test_timm_features_are_timms_own(engine, checkpoint):
    pictures = Pictures(7)
    config = NolaConfig(second_encoder=f"timm:{TIMM}", second_checkpoint=str(checkpoint))
    assert config.second_spec == f"timm:{TIMM}@{checkpoint}"
    features = with_views(engine, pictures)
    before = engine.no_grad_forwards
    got = second_features(config.second_spec, engine, features)
    model = timm.create_model(TIMM, pretrained=False, checkpoint_path=str(checkpoint)).eval()
    model.reset_classifier(0)
    data = timm.data.resolve_model_data_config(model)
    preprocess = load_encoder(config.second_spec).preprocess
    assert (preprocess.image_size, preprocess.mean) == (data["input_size"][1], tuple(data["mean"]))
    views = torch.cat([v for _, v in centre_batches(pictures, preprocess, 4)])
    mean, std = (torch.tensor(data[key])[:, None, None] for key in ("mean", "std"))
    with torch.no_grad():
        torch.testing.assert_close(got, model((views / 255 - mean) / std))
    assert got.shape == (7, model.num_features)
    assert engine.no_grad_forwards == before


def test_every_image_passes_the_second_encoder_once(engine, checkpoint, monkeypatch):
    seen, own = [], ImageEncoder.encode_image
    monkeypatch.setattr(ImageEncoder, "encode_image", lambda self, images, **given: seen.append(len(images)) or own(self, images, **given))
    config = NolaConfig(prompts=P, second_encoder=f"timm:{TIMM}", second_checkpoint=str(checkpoint))
    task = Nola(engine, separating_rows(engine, random_batch(B, 0), C), config)
    task.prepare(with_views(engine, Pictures(7)))
    assert sum(seen) == 7
    assert task.posteriors.shape == (7, C)
    assert task.labeller.hidden_weight.shape == (256, 64)


def test_a_folder_of_open_clips_serves_as_second_encoder(engine, tiny_resnet):
    pictures = Pictures(5)
    features = second_features(f"local:{tiny_resnet}", engine, with_views(engine, pictures))
    assert features.shape == (5, 256)
    assert features.isfinite().all()


def test_the_embedded_tower_serves_as_second_encoder_of_another(engine):
    pictures = Pictures(3)
    got = second_features("embedded", engine, with_views(engine, pictures))
    own = EmbeddedBackbone()
    views = torch.cat([v for _, v in centre_batches(pictures, own.preprocess, 4)])
    torch.testing.assert_close(got, Engine(own, engine.device, engine.precision).encode_frozen(views).cls)


def test_the_embedded_tower_beside_itself_is_itself():
    engine = Engine(EmbeddedBackbone(text=False), torch.device("cpu"), FLOAT32)
    features = TargetFeatures(torch.zeros(2, 4), torch.ones(2, 4))
    assert second_features("embedded", engine, features) is features.cls
    assert engine.no_grad_forwards == 0


def test_self_is_the_unadapted_towers_pooled_token(engine):
    features = target_features(engine, Pictures(3))
    assert second_features("self", engine, features) is features.cls


def test_a_run_with_a_second_encoder_resumes_and_needs_it_no_more_to_predict(tiny_vit, checkpoint, photos, classes, tmp_path):
    own = tmp_path / "second.safetensors"
    own.write_bytes(checkpoint.read_bytes())
    method = {"second_encoder": f"timm:{TIMM}", "second_checkpoint": str(own), "stop": "agreement", "patience": 1}
    given = {"backbone": f"local:{tiny_vit}", "method": "nola", "options": {**quick(epochs=3), "method": method}, "console": QUIET}
    api.adapt(photos, classes, tmp_path / "whole", **given)

    with pytest.raises(Interrupted):
        api.adapt(photos, classes, tmp_path / "broken", **given, should_stop=stop_after(2))
    api.resume(tmp_path / "broken", console=QUIET)
    for file in ("model/model.safetensors", "predictions.csv"):
        assert digest(tmp_path / "whole" / file) == digest(tmp_path / "broken" / file), file
    own.unlink()
    assert api.load_run(tmp_path / "whole").predict_proba(photos).shape == (24, 4)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"second_encoder": "timm:test_vitt", "second_checkpoint": "x"}, "nearest: test_vit"),
        ({"second_encoder": f"timm:{TIMM}", "second_checkpoint": "missing.safetensors"}, "no weights; expected .*missing.safetensors"),
        ({"second_encoder": "local:missing"}, "no such folder"),
    ],
)
def test_a_second_encoder_that_is_not_there_is_refused_before_the_work(engine, options, words):
    with pytest.raises(UserError, match=words):
        nola.build(engine, random_heads(C), NolaConfig(**options), TrainingConfig(), 0)
    # A saved model asks for none.
    nola.build(engine, without_texts(random_heads(C)), NolaConfig(**options), TrainingConfig(), 0)


def test_weights_of_another_model_are_refused(engine, checkpoint):
    with pytest.raises(UserError, match=r"does not fit the model: Missing key"):
        second_features(f"timm:test_resnet@{checkpoint}", engine, with_views(engine, Pictures(3)))


def test_paths_are_made_absolute_and_read_back(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = NolaConfig(second_encoder="timm:test_vit", second_checkpoint="a.safetensors")
    assert config.second_checkpoint == str(tmp_path / "a.safetensors")
    assert NolaConfig(second_encoder="timm:test_vit@a.safetensors").second_spec == config.second_spec
    assert NolaConfig(second_encoder="local:d").second_encoder == f"local:{tmp_path / 'd'}"
    monkeypatch.chdir("/")
    assert from_mapping(NolaConfig, to_plain(config), "method") == config

"""Views that answers rest on: encoded once, the same bits from the cache and without, and what they take on the disk."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import finelens
from finelens.core.console import Console
from finelens.feature_store.encoder import FeatureEncoder
from finelens.images.decode import DecodeLimits
from finelens.images.load import load
from finelens.protocol import InferenceViews
from finelens.runs.predict import predict_store
from finelens.storage import rows as module
from finelens.storage.cache_place import LIMIT_VARIABLE, cache_folder
from tests.methods.tiny import Pictures, tiny_engine
from tests.toy import QUIET, fit_toy, forwards, pictures

VIEWS = {"wca": {"crops": 3}, "mta": {"views": 4}, "zero": {"views": 4}}


def options(method: str):
    return {"training": {"precision": "float32"}, "method": VIEWS[method]}


def shards() -> list[Path]:
    return sorted((cache_folder() / "features").glob("*/*.safetensors"))


def run(tmp_path: Path, name: str, photos, classes, backbone, method: str) -> tuple[int, bytes]:
    finelens.zero_shot(photos, classes, tmp_path / name, method=method, backbone=f"local:{backbone}", options=options(method), console=QUIET)
    return forwards(tmp_path / name)[0], (tmp_path / name / "predictions.csv").read_bytes()


@pytest.mark.parametrize("method", VIEWS)
def test_a_second_run_encodes_nothing(tmp_path, photos, classes, backbone, method):
    first = run(tmp_path, "a", photos, classes, backbone, method)
    assert first[0] == 24 * 4
    assert run(tmp_path, "b", photos, classes, backbone, method) == (0, first[1])
    classifier = finelens.load(tmp_path / "a")
    finelens.predict(tmp_path / "a", photos, tmp_path / "new.csv", console=QUIET)
    assert (tmp_path / "new.csv").read_bytes() == first[1]
    assert len(classifier.predict_proba(photos)) == 24
    assert classifier.model.engine.no_grad_forwards == 0


def test_crops_of_a_feature_file_are_those_of_wca(tmp_path, photos, classes, backbone):
    finelens.features(photos, tmp_path / "F.safetensors", backbone=f"local:{backbone}", crops=3, console=QUIET)
    finelens.zero_shot(photos, classes, tmp_path / "a", method="wca", backbone=f"local:{backbone}", options={"method": VIEWS["wca"]}, console=QUIET)
    assert forwards(tmp_path / "a")[0] == 0
    finelens.features(photos, tmp_path / "G.safetensors", backbone=f"local:{backbone}", crops=3, console=QUIET)
    assert (tmp_path / "G.safetensors").read_bytes() == (tmp_path / "F.safetensors").read_bytes()


def test_methods_on_the_same_views_share_them(tmp_path, photos, classes, backbone):
    assert run(tmp_path, "a", photos, classes, backbone, "mta")[0] == 24 * 4
    assert run(tmp_path, "b", photos, classes, backbone, "zero")[0] == 0


@pytest.mark.parametrize("method", VIEWS)
def test_answers_have_the_same_bits_with_and_without_the_cache(monkeypatch, tiny_vit, method):
    images = pictures(2)
    _, fitted, _ = fit_toy(tiny_vit, method, images, options=options(method))
    model, store = fitted.model, load(images, DecodeLimits(), QUIET).store
    encoder = FeatureEncoder(model.engine, DecodeLimits().short_side)
    some = load(images[3:5], DecodeLimits(), QUIET).store
    predict_store(model, some, QUIET, encoder=encoder)
    half = predict_store(model, store, QUIET, encoder=encoder)["logits"]
    full = predict_store(model, store, QUIET, encoder=encoder)["logits"]
    pixels = predict_store(model, store, QUIET)["logits"]
    monkeypatch.setenv(LIMIT_VARIABLE, "0")
    none = predict_store(model, store, QUIET, encoder=FeatureEncoder(model.engine, DecodeLimits().short_side))["logits"]
    for other in (full, pixels, none):
        assert torch.equal(half, other)


PLAN = InferenceViews(3)


def stream(engine, plan=PLAN) -> torch.Tensor:
    rows = {}
    for positions, values in FeatureEncoder(engine, 448).stream_inference(Pictures(5), plan, QUIET):
        rows.update({position: values["global"][i] for i, position in enumerate(positions)})
    return torch.stack([rows[i] for i in range(5)])


@pytest.mark.parametrize("kind", ["crops", "resized"])
def test_views_are_of_the_plan_and_damaged_rows_are_computed_again(tiny_vit, kind):
    engine = tiny_engine(tiny_vit)
    first = stream(engine, InferenceViews(3, kind))
    assert first.shape == (5, 3, 48)
    (shard,) = shards()
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(bytes(data))
    assert torch.equal(stream(engine, InferenceViews(3, kind)), first)
    assert engine.no_grad_forwards == 15 + 3
    stream(engine, InferenceViews(3, kind, 0.6))
    assert engine.no_grad_forwards == 2 * 15 + 3


def test_an_interrupted_pass_goes_on(monkeypatch, tiny_vit):
    monkeypatch.setattr(module, "SHARD_ROWS", 1)
    engine = tiny_engine(tiny_vit)
    plan = InferenceViews(120, "resized")
    found = FeatureEncoder(engine, 448).stream_inference(Pictures(5), plan, QUIET)
    positions, _ = next(found)
    # Killed here: nothing is closed, but whole shards stay.
    positions += next(found)[0]
    before = engine.no_grad_forwards
    stream(engine, plan)
    assert engine.no_grad_forwards - before <= 120 * (5 - len(positions) + 1)
    assert engine.no_grad_forwards - before < 120 * 5
    found.close()


def test_the_disk_space_is_said_beforehand(monkeypatch, tiny_vit, capsys):
    engine = tiny_engine(tiny_vit)
    encoder, backbone = FeatureEncoder(engine, 448), engine.backbone
    assert encoder.views_size(5, 3) == 5 * 3 * 4 * (backbone.dim + backbone.width)
    encoder.say_size(50_000_000, 3, Console())
    assert "more than the cache may take (FINELENS_CACHE_GB=20), so not all are kept" in capsys.readouterr().err
    encoder.say_size(5, 3, Console())
    assert (
        capsys.readouterr().err
        == f"3 views of 5 images: {encoder.views_size(5, 3) / 1e9:.2g} GB in the cache at most (FINELENS_CACHE_GB=0 keeps none)\n"
    )
    monkeypatch.setenv(LIMIT_VARIABLE, str(encoder.views_size(5, 3) / 2e9))
    stream(engine)
    assert shards() == []
    monkeypatch.setenv(LIMIT_VARIABLE, "0")
    encoder.say_size(5, 3, Console())
    assert capsys.readouterr().err == ""

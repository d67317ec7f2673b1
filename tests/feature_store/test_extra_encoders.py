"""Second encoders from a name: encoded and cached like the first, when the run is made and when it is asked about new photographs."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image

import finelens
from finelens.backbones import image_encoders
from finelens.backbones.registry import load_encoder
from finelens.cli import main
from finelens.errors import UserError
from finelens.feature_store.extra_towers import Beside
from finelens.feature_store.files import read_features
from finelens.images.discover import discover
from finelens.images.load import decode_limits
from finelens.images.store import load_images
from finelens.images.view_config import ViewConfig
from finelens.images.views import centre_view
from finelens.runs.sources import source_at
from finelens.solvers import JointGmm
from finelens.storage.predictions import read_predictions
from tests.backbones.encoder_checkpoints import write_dino, write_timm
from tests.toy import CLASSES, QUIET, picture, write_photos


@pytest.fixture(scope="module")
def world(tmp_path_factory, tiny_vit) -> Path:
    """24 pictures, others, the weights of a timm model, and a run on both."""
    folder = tmp_path_factory.mktemp("encoders")
    write_photos(folder / "photos")
    (folder / "other").mkdir()
    for kind in range(4):
        Image.fromarray(picture(kind, 77)).save(folder / f"other/{kind}.png")
    (folder / "classes.txt").write_text("\n".join(CLASSES) + "\n")
    write_timm(folder / "second.safetensors", "test_vit")
    adapt(folder, folder / "run", tiny_vit)
    return folder


def adapt(folder: Path, out: Path, tiny_vit: Path, **given: object) -> None:
    settings = {"method": "joint-gmm", "backbone": f"local:{tiny_vit}", "console": QUIET, "extra_encoders": [spec(folder)], **given}
    finelens.adapt(folder / "photos", folder / "classes.txt", out, **settings)


def spec(folder: Path) -> str:
    return f"timm:test_vit@{folder / 'second.safetensors'}"


def probabilities(path: Path) -> list[float | None]:
    return [row.probability for row in read_predictions(path)]


@pytest.fixture
def encoded(monkeypatch) -> list[int]:
    """Images that further encoders are given, call by call."""
    counts: list[int] = []
    own = image_encoders.ImageEncoder.encode_image

    def counting(self, images, **given):
        counts.append(len(images))
        return own(self, images, **given)

    monkeypatch.setattr(image_encoders.ImageEncoder, "encode_image", counting)
    return counts


def test_it_is_a_feature_file_made_by_hand(world, tmp_path, tiny_vit):
    """The library's own features of the same views, in a file: the same answers."""
    encoder = load_encoder(spec(world))
    model = timm.create_model("test_vit", pretrained=True, num_classes=0, pretrained_cfg_overlay={"file": str(world / "second.safetensors")}).eval()
    loaded = load_images(discover(world / "photos"), decode_limits(ViewConfig(), encoder.preprocess))
    views = torch.stack([centre_view(loaded.store[record.index], encoder.preprocess) for record in loaded.records])
    with torch.no_grad():
        rows = model((views / 255 - 0.5) / 0.5)
    np.save(tmp_path / "second.npy", rows.numpy())
    (tmp_path / "names.txt").write_text("\n".join(record.name for record in loaded.records) + "\n")
    adapt(world, tmp_path / "run", tiny_vit, extra_encoders=(), extra=[tmp_path / "second.npy"], extra_names=[tmp_path / "names.txt"])
    np.testing.assert_allclose(probabilities(tmp_path / "run/predictions.csv"), probabilities(world / "run/predictions.csv"), atol=1e-4)
    adapt(world, tmp_path / "alone", tiny_vit, extra_encoders=())
    assert not np.allclose(probabilities(tmp_path / "alone/predictions.csv"), probabilities(world / "run/predictions.csv"), atol=1e-3)


def test_the_run_says_what_it_looked_at(world):
    (encoder,) = json.loads((world / "run/model/model.json").read_text())["extra"]
    assert (encoder["width"], encoder["backbone"], encoder["encodes"]) == (64, spec(world), True)
    assert len(encoder["tower"]) == 64
    assert json.loads((world / "run/config.json").read_text())["method_options"]["extra"] == [spec(world)]


def test_photographs_are_encoded_once(world, tmp_path, tiny_vit, encoded):
    for name in ("again", "third"):
        adapt(world, tmp_path / name, tiny_vit)
        # 24 photographs in full chunks.
        assert sum(encoded) == 32
    assert (tmp_path / "again/predictions.csv").read_bytes() == (world / "run/predictions.csv").read_bytes()
    finelens.predict(world / "run", world / "other", tmp_path / "new.csv", console=QUIET)
    assert sum(encoded) == 48
    finelens.predict(world / "run", world / "other", tmp_path / "twice.csv", console=QUIET)
    assert sum(encoded) == 48
    assert (tmp_path / "new.csv").read_bytes() == (tmp_path / "twice.csv").read_bytes()


def test_new_photographs_get_the_answers_of_the_solver(world, tiny_vit, tmp_path):
    classifier = finelens.load(world / "run")
    model = classifier.model
    model.temperature = 1.0
    views = {}
    for name in ("photos", "other"):
        finelens.features(world / name, tmp_path / f"{name}.safetensors", backbone=f"local:{tiny_vit}", console=QUIET)
        first = read_features(tmp_path / f"{name}.safetensors").store.features.global_
        loaded = source_at(world / name).load(classifier.limits, QUIET)
        views[name] = [first, *classifier.extra.of(loaded, Beside(model.engine, classifier.limits.short_side)).features]
    solver = JointGmm().fit(views["photos"], prototypes=model.zero_shot_heads["descriptions"], logit_scale=model.engine.backbone.logit_scale)
    found = classifier.predictions(world / "other").logits["logits"].softmax(1)
    torch.testing.assert_close(found, solver.predict_proba(views["other"]), atol=1e-4, rtol=0)


def test_the_command_the_estimator_and_python_agree(world, tmp_path, tiny_vit):
    arguments = f"--classes {world}/classes.txt --out {tmp_path}/run --method joint-gmm --backbone local:{tiny_vit} --extra-encoder {spec(world)}"
    with pytest.raises(SystemExit) as stop:
        main(["adapt", str(world / "photos"), *arguments.split(), "--quiet"])
    assert not stop.value.code
    assert probabilities(tmp_path / "run/predictions.csv") == probabilities(world / "run/predictions.csv")
    estimator = finelens.LabelFreeClassifier(sorted(CLASSES), method="joint-gmm", backbone=f"local:{tiny_vit}", extra_encoders=[spec(world)])
    found, model = estimator.fit(world / "photos").predict_proba(world / "other"), finelens.load(world / "run")
    model.model.temperature = 1.0
    np.testing.assert_allclose(found, model.predict_proba(world / "other")[:, np.argsort(CLASSES)], atol=1e-4)


def test_a_classifier_travels_with_the_name_of_its_encoder(world):
    classifier = finelens.load(world / "run")
    expected = classifier.predict_proba(world / "other")
    packed = pickle.dumps(classifier)
    np.testing.assert_array_equal(pickle.loads(packed).predict_proba(world / "other"), expected)


def test_weights_that_moved_or_changed(world, tmp_path, tiny_vit):
    write_timm(tmp_path / "second.safetensors", "test_vit")
    adapt(world, tmp_path / "run", tiny_vit, extra_encoders=[spec(tmp_path)])
    (tmp_path / "second.safetensors").rename(tmp_path / "moved.safetensors")
    with pytest.raises(UserError, match=r"no weights; expected .*second.safetensors"):
        finelens.predict(tmp_path / "run", world / "other", tmp_path / "new.csv", console=QUIET)
    moved = [f"timm:test_vit@{tmp_path / 'moved.safetensors'}"]
    rows = finelens.predict(tmp_path / "run", world / "other", tmp_path / "new.csv", extra_encoders=moved, console=QUIET)
    assert {row.status for row in rows} == {"ok"}
    found = finelens.evaluate(tmp_path / "run", world / "photos", "folders", extra_encoders=moved, console=QUIET)
    assert found["n"] == 24
    with pytest.raises(UserError, match="further encoder"):
        finelens.load(tmp_path / "run", extra_encoders=[*moved, *moved])
    write_timm(tmp_path / "second.safetensors", "test_vit", seed=1)
    with pytest.raises(UserError, match=r"its weights are not those that the run was made with; give those with --extra-encoder"):
        finelens.predict(tmp_path / "run", world / "other", tmp_path / "other.csv", console=QUIET)


def test_features_and_files_beside_it(world, tmp_path, tiny_vit):
    """A run on photographs with a file and an encoder; features in the place of photographs need a file for each."""
    write_dino(tmp_path / "dino", "Dinov2")
    for name in ("photos", "other"):
        finelens.features(world / name, tmp_path / f"{name}.safetensors", backbone=f"local:{tiny_vit}", console=QUIET)
    dino = f"transformers:{tmp_path / 'dino'}"
    adapt(world, tmp_path / "run", tiny_vit, extra=[tmp_path / "photos.safetensors"], extra_encoders=[dino])
    assert len(finelens.load(tmp_path / "run").model.extra) == 2
    finelens.predict(tmp_path / "run", world / "other", tmp_path / "new.csv", extra=[tmp_path / "other.safetensors"], console=QUIET)
    with pytest.raises(UserError, match="the run looks at features of 2 further encoders"):
        finelens.predict(tmp_path / "run", world / "other", tmp_path / "none.csv", console=QUIET)
    with pytest.raises(UserError, match="encodes photographs, and there are only features"):
        finelens.adapt(
            tmp_path / "photos.safetensors", world / "classes.txt", tmp_path / "no", method="joint-gmm", extra_encoders=[dino], console=QUIET
        )


def test_methods_that_take_none_say_so(world, tmp_path, tiny_vit):
    with pytest.raises(UserError, match=r"--extra-encoder has an effect with --method .*consensus only"):
        adapt(world, tmp_path / "run", tiny_vit, method="zero-shot")
    with pytest.raises(UserError, match="unknown encoder 'test_vit'"):
        adapt(world, tmp_path / "run", tiny_vit, extra_encoders=["test_vit"])

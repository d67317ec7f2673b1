"""The text tower is gone from memory while a run adapts, and nothing that comes after misses it."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest

import finelens
from finelens.backbones.registry import load_backbone
from finelens.methods.registry import METHODS
from finelens.protocol import NotAvailableError
from finelens.reporting import explain
from finelens.runs import source
from finelens.runs.folder import RunFolder
from finelens.training.loop import Interrupted
from tests.toy import CLASSES, QUIET, digest, hints_file, options_for, pictures, quick, stop_after

KEEPS = {"coop", "upl", "clip-svd"}


@pytest.fixture
def text_tensors(monkeypatch) -> list[weakref.ref]:
    """Weak references to the text tower, and to each of its parameters, of every backbone that a run opens."""
    found: list[weakref.ref] = []
    opened = source.load_backbone

    def recorded(*given):
        backbone = opened(*given)
        found.extend(weakref.ref(thing) for thing in (backbone.text, *backbone.text.parameters()))
        return backbone

    monkeypatch.setattr(source, "load_backbone", recorded)
    return found


def alive(references: list[weakref.ref]) -> int:
    gc.collect()
    return sum(reference() is not None for reference in references)


@pytest.mark.parametrize("method", ["microclip", "upl", "coop", "clip-svd"])
def test_it_is_gone_while_a_method_trains_that_needs_none(tiny_vit, photos, classes, tmp_path, text_tensors, method):
    left: list[int] = []

    def watch() -> bool:
        left.append(alive(text_tensors))
        return False

    hints = hints_file(method, tmp_path / "run", photos)
    options = options_for(method, epochs=1)
    finelens.adapt(
        photos, classes, tmp_path / "run", method=method, backbone=f"local:{tiny_vit}", options=options, console=QUIET, should_stop=watch, **hints
    )
    assert len(text_tensors) > 10
    assert set(left) == ({len(text_tensors)} if method in KEEPS else {0})


def test_methods_that_train_on_texts_say_so():
    for method in METHODS:
        if method.trains and method.training_defaults.get("scope") == "none":
            assert method.name in KEEPS


def test_an_interrupted_run_resumes_and_is_saved_whole(tiny_vit, photos, classes, tmp_path, text_tensors):
    given = {"method": "microclip", "backbone": f"local:{tiny_vit}", "options": quick(), "console": QUIET}
    whole = finelens.adapt(photos, classes, tmp_path / "whole", **given)
    with pytest.raises(Interrupted):
        finelens.adapt(photos, classes, tmp_path / "run", should_stop=stop_after(2), **given)
    finelens.resume(tmp_path / "run", console=QUIET)
    for name in ("model/model.safetensors", "predictions.csv"):
        assert digest(tmp_path / "run" / name) == digest(whole.path / name)
    assert alive(text_tensors) == 0
    # What encodes texts later loads a tower of its own.
    classifier = finelens.load(tmp_path / "run")
    image = next(photos.rglob("*.png"))
    said = explain.explain_image(RunFolder.open(tmp_path / "run"), classifier, image, QUIET)
    assert said.sides[0].sentences


def test_the_estimator_predicts_without_it(tiny_vit, text_tensors):
    model = finelens.LabelFreeClassifier(list(CLASSES), method="microclip", backbone=f"local:{tiny_vit}", options=quick(epochs=1))
    model.fit(pictures(2))
    assert alive(text_tensors) == 0
    assert np.isfinite(model.predict_proba(pictures(1))).all()


def test_what_a_released_backbone_says(tiny_vit):
    backbone = load_backbone(f"local:{tiny_vit}")
    backbone.release_text()
    with pytest.raises(NotAvailableError, match="load the original backbone to encode texts"):
        backbone.encode_text(["a bird"])


def test_the_embedded_backbone_loads_its_text_tower_again():
    backbone = load_backbone("embedded")
    before = backbone.encode_text(["a bird", "a dog"])
    reference = weakref.ref(backbone.text_tower)
    backbone.release_text()
    assert alive([reference]) == 0
    assert (backbone.encode_text(["a bird", "a dog"]) == before).all()

"""The explanation of one photograph: numbers against their definition, the page, and what is refused."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch

import finelens
from finelens import api
from finelens.backbones.registry import load_backbone
from finelens.classes.templates import DEFAULT_TEMPLATES, fill
from finelens.errors import UserError
from finelens.runs.encode import features
from finelens.storage.predictions import read_predictions
from tests.backbones.checkpoints import write_tiny_vit
from tests.reporting.html import Page
from tests.toy import CLASSES, QUIET, write_classes


@pytest.fixture(scope="module")
def image(plain_run):
    return plain_run.parent / "photos" / CLASSES[0] / "0.png"


@pytest.fixture(scope="module")
def found(plain_run, image, tmp_path_factory):
    return api.explain(plain_run, image, tmp_path_factory.mktemp("page") / "explain.html", console=QUIET)


def test_sides_are_the_two_likeliest_classes(plain_run, image, found):
    p = finelens.load(plain_run).predict_proba([str(image)])[0]
    order = (-p).argsort()[:2]
    assert [side.name for side in found.sides] == [CLASSES[c] for c in order]
    assert [side.probability for side in found.sides] == pytest.approx(p[order])


def test_sentences_are_filled_templates_with_their_cosines(image, plain_run, found, tiny_vit):
    assert not found.described
    side, backbone = found.sides[0], load_backbone(f"local:{tiny_vit}")
    assert {sentence for sentence, _ in side.sentences} == {fill(template, side.name) for template in DEFAULT_TEMPLATES}
    cosines = [cosine for _, cosine in side.sentences]
    assert cosines == sorted(cosines, reverse=True)
    with torch.no_grad():
        own = backbone.encode_image(backbone.normalise(found.view[None])).global_[0]
        expected = backbone.encode_text([sentence for sentence, _ in side.sentences]) @ own
    assert cosines == pytest.approx(expected.tolist(), abs=1e-4)


def test_neighbours_have_the_class_and_are_not_the_photograph_or_its_copy(plain_run, found):
    given = {row.path: row.label for row in read_predictions(plain_run / "predictions.csv")}
    shown = [(side.name, path) for side in found.sides for path, _ in side.nearest]
    assert shown
    assert all(given[path] == name for name, path in shown)
    assert not {f"{CLASSES[0]}/0.png", "copy.png"} & {path for _, path in shown}
    for side in found.sides:
        cosines = [cosine for _, cosine in side.nearest]
        assert cosines == sorted(cosines, reverse=True)


def test_maps_lie_on_the_grid_and_are_called_what_they_are(found):
    assert list(found.maps) == [f"patches most like the prototype of {side.name}" for side in found.sides]
    for grid in found.maps.values():
        assert grid.ndim == 2
        assert 0 <= grid.min() <= grid.max() <= 1


def test_method_with_maps_of_its_own_shows_them(trained_run):
    image = trained_run.parent / "photos" / CLASSES[1] / "0.png"
    assert set(api.explain(trained_run, image, console=QUIET).maps) == {"NCut mask", "SOAP attention"}


def test_page_is_whole_and_hostile_names_are_text(hostile_run, tmp_path):
    image = next((hostile_run.parent / "photos").glob("*/0.png"))
    api.explain(hostile_run, image, tmp_path / "explain.html", console=QUIET)
    page = Page((tmp_path / "explain.html").read_text(encoding="utf-8"))
    assert page.open == []
    tags = [tag for tag, _ in page.elements]
    assert tags.count("h1") == tags.count("main") == 1
    assert len(page.all("script")) == 1
    for picture in page.all("img"):
        assert picture["alt"]
        assert picture["src"].startswith("data:image/")
    for _, attributes in page.elements:
        assert not [name for name in attributes if name.startswith("on") or name == "style"]


def test_lines_say_it_on_the_console(found):
    lines = found.lines()
    assert found.sides[0].name in lines[0]
    assert sum(line.startswith("  like ") for line in lines) == sum(len(side.nearest) for side in found.sides)


def test_unreadable_images_unfinished_runs_and_foreign_targets_are_refused(plain_run, image, tmp_path):
    with pytest.raises(UserError, match="corrupt"):
        api.explain(plain_run, plain_run.parent / "photos" / "broken.jpg", console=QUIET)
    with pytest.raises(UserError, match=r"absent\.jpg"):
        api.explain(plain_run, tmp_path / "absent.jpg", console=QUIET)
    with pytest.raises(UserError):
        api.explain(tmp_path, image, console=QUIET)
    (tmp_path / "mine.html").write_text("mine")
    with pytest.raises(UserError, match=r"mine\.html"):
        api.explain(plain_run, image, tmp_path / "mine.html", console=QUIET)


@pytest.fixture(scope="module")
def feature_file(plain_run, tiny_vit, tmp_path_factory):
    out = tmp_path_factory.mktemp("features") / "f.safetensors"
    features(plain_run.parent / "photos", out=out, backbone=f"local:{tiny_vit}", console=QUIET)
    return out


def test_a_run_on_features_is_explained_as_one_on_the_photographs(plain_run, image, feature_file, tiny_vit, tmp_path):
    classes = write_classes(tmp_path / "classes.txt")
    for name, photos in (("features", feature_file), ("photos", plain_run.parent / "photos")):
        api.adapt(photos, classes, tmp_path / name, method="stata", backbone=f"local:{tiny_vit}" if name == "photos" else None, console=QUIET)
    ours, theirs = (api.explain(tmp_path / name, image, tmp_path / f"{name}.html", console=QUIET) for name in ("features", "photos"))
    assert [side.name for side in ours.sides] == [side.name for side in theirs.sides]
    for own, other in zip(ours.sides, theirs.sides, strict=True):
        assert own.sentences == other.sentences
        assert [path for path, _ in own.nearest] == [path for path, _ in other.nearest]
        assert [cosine for _, cosine in own.nearest] == pytest.approx([cosine for _, cosine in other.nearest], abs=1e-5)
    assert any(side.nearest for side in ours.sides)
    assert "no picture" in (tmp_path / "features.html").read_text()


def test_a_feature_file_of_another_model_shows_no_neighbours(plain_run, image, feature_file, tiny_vit, tmp_path):
    own = shutil.copy(feature_file, tmp_path / "f.safetensors")
    api.adapt(own, write_classes(tmp_path / "classes.txt"), tmp_path / "run", method="stata", console=QUIET)
    write_tiny_vit(tmp_path / "other", seed=5)
    features(plain_run.parent / "photos", out=own, backbone=f"local:{tmp_path / 'other'}", overwrite=True, console=QUIET)
    found = api.explain(tmp_path / "run", image, tmp_path / "page.html", console=QUIET)
    assert [side.nearest for side in found.sides] == [None, None]
    assert sum("photographs of the run are not shown" in line for line in found.lines()) == 2
    assert "was given this class" not in (tmp_path / "page.html").read_text()


def test_a_run_with_prototypes_has_neighbours_and_no_texts(plain_run, image, tiny_vit, tmp_path):
    model = finelens.load(plain_run).model
    np.save(tmp_path / "prototypes.npy", model.zero_shot_heads["templates"].cpu().numpy())
    classes = write_classes(tmp_path / "classes.txt")
    given = {"method": "stata", "backbone": f"local:{tiny_vit}", "prototypes": tmp_path / "prototypes.npy"}
    api.adapt(plain_run.parent / "photos", classes, tmp_path / "run", **given, console=QUIET)
    found = api.explain(tmp_path / "run", image, tmp_path / "page.html", console=QUIET)
    assert all(side.sentences == () for side in found.sides)
    assert any(side.nearest for side in found.sides)
    assert sum("prototypes in the place of texts" in line for line in found.lines()) == len(found.sides)
    assert "prototypes in the place of texts" in (tmp_path / "page.html").read_text()


def test_a_run_without_a_model_for_photographs_is_refused(image, tmp_path):
    np.save(tmp_path / "f.npy", np.random.default_rng(0).normal(size=(12, 8)).astype(np.float32))
    np.save(tmp_path / "p.npy", np.random.default_rng(1).normal(size=(len(CLASSES), 8)).astype(np.float32))
    classes = write_classes(tmp_path / "classes.txt")
    api.adapt(tmp_path / "f.npy", classes, tmp_path / "run", method="stata", prototypes=tmp_path / "p.npy", console=QUIET)
    with pytest.raises(UserError, match=r"run is on features and prototypes alone"):
        api.explain(tmp_path / "run", image, console=QUIET)

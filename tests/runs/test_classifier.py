"""A classifier that travels: pickles, other processes, devices, modules; and what a run can be asked about besides folders."""

from __future__ import annotations

import csv
import io
import multiprocessing
import pickle
import shutil
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import joblib
import numpy as np
import pytest
import torch
from PIL import Image

import finelens
from finelens import api
from finelens.errors import UserError
from finelens.images.views import centre_view
from finelens.runs.classifier import Classifier
from tests.toy import CLASSES, QUIET, options_for, pictures, write_classes, write_photos

METHODS = ("consensus", "microclip", "mta", "zero-shot")


@pytest.fixture(scope="module")
def world(tmp_path_factory, tiny_vit) -> SimpleNamespace:
    parent = tmp_path_factory.mktemp("travel")
    return SimpleNamespace(
        photos=write_photos(parent / "photos", per_class=3), classes=write_classes(parent / "classes.txt"), vit=tiny_vit, parent=parent
    )


@pytest.fixture(scope="module")
def runs(world) -> dict[str, Classifier]:
    found = {}
    for method in METHODS:
        out = world.parent / method
        options = options_for(method, epochs=1)
        api.adapt(world.photos, world.classes, out, method=method, backbone=f"local:{world.vit}", options=options, console=QUIET)
        found[method] = api.load_run(out)
    return found


def paths(folder: Path) -> list[str]:
    return [str(path) for path in sorted(folder.rglob("*.png"))]


def answers(classifier: Classifier, photos: list[str]) -> np.ndarray:
    """In a module of its own, so that a worker finds it."""
    torch.set_num_threads(1)
    return classifier.predict_proba(photos)


@pytest.mark.parametrize("method", METHODS)
def test_a_pickle_answers_with_the_same_bits(method, runs, world):
    classifier, photos = runs[method], paths(world.photos)
    again = pickle.loads(pickle.dumps(classifier))
    assert np.array_equal(again.predict_proba(photos), classifier.predict_proba(photos))
    assert (again.classes, again.limits) == (classifier.classes, classifier.limits)


def test_joblib_stores_it(runs, world, tmp_path):
    joblib.dump(runs["consensus"], tmp_path / "classifier.joblib")
    assert joblib.load(tmp_path / "classifier.joblib").predict(paths(world.photos)) == runs["consensus"].predict(paths(world.photos))


def test_a_spawned_worker_answers(runs, world):
    photos = paths(world.photos)
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        assert np.array_equal(pool.submit(answers, runs["consensus"], photos).result(), answers(runs["consensus"], photos))


def test_the_estimator_pickles_once_fitted(world):
    model = finelens.LabelFreeClassifier(list(CLASSES), backbone=f"local:{world.vit}", options=options_for("consensus")).fit(pictures(2))
    again = pickle.loads(pickle.dumps(model))
    assert np.array_equal(again.predict_proba(pictures(2)), model.predict_proba(pictures(2)))


@pytest.mark.parametrize("method", METHODS)
def test_as_a_module_it_gives_logits_of_views(method, runs, world):
    classifier, photos = runs[method], paths(world.photos)[:5]
    images = [torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1) for path in photos]
    views = torch.stack([centre_view(image, classifier.backbone.preprocess) for image in images])
    logits = torch.nn.Sequential(classifier, torch.nn.Softmax(dim=1))(views)
    assert logits.shape == (5, len(CLASSES))
    # Views of mta are cut from the centre view here, not from the photograph.
    if method != "mta":
        np.testing.assert_allclose(logits, classifier.predict_proba(photos), atol=1e-5)
    assert not classifier.train().training


def test_its_state_is_that_of_the_tower_and_of_the_head(runs):
    classifier = runs["microclip"]
    state = classifier.state_dict()
    assert {name.split(".")[0] for name in state} == {"backbone", "task"}
    before = classifier.task.state_dict()
    other = pickle.loads(pickle.dumps(classifier))
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(1)
    other.load_state_dict(state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in other.task.state_dict().items())


def test_it_moves_between_devices(runs, world):
    classifier = pickle.loads(pickle.dumps(runs["consensus"]))
    assert classifier.to("cpu") is classifier
    assert classifier.model.engine.backbone is classifier.backbone
    assert np.array_equal(classifier.predict_proba(paths(world.photos)), runs["consensus"].predict_proba(paths(world.photos)))
    with pytest.raises(UserError, match="device"):
        classifier.to("nowhere")
    with pytest.raises(UserError, match=r"move it with \.to\(device\)"):
        classifier.half()


def rows(path: Path) -> list[tuple[str, str, str]]:
    return [(row["path"], row["status"], row["class"]) for row in csv.DictReader(path.open())]


def test_one_photograph_and_lists_are_answered_as_in_their_folder(runs, world, tmp_path, monkeypatch):
    run, photos = world.parent / "consensus", paths(world.photos)
    api.predict(run, world.photos, tmp_path / "all.csv", console=QUIET)
    known = {str(world.photos / name): label for name, _, label in rows(tmp_path / "all.csv")}
    api.predict(run, photos[4], tmp_path / "one.csv", console=QUIET)
    assert rows(tmp_path / "one.csv") == [(photos[4], "ok", known[photos[4]])]
    assert runs["consensus"].predict(photos[4]) == [known[photos[4]]]
    asked = [photos[7], photos[1], str(world.parent / "gone.png"), photos[7]]
    (tmp_path / "list.txt").write_text("\ufeff" + "\r\n".join([*asked, ""]))
    api.predict(run, tmp_path / "list.txt", tmp_path / "list.csv", console=QUIET)
    expected = [(name, "ok" if name in known else "vanished", known.get(name, "")) for name in asked]
    assert rows(tmp_path / "list.csv") == expected
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO("\n".join(asked).encode())))
    api.predict(run, "-", tmp_path / "input.csv", console=QUIET)
    assert rows(tmp_path / "input.csv") == expected


def test_paths_of_a_list_are_those_of_the_working_directory(runs, world, tmp_path, monkeypatch):
    monkeypatch.chdir(world.photos)
    (tmp_path / "list.lst").write_text("red stripe/0.png\n")
    api.predict(world.parent / "zero-shot", tmp_path / "list.lst", tmp_path / "out.csv", console=QUIET)
    assert [row[:2] for row in rows(tmp_path / "out.csv")] == [("red stripe/0.png", "ok")]


def test_names_with_blanks_at_the_end_and_of_nobody_are_those_of_files(runs, world, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("end.png ", " plain.png"):
        shutil.copy(world.photos / "red stripe/0.png", name)
    shutil.copy(world.photos / "red stripe/0.png", "both.png")
    (tmp_path / "list.txt").write_text("end.png \n both.png \n plain.png\n~nobody-of-that-name/a.png\n")
    api.predict(world.parent / "zero-shot", "list.txt", "out.csv", console=QUIET)
    expected = [("end.png ", "ok"), ("both.png", "ok"), (" plain.png", "ok"), ("~nobody-of-that-name/a.png", "vanished")]
    assert [row[:2] for row in rows(tmp_path / "out.csv")] == expected


@pytest.mark.parametrize(
    ("content", "message"), [(b"\n\n", "no paths"), (b"\xff\xfe", "not a list of paths in UTF-8"), (b"a\0b", "not a list of paths")]
)
def test_what_is_no_list_is_refused(runs, world, tmp_path, content, message):
    (tmp_path / "list.txt").write_bytes(content)
    with pytest.raises(UserError, match=message):
        api.predict(world.parent / "zero-shot", tmp_path / "list.txt", tmp_path / "out.csv", console=QUIET)

"""Folders of photographs as they are found: every file is a row, and every folder with one good photograph is adapted to."""

from __future__ import annotations

import math
import os
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from finelens import api
from finelens.engine.engine import Engine
from finelens.errors import UserError
from finelens.images.decode import DecodeLimits, Failure, decode
from finelens.images.discover import discover
from finelens.images.store import load_images
from finelens.storage.predictions import read_predictions
from tests.toy import CLASSES, QUIET, digest, fit_toy, picture, pictures, quick, write_classes

PICTURES = {
    "one": [picture(1, 0)],
    "all identical": [picture(0, 0)] * 9,
    "near duplicates": [np.clip(picture(0, 0).astype(int) + i % 3, 0, 255).astype(np.uint8) for i in range(9)],
    "grayscale only": [np.repeat(p.mean(2, keepdims=True), 3, 2).astype(np.uint8) for p in pictures(2)],
    "mixed sizes": [picture(i % 4, i, 20 + 37 * i, 200 - 20 * i) for i in range(8)],
    "fewer than a batch": pictures(1)[:3],
    "black": [np.zeros((40, 40, 3), np.uint8)] * 2,
}


@pytest.mark.parametrize("kind", PICTURES)
def test_unusual_folders_are_adapted_to(tiny_vit, kind):
    images = PICTURES[kind]
    _, fitted, log = fit_toy(tiny_vit, "microclip", images, options=quick(epochs=1, batch_size=8))
    assert fitted.zero_shot_logits.shape == (len(images), len(CLASSES))
    assert all(math.isfinite(loss) for loss in log.losses)
    assert all(torch.isfinite(tensor).all() for tensor in fitted.model.task.prediction_state().values())


@pytest.mark.parametrize(
    "kind", ["gone", "replaced by a text", "replaced by a folder", "replaced by a pipe", "replaced by a link", "replaced by a picture"]
)
def test_file_changed_between_scan_and_read(tmp_path, kind):
    path = tmp_path / "a.png"
    Image.fromarray(picture(0, 0)).save(path)
    Image.fromarray(picture(1, 1)).save(tmp_path / "b.png")
    files = discover(tmp_path)
    path.unlink()
    if kind == "replaced by a text":
        path.write_text("no picture")
    elif kind == "replaced by a folder":
        path.mkdir()
    elif kind == "replaced by a pipe":
        os.mkfifo(path)
    elif kind == "replaced by a link":
        path.symlink_to(tmp_path / "nowhere")
    elif kind == "replaced by a picture":
        Image.fromarray(picture(2, 2)).save(path)
    loaded = load_images(files)
    expected = {"gone": "vanished", "replaced by a text": "corrupt", "replaced by a link": "vanished", "replaced by a picture": "ok"}
    assert [record.status for record in loaded.records] == [expected.get(kind, "unsupported"), "ok"]
    if kind == "replaced by a picture":
        # Digest and pixels are those of one reading.
        assert loaded.records[0].sample_id == digest(path)


def test_a_pipe_that_appears_after_the_look_does_not_block(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "a.png")
    Image.fromarray(picture(0, 0)).save(tmp_path / "b.png")
    regular = os.stat(tmp_path / "b.png")
    monkeypatch.setattr("finelens.images.decode.os.stat", lambda path: regular)
    result: list[object] = []
    thread = threading.Thread(target=lambda: result.append(decode(tmp_path / "a.png", DecodeLimits())), daemon=True)
    thread.start()
    thread.join(20)
    assert result == [Failure("unsupported", "not a regular file")]


def test_a_file_that_grows_is_not_read_beyond_the_budget(tmp_path, monkeypatch):
    Image.fromarray(picture(0, 0)).save(tmp_path / "a.png")
    (tmp_path / "a.png").open("ab").write(bytes(100_000))
    small = os.stat(__file__)
    monkeypatch.setattr("finelens.images.decode.os.stat", lambda path: small)
    assert isinstance(decode(tmp_path / "a.png", DecodeLimits(max_bytes=10**6)), Failure)


@pytest.mark.skipif(os.name == "posix" and os.geteuid() == 0, reason="the superuser reads everything")
def test_unreadable_file_is_a_row(tmp_path):
    Image.fromarray(picture(0, 0)).save(tmp_path / "a.png")
    os.chmod(tmp_path / "a.png", 0)
    assert load_images(discover(tmp_path)).records[0].status == "unreadable"


def test_everything_at_once_is_one_row_each(tiny_vit, tmp_path):
    """Upper-case names, odd names, links, leftovers, empty folders: what is a file is a row, in the table and when it is read back."""
    photos = tmp_path / "photos"
    (photos / "deep" / "deeper").mkdir(parents=True)
    (photos / "empty").mkdir()
    good = photos / "A.PNG"
    Image.fromarray(picture(0, 0)).save(good)
    for name in (
        "B.JPG",
        "=cmd|calc.png",
        "-1+1.png",
        "@x.png",
        'a,b "c".png',
        "new\nline.png",
        "rtl\u202e.png",
        "emoji \U0001f600.png",
        "x" * 245 + ".png",
    ):
        Image.fromarray(picture(1, len(name))).save(photos / name, "PNG")
    os.symlink(photos, photos / "deep" / "loop")
    os.symlink(good, photos / "deep" / "again.png")
    shutil.copy(good, photos / "deep" / "copy.png")
    shutil.copy(good, os.fsencode(photos / "deep") + b"/latin-\xe9.png")
    for leftover in (".hidden.png", "Thumbs.db", "desktop.ini"):
        shutil.copy(good, photos / leftover)
    (photos / "__MACOSX").mkdir()
    shutil.copy(good, photos / "__MACOSX" / "._a.png")
    deep = photos
    for _ in range(6):
        deep = deep / ("d" * 60)
        deep.mkdir()
    shutil.copy(good, deep / "over-255-bytes.png")
    assert len(os.fsencode(deep)) > 255
    options = {"training": {"precision": "float32"}}
    run = api.zero_shot(photos, write_classes(tmp_path / "names.txt"), tmp_path / "run", backbone=f"local:{tiny_vit}", options=options, console=QUIET)
    assert len(run.rows) == len(discover(photos)) == 14
    assert {row.status for row in run.rows} == {"ok"}
    assert read_predictions(tmp_path / "run" / "predictions.csv") == run.rows
    assert "deep/latin-\\xe9.png" in [row.path for row in run.rows]


def test_no_photographs_at_all(tmp_path):
    (tmp_path / "photos" / ".git").mkdir(parents=True)
    with pytest.raises(UserError, match="holds no visible file"):
        discover(tmp_path / "photos")


def test_duplicates_across_folders_get_the_same_answer(tiny_vit, tmp_path):
    photos = tmp_path / "photos"
    for folder in ("a", "b"):
        (photos / folder).mkdir(parents=True)
        for seed in range(3):
            Image.fromarray(picture(seed, 0)).save(photos / folder / f"{seed}.png")
    options = {"training": {"precision": "float32"}}
    run = api.zero_shot(photos, write_classes(tmp_path / "names.txt"), tmp_path / "run", backbone=f"local:{tiny_vit}", options=options, console=QUIET)
    answers = {row.path: (row.label, row.probability) for row in run.rows}
    assert all(answers[f"a/{seed}.png"] == answers[f"b/{seed}.png"] for seed in range(3))


def test_the_run_inside_the_photographs_is_refused(tiny_vit, tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    Image.fromarray(picture(0, 0)).save(photos / "a.png")
    before = sorted(Path(photos).rglob("*"))
    with pytest.raises(UserError, match="lies inside the photographs"):
        api.zero_shot(photos, write_classes(tmp_path / "names.txt"), photos / "run", backbone=f"local:{tiny_vit}", console=QUIET)
    assert sorted(photos.rglob("*")) == before


def test_broken_links_to_one_place_keep_a_row_each(tmp_path):
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / name).symlink_to("nowhere")
    loaded = load_images(discover(tmp_path))
    assert [(record.name, record.status) for record in loaded.records] == [("a.jpg", "vanished"), ("b.jpg", "vanished")]


def test_links_and_copies_of_one_content_are_rows_and_encoded_once(tiny_vit, tmp_path, monkeypatch):
    """Folders as the hub, DVC and git-annex keep them: links to one content, symbolic and hard, in linked folders; and equal copies."""
    blobs, photos = tmp_path / "blobs", tmp_path / "photos"
    blobs.mkdir()
    (photos / "a").mkdir(parents=True)
    for i in range(3):
        Image.fromarray(picture(i, i)).save(blobs / f"{i}", "PNG")
        (photos / "a" / f"{i}.png").symlink_to(f"../../blobs/{i}")
    (photos / "b").symlink_to(blobs)
    os.link(blobs / "0", photos / "a" / "hard.png")
    shutil.copy(blobs / "1", photos / "copy.png")
    encoded: list[int] = []
    original = Engine.encode_each
    monkeypatch.setattr(Engine, "encode_each", lambda self, images, **given: encoded.append(len(images)) or original(self, images, **given))
    options = {"training": {"precision": "float32"}}
    run = api.zero_shot(photos, write_classes(tmp_path / "names.txt"), tmp_path / "run", backbone=f"local:{tiny_vit}", options=options, console=QUIET)
    assert [row.path for row in run.rows] == ["a/0.png", "a/1.png", "a/2.png", "a/hard.png", "b/0", "b/1", "b/2", "copy.png"]
    answers = {row.path: (row.status, row.label, row.probability) for row in run.rows}
    assert answers["a/0.png"] == answers["a/hard.png"] == answers["b/0"]
    assert answers["a/1.png"] == answers["copy.png"] == answers["b/1"]
    assert sum(encoded) == 3
    predicted = api.predict(tmp_path / "run", photos, tmp_path / "out.csv", console=QUIET)
    assert [row.path for row in predicted] == [row.path for row in run.rows]

"""Support sets from folders: what is read, what is refused, and how they take part in a run."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from PIL import Image

from finelens import api
from finelens.core.console import Console
from finelens.errors import UserError
from finelens.feature_store.support import read_support
from finelens.images.decode import DecodeLimits
from finelens.images.discover import discover
from finelens.images.store import load_images
from tests.toy import CLASSES, QUIET, events, picture, write_classes, write_photos


def read(folder, captions=False, names=CLASSES):
    return read_support(folder, names, DecodeLimits(), QUIET, captions=captions)


@pytest.fixture
def folder(tmp_path):
    return write_photos(tmp_path / "support", per_class=2)


@pytest.fixture
def flat(tmp_path):
    path = tmp_path / "flat"
    path.mkdir()
    for kind in range(4):
        Image.fromarray(picture(kind, 9)).save(path / f"{kind}.png")
    return path


def write_metadata(path, *rows, head="file,label,caption"):
    (path / "metadata.csv").write_text("\n".join([head, *rows]) + "\n", encoding="utf-8")


def by_content(found):
    return dict(zip(found.store.ids, found.rows, strict=True))


def test_sub_folders_name_the_classes(folder):
    found = read(folder)
    assert sorted(row.label for row in found.rows) == [0, 0, 1, 1, 2, 2, 3, 3]
    labels = {sample: row.label for sample, row in by_content(found).items()}
    # Ids are sorted by content, so labels must have been carried along with their images.
    for kind, name in enumerate(CLASSES):
        assert {labels[i] for i in load_images(discover(folder / name), DecodeLimits()).store.ids} == {kind}


def test_metadata_gives_classes_and_captions(flat):
    write_metadata(flat, '0.png,red stripe,"a red, striped card"', "2.png,blue disc,a disc", "3.png,yellow ramp, ")
    found = read(flat)
    rows = by_content(found)
    assert sorted((row.label, row.caption) for row in rows.values()) == [(0, "a red, striped card"), (2, "a disc"), (3, "")]
    with pytest.raises(UserError, match=r"1 of 3 images have no caption \(first: '3.png'\)"):
        read(flat, captions=True)
    lines = [{"file": "0.png", "label": "red stripe", "caption": "a red, striped card"}, {"file": "2.png", "label": "blue disc", "caption": "a disc"}]
    write_metadata(flat, '0.png,red stripe,"a red, striped card"', "2.png,blue disc,a disc")
    by_csv = read(flat, captions=True)
    (flat / "metadata.csv").unlink()
    (flat / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    assert read(flat, captions=True).digest == by_csv.digest
    lines[0]["caption"] = "another"
    (flat / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    assert read(flat).digest != by_csv.digest


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("9.png,red stripe,x", "there is no file '9.png'"),
        ("../0.png,red stripe,x", "there is no file"),
        ("0.png,red strip,x", "did you mean 'red stripe'"),
        ("0.png,,x", "line 3: no label"),
        ("1.png,red stripe,x", "listed twice"),
    ],
)
def test_a_bad_row_is_named(flat, row, words):
    write_metadata(flat, "1.png,green check,x", row)
    with pytest.raises(UserError, match=words):
        read(flat)


def test_what_is_no_support_set(tmp_path, flat, folder):
    for path, words in ((tmp_path / "none", "is not a folder"), (flat / "0.png", "is not a folder"), (flat, "no class folders")):
        with pytest.raises(UserError, match=words):
            read(path)
    write_metadata(flat)
    with pytest.raises(UserError, match="no rows"):
        read(flat)
    (flat / "metadata.jsonl").write_text("[]\n", encoding="utf-8")
    with pytest.raises(UserError, match="keep one of them"):
        read(flat)
    (flat / "metadata.csv").unlink()
    with pytest.raises(UserError, match="line 1: expected an object of texts"):
        read(flat)
    for file in folder.rglob("*.png"):
        file.write_bytes(b"no picture")
    with pytest.raises(UserError, match="none of its 8 images can be read"):
        read(folder)


def test_broken_images_are_counted_and_left_out(folder, capsys):
    (folder / CLASSES[1] / "0.png").write_bytes(b"no picture")
    found = read_support(folder, CLASSES, DecodeLimits(), Console(), captions=False)
    assert len(found.rows) == 7
    assert "support set: 7 images for 4 of 4 classes, 1 could not be read" in capsys.readouterr().err


def adapt(tmp_path, tiny_vit, method, support, out="run", **options):
    given = {} if support is None else {"support": str(support)}
    return api.adapt(
        tmp_path / "photos",
        write_classes(tmp_path / "classes.txt"),
        tmp_path / out,
        backbone=f"local:{tiny_vit}",
        method=method,
        options={"method": {**given, **options}, "training": {"precision": "float32"}},
        console=QUIET,
    )


@pytest.fixture
def photos(tmp_path):
    return write_photos(tmp_path / "photos", ["a", "b", "c", "d"], per_class=2)


def test_a_run_without_a_support_set_is_refused_before_anything_is_loaded(tmp_path, tiny_vit, photos):
    with pytest.raises(UserError, match=r"method sus-x needs a support set: give --set method\.support=FOLDER, images"):
        adapt(tmp_path, tiny_vit, "sus-x", None)
    with pytest.raises(UserError, match=r"captions in metadata\.csv"):
        adapt(tmp_path, tiny_vit, "caps-adapter", None)
    assert not (tmp_path / "run").exists()


def test_the_support_set_is_part_of_the_run(tmp_path, tiny_vit, photos, folder):
    adapt(tmp_path, tiny_vit, "sus-x", folder)
    run = tmp_path / "run"
    logged = next(event for event in events(run) if event["event"] == "support")
    assert logged["count"] == 8
    before = api.load_run(run).predict_proba(photos)
    unfinished = shutil.copytree(run, tmp_path / "unfinished")
    lines = (unfinished / "events.jsonl").read_text().splitlines(keepends=True)
    (unfinished / "events.jsonl").write_text("".join(line for line in lines if '"end"' not in line))
    (folder / CLASSES[0] / "0.png").unlink()
    # A solver has no checkpoint to go on from: the run starts again, and says with what.
    api.resume(unfinished, console=QUIET)
    again = next(event for event in events(unfinished) if event["event"] == "support")
    assert (again["count"], again["digest"] != logged["digest"]) == (7, True)
    # The finished model holds its keys and needs the folder no more.
    shutil.rmtree(folder)
    assert (api.load_run(run).predict_proba(photos) == before).all()


def test_captions_go_through_the_text_tower(tmp_path, tiny_vit, photos, flat):
    write_metadata(flat, "0.png,red stripe,one thing", "1.png,green check,another thing")
    adapt(tmp_path, tiny_vit, "caps-adapter", flat)
    write_metadata(flat, "0.png,red stripe,another thing", "1.png,green check,one thing")
    adapt(tmp_path, tiny_vit, "caps-adapter", flat, out="other")
    first, other = (api.load_run(tmp_path / name).model.task.keys_ for name in ("run", "other"))
    assert first.shape == other.shape
    assert not torch.equal(first, other)

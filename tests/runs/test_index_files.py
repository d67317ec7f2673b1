"""Photographs that an index file of ELEVATER names, in zip archives or in base64, as the source of a run: as the files, and without labels."""

from __future__ import annotations

import base64
import json
import re
import zipfile
from pathlib import Path

import pytest

from finelens import api
from finelens.errors import UserError
from finelens.images.decode import DecodeLimits
from finelens.reporting.thumbnails import from_folder
from finelens.runs.early import check_source
from finelens.runs.encode import features
from tests.toy import QUIET, write_classes, write_photos

FORMS = ("train.txt", "train.json", "train.tsv")


def write_forms(photos: Path, folder: Path, label: int = 0) -> None:
    """All three forms of the photographs; every one with the same label, which is wrong for most."""
    files = sorted(photos.rglob("*.png"))
    names = [file.relative_to(photos).as_posix() for file in files]
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(folder / "train.zip", "w") as archive:
        for name, file in zip(names, files, strict=True):
            archive.write(file, name)
    (folder / "labels.txt").write_text("a\nb\n")
    (folder / "train.txt").write_text("".join(f"train.zip@{name} {label},{label}\n" for name in names))
    images = [{"id": i, "file_name": name, "zip_file": "train.zip"} for i, name in enumerate(names)]
    annotations = [{"image_id": i, "category_id": label} for i in range(len(names))]
    (folder / "train.json").write_text(json.dumps({"categories": [{"id": 0, "name": "a"}], "images": images, "annotations": annotations}))
    cell = json.dumps([{"class": "ab"[label]}])
    (folder / "train.tsv").write_text("".join(f"{i}\t{cell}\t{base64.b64encode(file.read_bytes()).decode()}\n" for i, file in enumerate(files)))


@pytest.fixture(scope="module")
def world(tmp_path_factory, tiny_vit) -> Path:
    folder = tmp_path_factory.mktemp("indices")
    write_photos(folder / "photos")
    write_forms(folder / "photos", folder / "set")
    write_classes(folder / "classes.txt")
    adapt(folder / "photos", folder / "run", folder, tiny_vit)
    return folder


def adapt(source, out, folder, backbone):
    api.adapt(source, folder / "classes.txt", out, backbone=f"local:{backbone}", method="gda-em", console=QUIET)
    return [(row.label, row.top5, row.status) for row in api.read_predictions(out / "predictions.csv")]


@pytest.mark.parametrize("form", FORMS)
def test_a_run_on_an_index_is_a_run_on_its_photographs(world, tmp_path, tiny_vit, form):
    found = adapt(world / "set" / form, tmp_path / "run", world, tiny_vit)
    assert found == [(row.label, row.top5, row.status) for row in api.read_predictions(world / "run/predictions.csv")]
    names = [row.path for row in api.read_predictions(tmp_path / "run/predictions.csv")]
    assert names[0] == ("train.tsv[0].jpg" if form == "train.tsv" else "train.zip@blue disc/0.png")
    # Later pages, such as a review, show the photographs as well.
    photo = from_folder(world / "set" / form, DecodeLimits())
    assert photo(names[0]) is not None
    assert photo("none.png") is None
    # Other labels change nothing but the file.
    write_forms(world / "photos", tmp_path / "other", label=0 if form == "train.json" else 1)
    assert adapt(tmp_path / "other" / form, tmp_path / "again", world, tiny_vit) == found
    labels = tmp_path / "labels.csv"
    labels.write_text("path,label\n" + "".join(f'"{name}",red stripe\n' for name in names[:3]))
    scored = api.evaluate(tmp_path / "run", world / "set" / form, labels=labels, console=QUIET)
    assert scored["n"] == 3


@pytest.mark.parametrize("form", FORMS)
def test_features_and_predict_read_an_index(world, tmp_path, tiny_vit, form):
    records = features(world / "set" / form, tmp_path / "x.safetensors", backbone=f"local:{tiny_vit}", console=QUIET)
    assert [record.status for record in records] == ["ok"] * 24
    rows = api.predict(world / "run", world / "set" / form, tmp_path / "new.csv", console=QUIET)
    assert [row.label for row in rows] == [row.label for row in api.read_predictions(world / "run/predictions.csv")]


def test_a_folder_of_parts_is_asked_for_one_of_them(world):
    for call in (lambda: check_source(world / "set"), lambda: api.zero_shot(world / "set", world / "classes.txt", world / "never", console=QUIET)):
        with pytest.raises(UserError, match=rf"give one part: {re.escape(str(world / 'set/train.txt'))} or .*train\.json or .*train\.tsv"):
            call()
    assert not (world / "never").exists()


def test_lists_and_tables_beside_photographs_are_no_index(tmp_path):
    photos = write_photos(tmp_path / "photos", per_class=1)
    (photos / "train.txt").write_text("x/1.png 0\n")
    (photos / "train.tsv").write_text("path\tlabel\n1.png\ta\n")
    (photos / "train.json").write_text(json.dumps({"images": [{"file_name": "1.png"}]}))
    check_source(photos)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train.zip@none.png 0\n", "has no none.png"),
        ("gone.zip@1.png 0\n", "put the set's archives there, packed"),
        ("../train.zip@1.png 0\n", "is not in"),
        ("train.zip@{first} 0\n1.png 0\n", "1.png is in no archive"),
    ],
)
def test_an_index_that_does_not_fit_is_refused(world, tmp_path, text, message):
    first = sorted((world / "photos").rglob("*.png"))[0].relative_to(world / "photos").as_posix()
    (world / "set/val.txt").write_text(text.replace("{first}", first))
    with pytest.raises(UserError, match=message):
        api.predict(world / "run", world / "set/val.txt", tmp_path / "new.csv", console=QUIET)

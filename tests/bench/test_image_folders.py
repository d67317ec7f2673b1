"""Image folders as Hugging Face has them, with and without metadata."""

from __future__ import annotations

import json

import pyarrow
import pyarrow.parquet as parquet
import pytest

from finelens.bench.sets.find import find_data
from finelens.errors import UserError
from tests.bench.small_files import statuses
from tests.bench.test_sets import labels, picture


def write_image_folder(folder, test="validation"):
    for part, count in (("train", 3), (test, 2)):
        for name in ("house_cat", "dog"):
            for i in range(count):
                picture(folder / part / name / f"{name}_{i}.png", i)
    return folder


@pytest.mark.parametrize("test", ["test", "validation", "val"])
def test_image_folder_of_hugging_face(tmp_path, test):
    folder = write_image_folder(tmp_path / "pets", test)
    if test == "test":
        picture(folder / "validation/dog/left_out.png")
    data = find_data("pets", tmp_path)[1]()
    assert (data.class_names, data.layout) == (("dog", "house cat"), "folder")
    assert (labels(data.train), labels(data.test)) == ([0, 0, 0, 1, 1, 1], [0, 0, 1, 1])
    assert data.split == f"train and {test} folders"


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize("above", [False, True])
def test_image_folder_with_metadata(tmp_path, kind, above):
    rows = {"train": [("a.png", "dog"), ("sub/b.png", "house cat")], "test": [("c.png", "House_Cat")]}
    for part, found in rows.items():
        for i, (path, _) in enumerate(found):
            picture(tmp_path / part / path, i)
    tables = {tmp_path: [(f"{part}/{path}", label) for part, own in rows.items() for path, label in own]}
    tables = tables if above else {tmp_path / part: own for part, own in rows.items()}
    for place, own in tables.items():
        table = [{"file_name": path, "label": label, "text": "a caption"} for path, label in own]
        if kind == "csv":
            (place / "metadata.csv").write_text("file_name,text,label\n" + "".join(f"{r['file_name']},a caption,{r['label']}\n" for r in table))
        elif kind == "jsonl":
            (place / "metadata.jsonl").write_text("".join(json.dumps(r) + "\n" for r in table))
        else:
            parquet.write_table(pyarrow.Table.from_pylist(table), place / "metadata.parquet")
    (tmp_path / "classes.txt").write_text("house cat\ndog\n")
    data = find_data(str(tmp_path), None)[1]()
    assert (data.class_names, data.layout) == (("house cat", "dog"), "imagefolder")
    assert (labels(data.train), labels(data.test)) == ([1, 0], [0])
    assert (statuses(data.train), statuses(data.test)) == (["ok", "ok"], ["ok"])
    (tmp_path / "classes.txt").unlink()
    if kind == "csv":
        with pytest.raises(UserError, match="House_Cat"):  # "house cat" and "House_Cat" are one name, spelled in two ways
            find_data(str(tmp_path), None)[1]()


def write_metadata(folder, rows):
    for part, own in rows.items():
        for path, _ in own:
            picture(folder / part / path)
        text = "".join(json.dumps({"file_name": path, **({} if label is None else {"label": label})}) + "\n" for path, label in own)
        (folder / part / "metadata.jsonl").write_text(text)


def test_metadata_with_numbers_needs_names(tmp_path):
    write_metadata(tmp_path, {"train": [("a.png", 1), ("b.png", 0)], "test": [("c.png", 1)]})
    with pytest.raises(UserError, match=r"are numbers; put classes.txt there"):
        find_data(str(tmp_path), None)[1]()
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    data = find_data(str(tmp_path), None)[1]()
    assert (labels(data.train), labels(data.test)) == ([1, 0], [1])
    # Classes may be called by numbers: the name wins over the place.
    (tmp_path / "classes.txt").write_text("1\n0\n")
    assert labels(find_data(str(tmp_path), None)[1]().train) == [0, 1]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({"train": [("a.png", "dog")], "test": [("c.png", None)]}, "only train has a metadata table"),
        ({"train": [("a.png", "dog"), ("b.png", None)], "test": [("c.png", "dog")]}, "row 2: expected a file under file_name"),
        ({"train": [("a.png", "dog"), ("b.png", "lion")], "test": [("c.png", "dog")]}, "label 'lion' of its metadata is not in"),
        ({"train": [("a.png", "dog"), ("a.png", "dog")], "test": [("c.png", "dog")]}, "lists an image twice"),
    ],
)
def test_metadata_that_does_not_fit(tmp_path, rows, message):
    write_metadata(tmp_path, rows)
    (tmp_path / "classes.txt").write_text("dog\ncat\n")
    with pytest.raises(UserError, match=message):
        find_data(str(tmp_path), None)[1]()


def test_metadata_does_not_leave_the_folder(tmp_path):
    write_metadata(tmp_path, {"train": [("a.png", "dog")], "test": [("c.png", "cat")]})
    (tmp_path / "train/metadata.jsonl").write_text('{"file_name": "../../etc/x.png", "label": "dog"}\n')
    with pytest.raises(UserError, match="leaves"):
        find_data(str(tmp_path), None)[1]()


def test_metadata_without_labels_leaves_the_folders(tmp_path):
    folder = write_image_folder(tmp_path / "pets")
    (folder / "train/metadata.csv").write_text("file_name,text\ndog/dog_0.png,a dog\n")
    data = find_data("pets", tmp_path)[1]()
    assert data.layout == "folder"
    assert labels(data.test) == [0, 0, 1, 1]

"""Loaders on tiny files in the real formats."""

from __future__ import annotations

import json

import numpy as np
import pyarrow
import pyarrow.parquet as parquet
import pytest
from PIL import Image

from finelens.bench.sets.data import DataSet
from finelens.bench.sets.find import find_data
from finelens.bench.sets.table import SETS
from finelens.classes.templates import check_templates
from finelens.errors import UserError
from finelens.images.store import load_images

CATS = ("Abyssinian", "american_bulldog", "Ragdoll")


def picture(path, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(path)


def read(name, root) -> DataSet:
    found, reader = find_data(name, root)
    data = reader()
    assert found == name == data.name
    assert data.templates is not None
    for part in (data.train, data.test):
        loaded = load_images([image.path for image in part.images] if isinstance(part.images, list) else part.images)
        assert {record.status for record in loaded.records} == {"ok"}
        assert len(part.labels) == len(loaded.records)
    return data


def labels(part) -> list[int]:
    return part.labels.read().tolist()


def write_pets(root):
    folder = root / "oxford-iiit-pet"
    lines = {"trainval.txt": [], "test.txt": []}
    for k, name in enumerate(CATS):
        for i in range(4):
            picture(folder / "images" / f"{name}_{i}.jpg", 10 * k + i)
            lines["trainval.txt" if i < 3 else "test.txt"].append(f"{name}_{i} {k + 1} 1 {k + 1}")
    (folder / "annotations").mkdir()
    (folder / "annotations/trainval.txt").write_text("\n".join(lines["trainval.txt"]) + "\n")
    (folder / "annotations/test.txt").write_text("#Image CLASS-ID SPECIES BREED ID\n" + "\n".join(lines["test.txt"]) + "\n")
    return folder


def test_pets(tmp_path):
    write_pets(tmp_path)
    data = read("pets", tmp_path)
    assert data.class_names == ("Abyssinian", "american bulldog", "Ragdoll")
    assert labels(data.train) == [0] * 3 + [1] * 3 + [2] * 3
    assert labels(data.test) == [0, 1, 2]
    assert data.split.endswith("(9 train, 3 test)")


def test_food101_and_dtd(tmp_path):
    food, dtd = tmp_path / "food-101", tmp_path / "dtd"
    for name in ("apple_pie", "waffles"):
        for i in range(3):
            picture(food / "images" / name / f"{i}.jpg", i)
            picture(dtd / "images" / name / f"{name}_{i}.jpg", i)
    (food / "meta").mkdir()
    (food / "meta/classes.txt").write_text("apple_pie\nwaffles\n")
    (food / "meta/train.txt").write_text("waffles/0\napple_pie/0\napple_pie/1\n")
    (food / "meta/test.txt").write_text("apple_pie/2\nwaffles/2\n")
    data = read("food101", tmp_path)
    assert data.class_names == ("apple pie", "waffles")
    assert (labels(data.train), labels(data.test)) == ([1, 0, 0], [0, 1])
    (dtd / "labels").mkdir()
    (dtd / "labels/train1.txt").write_text("waffles/waffles_0.jpg\n")
    (dtd / "labels/test1.txt").write_text("apple_pie/apple_pie_2.jpg\nwaffles/waffles_2.jpg\n")
    data = read("dtd", tmp_path)
    assert (labels(data.train), labels(data.test)) == ([1], [0, 1])


def test_aircraft(tmp_path):
    folder = tmp_path / "fgvc-aircraft-2013b/data"
    for i in range(4):
        picture(folder / "images" / f"00{i}.jpg", i)
    (folder / "variants.txt").write_text("707-320\nDR-400 2/2\n")
    (folder / "images_variant_trainval.txt").write_text("000 707-320\n001 DR-400 2/2\n")
    (folder / "images_variant_test.txt").write_text("002 DR-400 2/2\n003 707-320\n")
    data = read("aircraft", tmp_path)
    assert data.class_names == ("707-320", "DR-400 2/2")
    assert (labels(data.train), labels(data.test)) == ([0, 1], [1, 0])
    (folder / "images_variant_test.txt").write_text("002 Concorde\n")
    with pytest.raises(UserError, match=r"'Concorde' is not in variants.txt"):
        find_data("aircraft", tmp_path)[1]()


def test_cub(tmp_path):
    folder = tmp_path / "CUB_200_2011"
    paths = ["001.Black_footed_Albatross/a.jpg", "001.Black_footed_Albatross/b.jpg", "002.Laysan_Albatross/c.jpg", "002.Laysan_Albatross/d.jpg"]
    for i, path in enumerate(paths):
        picture(folder / "images" / path, i)
    (folder / "images.txt").write_text("".join(f"{i} {path}\n" for i, path in enumerate(paths, 1)))
    (folder / "image_class_labels.txt").write_text("1 1\n2 1\n3 2\n4 2\n")
    (folder / "train_test_split.txt").write_text("1 0\n2 1\n3 1\n4 0\n")
    (folder / "classes.txt").write_text("1 001.Black_footed_Albatross\n2 002.Laysan_Albatross\n")
    data = read("cub", tmp_path)
    assert data.class_names == ("Black footed Albatross", "Laysan Albatross")
    assert [image.name for image in data.train.images] == [paths[1], paths[2]]
    assert (labels(data.train), labels(data.test)) == ([0, 1], [0, 1])


@pytest.mark.parametrize(("name", "folder", "label_bytes"), [("cifar10", "cifar-10-batches-bin", 1), ("cifar100", "cifar-100-binary", 2)])
def test_cifar(tmp_path, name, folder, label_bytes):
    folder = tmp_path / folder
    folder.mkdir()
    rng = np.random.default_rng(0)
    files = [*(f"data_batch_{k}.bin" for k in range(1, 6)), "test_batch.bin"] if label_bytes == 1 else ["train.bin", "test.bin"]
    tables = {}
    for file in files:
        tables[file] = rng.integers(0, 3, (4, label_bytes + 3072), dtype=np.uint8)
        tables[file].tofile(folder / file)
    (folder / ("batches.meta.txt" if label_bytes == 1 else "fine_label_names.txt")).write_text("airplane\naquarium_fish\nbird\n\n")
    data = read(name, tmp_path)
    assert data.class_names == ("airplane", "aquarium fish", "bird")
    assert len(data.train.labels) == 4 * (len(files) - 1)
    table = tables[files[-1]]
    assert labels(data.test) == table[:, label_bytes - 1].tolist()
    # Planes of red, green and blue, each row by row.
    image = data.test.images[2]
    assert image.shape == (32, 32, 3)
    assert image[5, 7].tolist() == [table[2, label_bytes + plane * 1024 + 5 * 32 + 7] for plane in range(3)]
    (folder / files[0]).write_bytes(b"short")
    with pytest.raises(UserError, match="unpack it again"):
        find_data(name, tmp_path)[1]()


def write_coop(root, change=lambda document: document):
    folder = root / "oxford_pets"
    for k in range(3):
        picture(folder / "images" / f"cat_{k}.jpg", k)
    document = {"train": [["cat_0.jpg", 1, "tabby_cat"]], "val": [["cat_1.jpg", 0, "dog"]], "test": [["cat_2.jpg", 1, "tabby_cat"]]}
    (folder / "split_zhou_OxfordPets.json").write_text(json.dumps(change(document)))


def test_coop_splits(tmp_path):
    write_coop(tmp_path)
    data = read("pets-coop", tmp_path)
    assert data.class_names == ("dog", "tabby cat")
    assert (labels(data.train), labels(data.test)) == ([1], [1])
    assert data.split == "split_zhou_OxfordPets.json (1 train, 1 val, 1 test)"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: [], "expected"),
        (lambda d: {**d, "test": [["cat_2.jpg", "1", "tabby_cat"]]}, "entry 0"),
        (lambda d: {**d, "test": [["cat_2.jpg", 1, "lion"]]}, "label 1 is both"),
        (lambda d: {**d, "val": []}, "labels are not 0 to 0"),
        (lambda d: {**d, "test": [["../cat_2.jpg", 1, "tabby_cat"]]}, "leaves"),
        (lambda d: {**d, "test": [["none.jpg", 1, "tabby_cat"]]}, "1 of 1 images are not in"),
        (lambda d: {**d, "test": d["test"] * 2}, "lists an image twice"),
    ],
)
def test_a_wrong_split_file_is_one_line(tmp_path, change, message):
    write_coop(tmp_path, change)
    with pytest.raises(UserError, match=message):
        find_data("pets-coop", tmp_path)[1]()


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_lists(tmp_path, kind):
    rows = {"train": [("a/1.png", "dog"), ("a/2.png", "house cat")], "test": [("b/3.png", "House_Cat")]}
    for part, found in rows.items():
        for i, (path, _) in enumerate(found):
            picture(tmp_path / path, i)
        file = tmp_path / f"{part}.{kind}"
        if kind == "csv":
            file.write_text("label,path\n" + "".join(f"{label},{path}\n" for path, label in found))
        elif kind == "jsonl":
            file.write_text("".join(json.dumps({"path": path, "label": label, "more": 1}) + "\n" for path, label in found))
        else:
            parquet.write_table(pyarrow.table({"path": [path for path, _ in found], "label": [label for _, label in found]}), file)
    (tmp_path / "classes.txt").write_text("house cat\ndog\n")
    data = find_data(str(tmp_path), None)[1]()
    assert data.class_names == ("house cat", "dog")
    assert (labels(data.train), labels(data.test)) == ([1, 0], [0])
    (tmp_path / "classes.txt").write_text("dog\nhouse\n")
    with pytest.raises(UserError, match="is not in"):
        find_data(str(tmp_path), None)[1]()


@pytest.mark.parametrize("spec", SETS, ids=lambda spec: spec.name)
def test_what_is_missing_comes_with_steps(tmp_path, spec):
    with pytest.raises(UserError, match="--data-root") as without:
        find_data(spec.name, None)
    with pytest.raises(UserError, match="is missing") as missing:
        find_data(spec.name, tmp_path)
    for error in (without, missing):
        assert spec.steps in str(error.value)
        assert "\n" not in str(error.value)
    assert spec.needs[0].replace("|", " or ") in str(missing.value)
    assert check_templates(spec.templates) == spec.templates


def test_names_are_unique_and_unknown_ones_say_what_there_is():
    assert len({spec.name for spec in SETS}) == len(SETS)
    with pytest.raises(UserError, match="one of cifar10, cifar100, pets"):
        find_data("oxford105", None)

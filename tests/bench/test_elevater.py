"""ELEVATER's and CLIP_benchmark's layouts, on tiny files in the real formats."""

from __future__ import annotations

import base64
import json
import zipfile

import numpy as np
import pytest

from finelens.bench.rows.measures import measure, stated
from finelens.bench.sets.find import find_data
from finelens.errors import UserError
from tests.bench.small_files import jpeg, statuses
from tests.bench.test_sets import labels
from tests.bench.test_shards import write_tar


def write_zip(path, members, kind=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", kind) as archive:
        for name, data in members:
            archive.writestr(name, data)


@pytest.fixture
def indexed(tmp_path):
    """A set with index files and archives."""
    folder = tmp_path / "oxford-iiit-pets"
    folder.mkdir()
    (folder / "labels.txt").write_text("house cat\ndog\n")
    write_zip(folder / "train.zip", [("1.jpg", jpeg(1)), ("a b/2.jpg", jpeg(2))])
    write_zip(folder / "val.zip", [("3.png", jpeg(3, "PNG")), ("4.jpg", b"damaged")], zipfile.ZIP_DEFLATED)
    (folder / "train.txt").write_text("train.zip@1.jpg 1\ntrain.zip@a b/2.jpg 0\n")
    (folder / "test.txt").write_text("val.zip@3.png 1\r\nval.zip@4.jpg 0\r\n")
    (folder / "val.txt").write_text("val.zip@3.png 1\n")
    return folder


def test_index_files_over_archives(indexed):
    data = find_data("oxford-iiit-pets", indexed.parent)[1]()
    assert (data.name, data.class_names, data.layout, data.split) == ("oxford-iiit-pets", ("house cat", "dog"), "elevater", "train.txt and test.txt")
    assert (labels(data.train), labels(data.test)) == ([1, 0], [1, 0])
    assert (statuses(data.train), statuses(data.test)) == (["ok", "ok"], ["ok", "corrupt"])
    assert [data.train.images[i].data for i in (1, 0)] == [jpeg(2), jpeg(1)]
    assert data.train.names() == ["train.zip@1.jpg", "train.zip@a b/2.jpg"]
    (indexed / "train.txt").unlink()
    assert len(find_data(str(indexed), None)[1]().train.images) == 0


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("val.zip@3.png 0,2", "'2' is none of the labels 0 to 1"),
        ("val.zip@3.png 2", "'2' is none of the labels 0 to 1"),
        ("val.zip@3.png", "is none of the labels"),
        ("val.zip@5.png 0", "has no 5.png"),
        ("other.zip@3.png 0", "other.zip: No such file"),
        ("../val.zip@3.png 0", "is not in"),
        ("val.zip@3.png 0\nx.png 1", "some of its images are in archives and some are not"),
        ("../x.png 1", "leaves"),
    ],
)
def test_an_index_that_does_not_fit(indexed, line, message):
    (indexed / "test.txt").write_text(line + "\n")
    with pytest.raises(UserError, match=message):
        find_data(str(indexed), None)[1]()


def test_an_archive_that_is_none(indexed):
    (indexed / "val.zip").write_bytes(b"no")
    with pytest.raises(UserError, match="put the set's archives there, packed"):
        find_data(str(indexed), None)[1]()


def coco(images, annotations, names=("cat", "dog")):
    return {"images": images, "annotations": annotations, "categories": [{"id": 3 - i, "name": name} for i, name in enumerate(reversed(names), 1)]}


def test_index_files_in_the_form_of_coco(tmp_path):
    write_zip(tmp_path / "i.zip", [("1.jpg", jpeg(1)), ("2.jpg", jpeg(2))])
    rows = [{"image_id": 7, "category_id": 2}, {"image_id": 8, "category_id": 1}]
    test = coco([{"id": 8, "file_name": "2.jpg", "zip_file": "i.zip"}, {"id": 7, "file_name": "i.zip@1.jpg"}], rows)
    (tmp_path / "test.json").write_text(json.dumps(test))
    data = find_data(str(tmp_path), None)[1]()
    assert (data.class_names, labels(data.test), data.split) == (("cat", "dog"), [0, 1], "test.json")
    assert [data.test.images[i].data for i in range(2)] == [jpeg(2), jpeg(1)]
    (tmp_path / "test.json").write_text(json.dumps(coco([{"id": 9, "file_name": "i.zip@1.jpg"}], rows)))
    with pytest.raises(UserError, match="each image with a category"):
        find_data(str(tmp_path), None)[1]()


def test_tables_of_images(tmp_path):
    def line(name, data, end="\n"):
        return f'x\t[{{"class": "{name}"}}]\t{data if isinstance(data, str) else base64.b64encode(data).decode()}{end}'

    (tmp_path / "train.tsv").write_text(line("dog", jpeg(1)) + "\n" + line("house_cat", jpeg(2)))
    (tmp_path / "test.tsv").write_text(line("dog", jpeg(3), "\r\n") + line("dog", "no base64", ""))
    data = find_data(str(tmp_path), None)[1]()
    assert data.class_names == ("dog", "house_cat")
    assert (labels(data.train), labels(data.test)) == ([0, 1], [0, 0])
    assert statuses(data.test) == ["ok", "corrupt"]
    assert [data.train.images[i].data for i in (1, 0)] == [jpeg(2), jpeg(1)]
    (tmp_path / "classes.txt").write_text("House cat\ndog\n")
    assert labels(find_data(str(tmp_path), None)[1]().train) == [1, 0]
    (tmp_path / "classes.txt").write_text("lion\ndog\n")
    with pytest.raises(UserError, match="'house_cat' is not in"):
        find_data(str(tmp_path), None)[1]()
    (tmp_path / "test.tsv").write_text("x\tdog\tAAAA\n")
    with pytest.raises(UserError, match=r"test\.tsv, row 1: expected an identity"):
        find_data(str(tmp_path), None)[1]()


def test_each_set_has_the_measure_that_elevater_states():
    measures = {"accuracy": 0.5, "class_mean_accuracy": 0.4, "map_11_points": 0.3}
    assert stated("oxford-iiit-pets", measures) == {"elevater": 0.4}
    assert stated("cifar-10", measures) == {"elevater": 0.5}
    assert stated("pets37", measures) == {} == stated("hateful-memes", measures)


def write_clip_benchmark(folder, count):
    (folder / "classnames.txt").write_text("cat\ndog\n")
    (folder / "zeroshot_classification_templates.txt").write_text("a photo of a {c}.\nart of the {c}.\n")
    for number in range(count):
        write_tar(folder / f"test/{number}.tar", [(f"s{number:07}.webp", jpeg(number, "WEBP")), (f"s{number:07}.cls", str(number % 2).encode())])
    (folder / "test/nshards.txt").write_text(f"{count}\n")


def test_shards_of_clip_benchmark(tmp_path):
    write_clip_benchmark(tmp_path, 11)
    data = find_data(str(tmp_path), None)[1]()
    assert data.templates == ("a photo of a {}.", "art of the {}.")
    # By number, not by letter: 10 comes last.
    assert data.test.names()[-1].startswith("10.tar/")
    assert labels(data.test) == [0, 1] * 5 + [0]
    assert (len(data.train.images), data.split) == (0, "0 train and 11 test shards")
    (tmp_path / "test/3.tar").unlink()
    with pytest.raises(UserError, match=r"nshards\.txt says .*11.* and there are 10 shards"):
        find_data(str(tmp_path), None)[1]()


def test_captions_are_no_classes(tmp_path):
    write_clip_benchmark(tmp_path, 1)
    (tmp_path / "dataset_type.txt").write_text("retrieval\n")
    with pytest.raises(UserError, match=r"dataset_type\.txt calls it .*retrieval"):
        find_data(str(tmp_path), None)[1]()


def test_classes_without_any_probability_are_not_among_the_first_five():
    targets, logits = np.array([0, 3, 6]), np.full((3, 7), -np.inf)
    logits[:, 0] = 0.0
    found, right = measure(targets, {"logits": logits}, {name: np.zeros((3, 7)) for name in ("templates", "descriptions")}, list("abcdefg"))
    # Class 0 has all of the probability; of the six that are alike the first four come next, in their order.
    assert right.tolist() == [True, False, False]
    assert found["top5_accuracy"] == pytest.approx(2 / 3)

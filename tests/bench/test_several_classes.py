"""Photographs of several classes: read from the layouts of VOC 2007, scored by the order within each class, and no label reaches a method."""

from __future__ import annotations

import base64
import io
import json

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import average_precision_score

from finelens.bench.rows.context import Context, Start
from finelens.bench.rows.matrix import describe
from finelens.bench.rows.measures import measure_several
from finelens.bench.rows.results import ResultsFile, read_results
from finelens.bench.sets.find import find_data
from finelens.bench.tables.leaderboard import leaderboard
from finelens.bench.tables.summary import summary
from finelens.bench.tables.table import markdown_runs, markdown_tables
from finelens.errors import UserError
from finelens.evaluation.average_precision import interval, mean_average_precision
from finelens.evaluation.elevater import map_11_points
from tests.bench.small_files import jpeg
from tests.bench.test_elevater import coco, write_zip
from tests.bench.test_shards import write_tar
from tests.bench.world import row, write_set
from tests.toy import CLASSES, QUIET, picture

# Five photographs; by score the first class comes 1st, 3rd and 4th, the second 1st and 5th.
TARGETS = np.array([[1, 0], [0, 1], [1, 0], [1, 1], [0, 0]], dtype=bool)
SCORES = np.array([[0.9, 0.1], [0.8, 0.7], [0.5, 0.6], [0.4, 0.05], [0.1, 0.3]])


def test_average_precision_by_hand():
    # Shares of the class's own among all down to each of them.
    first, second = (1 / 1 + 2 / 3 + 3 / 4) / 3, (1 / 1 + 2 / 5) / 2
    assert mean_average_precision(TARGETS, SCORES) == pytest.approx((first + second) / 2)
    # 11 points: recalls up to 0.3 are reached at precision 1, up to 1.0 at no better than 3/4 (then 2/5 beyond a half for the second).
    eleven = (4 + 7 * 0.75) / 11, (6 + 5 * 0.4) / 11
    assert map_11_points(TARGETS, SCORES) == pytest.approx(sum(eleven) / 2)


def test_average_precision_is_scikit_learns_with_ties_and_without_absent_classes():
    rng = np.random.default_rng(0)
    targets, scores = rng.random((40, 4)) < 0.3, rng.integers(0, 6, (40, 4)) / 5
    targets[:, 3] = False
    expected = np.mean([average_precision_score(targets[:, c], scores[:, c]) for c in range(3)])
    assert mean_average_precision(targets, scores) == pytest.approx(expected)
    low, high = interval(targets, scores)
    assert low < expected < high
    # Scores against themselves differ in no resample.
    assert interval(targets, scores, scores) == (0.0, 0.0)
    better = targets + 0.01 * scores
    assert interval(targets, better, scores)[0] > 0


def test_measures_have_nothing_that_needs_one_answer():
    logits = np.log(SCORES)
    found = measure_several(TARGETS, {"logits": logits}, {"templates": -logits, "descriptions": logits})
    assert found["mean_average_precision"] == mean_average_precision(TARGETS, logits)
    assert found["map_11_points"] == map_11_points(TARGETS, SCORES / SCORES.sum(1, keepdims=True))
    assert found["mean_average_precision_difference"] == found["mean_average_precision"] - found["zero_shot_mean_average_precision"]
    assert found["description_ensemble_mean_average_precision"] == found["mean_average_precision"]
    assert found["mean_average_precision_difference_interval"][1] >= found["mean_average_precision_difference"]
    assert (found["classes_per_image"], found["n"]) == (1.0, 5)
    assert not {"accuracy", "top5_accuracy", "ece", "nll", "macro_f1", "gain", "difference"} & set(found)


def sets_of(part):
    return part.labels.read().tolist()


def test_index_files_with_several_labels(tmp_path):
    write_zip(tmp_path / "i.zip", [(f"{i}.jpg", jpeg(i)) for i in range(3)])
    (tmp_path / "labels.txt").write_text("cat\ndog\nsofa\n")
    (tmp_path / "test.txt").write_text("i.zip@0.jpg 0,2\ni.zip@1.jpg 1\n")
    (tmp_path / "train.txt").write_text("i.zip@2.jpg 1\n")
    data = find_data(str(tmp_path), None)[1]()
    assert data.test.labels.several
    assert (sets_of(data.test), sets_of(data.train)) == ([[1, 0, 1], [0, 1, 0]], [[0, 1, 0]])
    (tmp_path / "test.txt").write_text("i.zip@0.jpg 0,3\n")
    with pytest.raises(UserError, match="'3' is none of the labels 0 to 2"):
        find_data(str(tmp_path), None)[1]()


def test_several_annotations_in_the_form_of_coco(tmp_path):
    write_zip(tmp_path / "i.zip", [("1.jpg", jpeg(1)), ("2.jpg", jpeg(2))])
    images = [{"id": i, "file_name": f"i.zip@{i}.jpg"} for i in (1, 2)]
    pairs = [(1, 2), (2, 1), (1, 2)]
    rows = [{"image_id": image, "category_id": category} for image, category in pairs]
    (tmp_path / "test.json").write_text(json.dumps(coco(images, rows)))
    # Two boxes of one class are one class.
    assert sets_of(find_data(str(tmp_path), None)[1]().test) == [1, 0]
    (tmp_path / "test.json").write_text(json.dumps(coco(images, [*rows, {"image_id": 1, "category_id": 1}])))
    assert sets_of(find_data(str(tmp_path), None)[1]().test) == [[1, 1], [1, 0]]


def test_tables_with_several_classes_in_a_cell(tmp_path):
    def line(*names):
        told = json.dumps([{"class": name} for name in names])
        return f"x\t{told}\t{base64.b64encode(jpeg()).decode()}\n"

    (tmp_path / "test.tsv").write_text(line("dog", "cat") + line("dog"))
    data = find_data(str(tmp_path), None)[1]()
    assert (data.class_names, sets_of(data.test)) == (("cat", "dog"), [[1, 1], [0, 1]])
    (tmp_path / "test.tsv").write_text(line())
    with pytest.raises(UserError, match="image 1 has no class"):
        find_data(str(tmp_path), None)[1]()


def npy(values, **kinds):
    file = io.BytesIO()
    np.save(file, np.array(values, **kinds))
    return file.getvalue()


def write_multilabel(folder, contents):
    (folder / "classnames.txt").write_text("cat\ndog\n")
    (folder / "dataset_type.txt").write_text("multilabel\n")
    members = [(f"s{i}.{kind}", data) for i, content in enumerate(contents) for kind, data in (("jpg", jpeg(i)), ("npy", content))]
    write_tar(folder / "test/0.tar", members)


def test_shards_of_clip_benchmark_with_several_labels(tmp_path):
    write_multilabel(tmp_path, [npy([1, 1]), npy([0, 0]), npy([False, True])])
    data = find_data(str(tmp_path), None)[1]()
    assert (sets_of(data.test), len(data.train.labels), data.train.labels.several) == ([[1, 1], [0, 0], [0, 1]], 0, True)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (npy([1, 0, 1]), r"shape \(3,\); expected one number for each of the 2 classes"),
        (npy([{"a": 1}, None], dtype=object), "no NumPy file of numbers"),
        (b"cat", "no NumPy file of numbers"),
    ],
)
def test_a_label_that_is_no_set_of_classes(tmp_path, content, message):
    write_multilabel(tmp_path, [content])
    with pytest.raises(UserError, match=message):
        find_data(str(tmp_path), None)[1]()


@pytest.fixture(scope="module")
def voc(tmp_path_factory, tiny_vit):
    """A set that is called as ELEVATER calls VOC 2007; every photograph of class 0 is one of class 1 as well."""
    folder = tmp_path_factory.mktemp("several") / "voc-2007-classification"
    folder.mkdir()
    (folder / "labels.txt").write_text("\n".join(CLASSES) + "\n")
    for part, first in (("train", 0), ("test", 50)):
        members = []
        for kind in range(len(CLASSES)):
            for seed in range(first, first + 3):
                file = io.BytesIO()
                Image.fromarray(picture(kind, seed)).save(file, "PNG")
                members.append((f"{kind}-{seed}.png", file.getvalue()))
        write_zip(folder / f"{part}.zip", members)
        lines = [f"{part}.zip@{name} {'0,1' if name[0] == '0' else name[0]}" for name, _ in members]
        (folder / f"{part}.txt").write_text("\n".join(lines) + "\n")
    return Context(find_data(str(folder), None)[1](), Start(f"local:{tiny_vit}", precision="float32"), QUIET)


@pytest.mark.parametrize("protocol", ["inductive", "transductive", "online", "noise-2"])
def test_rows_hold_average_precisions_alone(voc, protocol):
    found = row(voc, "zero-shot", protocol)
    measures = found.measures
    assert found.status == "ok"
    assert measures["elevater"] == measures["map_11_points"]
    assert measures["mean_average_precision"] == pytest.approx(measures["zero_shot_mean_average_precision"])
    assert (measures["n"], measures["classes_per_image"]) == (12, 1.25)
    assert measures["absent_classes"] == (2 if protocol == "noise-2" else 0)
    assert "accuracy" not in measures
    assert found.correct == ""
    assert "mean average precision" in describe(found)


@pytest.mark.parametrize("method", ["gda-em", "upl"])
def test_methods_adapt_without_a_label(voc, method):
    options = ("training.epochs=1",) if method == "upl" else ()
    found = row(voc, method, options=options)
    # Labels are sealed while a method runs: reading them would have made this "broke_a_rule".
    assert (found.status, found.reason) == ("ok", "")
    assert 0 < found.measures["mean_average_precision"] <= 1


@pytest.mark.parametrize("protocol", ["few-1", "fewshot-1", "longtail-10", "partial-half", "unknown-half", "balanced"])
def test_protocols_of_one_class_are_skipped(voc, protocol):
    found = row(voc, "gda-em", protocol)
    assert found.status == "skipped"
    assert "one class each" in found.reason


def test_tables_keep_both_kinds_of_sets_apart(voc, tmp_path, tiny_vit):
    from tests.bench.world import make_context

    several = row(voc, "zero-shot")
    file = ResultsFile(tmp_path / "r.jsonl")
    file.append(several)
    only = read_results([file.path])
    assert "voc-2007-classification" in markdown_tables(only, "mean_average_precision")
    for call in (markdown_tables, markdown_runs, summary, leaderboard):
        with pytest.raises(UserError, match=r"voc-2007-classification have several classes and no accuracy: .*--measure mean_average_precision"):
            call(only)
    file.append(row(make_context(write_set(tmp_path / "toy", 2, 2), tiny_vit), "zero-shot"))
    both = read_results([file.path])
    for text in (markdown_tables(both), markdown_runs(both), summary(both), leaderboard(both)):
        assert "have several classes and no accuracy" in text
    assert "| method | toy |" in markdown_tables(both)
    assert "| method | voc-2007-classification | toy |" in markdown_tables(both, "map_11_points")

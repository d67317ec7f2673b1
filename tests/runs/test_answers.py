"""A run with hints: the person is right in ``predictions.csv`` with every kind of method, and what was taught is in the saved model."""

from __future__ import annotations

import json
import shutil
from collections import Counter

import numpy as np
import pytest

import finelens
from finelens import api
from finelens.core.console import Console
from finelens.errors import UserError
from finelens.reporting.record import read_run
from finelens.reporting.review.answers import earlier_answers
from finelens.runs.classifier import load_run
from finelens.runs.evaluate import summary
from finelens.runs.folder import RunFolder
from finelens.storage.predictions import read_predictions
from tests.runs.test_to_file import packed
from tests.solvers.data import cloud
from tests.toy import CLASSES, QUIET, options_for, write_classes, write_photos

X, W, TRUTH = cloud([12, 9, 9])


@pytest.mark.parametrize("method", ["consensus", "tip-adapter", "dpa"])
def test_the_person_is_right(tmp_path, tiny_vit, method):
    photos = write_photos(tmp_path / "photos", CLASSES)
    classes = write_classes(tmp_path / "classes.txt", CLASSES)
    wrong = {f"{CLASSES[0]}/0.png": CLASSES[1], f"{CLASSES[1]}/1.png": CLASSES[2], f"{CLASSES[2]}/0.png": ""}
    hints = tmp_path / "hints.csv"
    hints.write_text("path,label\n" + "".join(f"{path},{label}\n" for path, label in wrong.items()))
    options = options_for(method, **({"epochs": 1} if method == "dpa" else {}))
    api.adapt(photos, classes, tmp_path / "run", backbone=f"local:{tiny_vit}", method=method, hints=hints, options=options, console=QUIET)
    rows = {row.path: row for row in read_predictions(tmp_path / "run" / "predictions.csv")}
    for path, label in wrong.items():
        assert rows[path].answered
        assert (rows[path].label, rows[path].probability) == ((label, 1.0) if label else (None, None))
    assert {path for path, row in rows.items() if row.answered == "yes"} == set(wrong)
    # The report is written, and a third round starts with all answers, that of no class among them.
    assert (tmp_path / "run" / "report.html").is_file()
    record = read_run(RunFolder.open(tmp_path / "run", lock=False))
    assert earlier_answers(record) == wrong
    told = record.answered
    assert (told.answers, told.none, told.named) == (3, 1, 2)
    # A method that tests its answers says that two do not tell how accurate it is; another says only what the unadapted model had said.
    assert (told.estimate, told.few_tests) == (None, 2 if method == "consensus" else 0)
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert page.index("What a person answered") < page.index('id="found"')
    assert f"had named {told.contradicted} of the 2 with a class otherwise" in page
    assert ("it takes 5 looks, and 2 tell" in page) == (method == "consensus")
    api.review(tmp_path / "run", console=QUIET)
    assert not set(wrong) & {question.path for question in finelens.ask(tmp_path / "run", 5, console=QUIET)}


def test_a_copy_of_an_answered_photograph_has_its_answer(tmp_path, tiny_vit):
    photos = write_photos(tmp_path / "photos", CLASSES)
    classes = write_classes(tmp_path / "classes.txt", CLASSES)
    first, second, other = (f"{CLASSES[c]}/{i}.png" for c, i in ((0, 1), (1, 1), (2, 1)))
    for original, copies in ((first, ("one.png", "two.png")), (second, ("nobody.png",)), (other, ("told.png", "rest.png"))):
        for copy in copies:
            shutil.copy(photos / original, photos / copy)
    hints = tmp_path / "hints.csv"
    hints.write_text(f"path,label\n{first},{CLASSES[2]}\n{second},\n{other},{CLASSES[0]}\ntold.png,{CLASSES[1]}\n")
    api.adapt(photos, classes, tmp_path / "run", backbone=f"local:{tiny_vit}", method="consensus", hints=hints, console=QUIET)
    rows = {row.path: row for row in read_predictions(tmp_path / "run" / "predictions.csv")}
    assert {path: (row.label, row.answered) for path, row in rows.items() if row.answered} == {
        first: (CLASSES[2], "yes"),
        "one.png": (CLASSES[2], "copy"),
        "two.png": (CLASSES[2], "copy"),
        second: (None, "yes"),
        "nobody.png": (None, "copy"),
        other: (CLASSES[0], "yes"),
        "told.png": (CLASSES[1], "yes"),
    }
    # Of the third nobody knows which is right: each keeps its own, and the last has the model's.
    assert rows["rest.png"].label is not None
    record = read_run(RunFolder.open(tmp_path / "run", lock=False))
    contradiction = f"the same photograph was answered differently: {other} as '{CLASSES[0]}', told.png as '{CLASSES[1]}'"
    assert record.answered.contradictions == (contradiction,)
    assert record.answered.copies == 3
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "for 3 exact copies of what they answered too" in page
    assert "Contradiction:" in page
    # What is said of the folder is what is written, in the report and on the card.
    counts = Counter(row.label for row in rows.values() if row.label is not None)
    signals = record.measured.signals
    assert signals.largest == max(counts.values()) / signals.images
    assert signals.unused == len(set(CLASSES) - set(counts))
    card = (tmp_path / "run" / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert f"Largest class: {signals.largest:.1%} of the images" in card
    assert "by the model alone and not by what a person named" in card


def test_what_hints_taught_is_in_the_saved_model(tmp_path):
    np.save(tmp_path / "x.npy", X)
    np.save(tmp_path / "w.npy", W)
    (tmp_path / "names.txt").write_text("a\nb\nc\n")
    api.adapt(tmp_path / "x.npy", tmp_path / "names.txt", tmp_path / "one", prototypes=tmp_path / "w.npy", method="consensus", console=QUIET)
    asked = finelens.ask(tmp_path / "one", 4, console=QUIET)
    # A person who says otherwise each time, so that the label-free answer loses its say.
    told = {question.path: "bca"["abc".index(question.expected)] for question in asked}
    (tmp_path / "one" / "hints.csv").write_text("path,label\n" + "".join(f"{path},{label}\n" for path, label in told.items()))
    api.adapt(
        tmp_path / "x.npy",
        tmp_path / "names.txt",
        tmp_path / "two",
        prototypes=tmp_path / "w.npy",
        method="consensus",
        hints=tmp_path / "one" / "hints.csv",
        console=QUIET,
    )
    rows = api.predict(tmp_path / "two", tmp_path / "x.npy", tmp_path / "p.csv", console=QUIET)
    kept = {row.path: row for row in read_predictions(tmp_path / "two" / "predictions.csv")}
    assert all(row.probability == kept[row.path].probability for row in rows if not kept[row.path].answered)
    before = api.predict(tmp_path / "one", tmp_path / "x.npy", tmp_path / "q.csv", console=QUIET)
    assert [row.probability for row in before] != [row.probability for row in rows]


def test_a_new_name_is_a_class_from_its_answers_on(tiny_vit, tmp_path, capsys):
    photos, listed = write_photos(tmp_path / "photos"), CLASSES[:3]
    classes = write_classes(tmp_path / "classes.txt", listed)
    hints = tmp_path / "hints.csv"
    hints.write_text(f"path,label\n{CLASSES[3]}/0.png,{CLASSES[3]}\n{CLASSES[3]}/3.png,{CLASSES[3]}\n{CLASSES[0]}/0.png,none\n")
    options = options_for("consensus")
    found = api.adapt(photos, classes, tmp_path / "run", backbone=f"local:{tiny_vit}", hints=hints, options=options, console=Console())
    rows = {row.path: row for row in found.rows}
    said = capsys.readouterr().err
    assert f"new classes: '{CLASSES[3]}' from the hints join the 3 of the list" in said
    assert "1 as none of the classes), " in said
    assert rows[f"{CLASSES[0]}/0.png"].label is None
    # The photographs of that class that nobody named are found by those that were.
    assert [rows[f"{CLASSES[3]}/{i}.png"].label for i in (1, 2, 4, 5)] == [CLASSES[3]] * 4
    assert load_run(tmp_path / "run").classes == list(CLASSES)


def test_a_new_name_needs_a_row_of_the_prototypes(tmp_path):
    x, w, _ = cloud([20, 12])
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "w.npy", w)
    (tmp_path / "names.txt").write_text("a\nb\n")
    (tmp_path / "hints.csv").write_text("path,label\n0,owl\n")
    with pytest.raises(UserError, match="no row in --prototypes"):
        api.adapt(
            tmp_path / "x.npy",
            tmp_path / "names.txt",
            tmp_path / "run",
            prototypes=tmp_path / "w.npy",
            hints=tmp_path / "hints.csv",
            console=QUIET,
        )


@pytest.fixture(scope="module")
def second_round(tmp_path_factory):
    """A run on rows of features of which a person answered eight, one of them as none of the classes."""
    folder = tmp_path_factory.mktemp("second")
    truth = ["abc"[c] for c in TRUTH]
    told = {0: "a", 1: "a", 2: "a", 13: "b", 14: "b", 22: "c", 23: "c", 29: ""}
    np.save(folder / "x.npy", X)
    np.save(folder / "w.npy", W)
    (folder / "names.txt").write_text("a\nb\nc\n")
    for name, rows in (("labels.csv", dict(enumerate(truth))), ("hints.csv", told)):
        (folder / name).write_text("path,label\n" + "".join(f"row-{i:06d},{label}\n" for i, label in rows.items()))
    given = {"prototypes": folder / "w.npy", "method": "consensus", "hints": folder / "hints.csv"}
    api.adapt(folder / "x.npy", folder / "names.txt", folder / "run", **given, console=QUIET)
    return folder, told, truth


def expected(folder, told, truth):
    rows = api.predict(folder / "run", folder / "x.npy", folder / "p.csv", overwrite=True, console=QUIET)
    left = [(row.label, truth[i]) for i, row in enumerate(rows) if i not in told]
    return len(left), float(np.mean([guess == label for guess, label in left]))


def test_what_a_person_answered_measures_nothing(second_round):
    folder, told, truth = second_round
    found = finelens.evaluate(folder / "run", folder / "x.npy", folder / "labels.csv", json_file=folder / "e.json", console=QUIET)
    n, right = expected(folder, told, truth)
    assert (found["n"], found["answered_left_out"]) == (n, 8) == (len(truth) - 8, json.loads((folder / "e.json").read_text())["answered_left_out"])
    assert found["accuracy"] == pytest.approx(right)
    assert found["estimates"]["images"] == sum(found["confusion"][i][2] for i in range(len(found["confusion"]))) == n
    assert "; 8 images that a person answered in the run left out" in summary(found)


def test_copies_of_what_a_person_answered_measure_nothing_either(second_round):
    folder, told, truth = second_round
    # Elsewhere, under other names: those of the answered rows are worn by others.
    order = np.roll(np.arange(len(X)), 5)
    np.save(folder / "copy.npy", X[order])
    (folder / "copy.csv").write_text("path,label\n" + "".join(f"row-{k:06d},{truth[i]}\n" for k, i in enumerate(order)))
    found = finelens.evaluate(folder / "run", folder / "copy.npy", folder / "copy.csv", console=QUIET)
    n, right = expected(folder, told, truth)
    assert (found["n"], found["answered_left_out"], found["accuracy"]) == (n, 8, pytest.approx(right))
    # A run of before logged no contents: those that have a class are known by what it measured.
    lines = [json.loads(line) for line in (folder / "run" / "events.jsonl").read_text().splitlines()]
    shutil.copytree(folder / "run", folder / "before")
    old = [{key: value for key, value in line.items() if key != "contents"} for line in lines]
    assert old != lines
    (folder / "before" / "events.jsonl").write_text("".join(json.dumps(line) + "\n" for line in old))
    assert finelens.evaluate(folder / "before", folder / "copy.npy", folder / "copy.csv", console=QUIET)["answered_left_out"] == 7


def test_answered_photographs_are_in_no_part_of_a_measurement(second_round):
    folder, _, truth = second_round
    others = {25: "", 29: ""}
    rows = dict(enumerate(truth)) | others
    (folder / "unknown.csv").write_text("path,label\n" + "".join(f"row-{i:06d},{label}\n" for i, label in rows.items()))
    (folder / "groups.csv").write_text("path,half\n" + "".join(f"row-{i:06d},{i % 2}\n" for i in range(len(X))))
    found = finelens.evaluate(folder / "run", folder / "x.npy", folder / "unknown.csv", unknown=True, groups=folder / "groups.csv", console=QUIET)
    assert (found["unknown"]["n"], found["unknown"]["known"], found["n"]) == (1, len(X) - 9, len(X) - 9)
    assert sum(group["n"] for group in found["groups"]["half"]["groups"]) == found["n"]


def test_answers_alone_measure_nothing(second_round):
    folder, *_ = second_round
    with pytest.raises(UserError, match="give labels of others"):
        finelens.evaluate(folder / "run", folder / "x.npy", folder / "hints.csv", unknown=True, console=QUIET)


def test_the_report_says_what_it_leaves_out(second_round):
    folder, *_ = second_round
    page = finelens.report(folder / "run", labels=folder / "labels.csv", console=QUIET).read_text(encoding="utf-8")
    assert "8 more that a person answered in this run are in no number here." in page
    assert json.loads((folder / "run" / "verdict.json").read_text())["evaluation"]["answered_left_out"] == 8
    assert "22 labelled images (8 that a person answered left out)" in (folder / "run" / "MODEL_CARD.md").read_text()


@pytest.mark.parametrize("kind", ["features", "tar", "parquet"])
def test_answers_about_what_lies_in_shards(tmp_path, tiny_vit, kind):
    """A folder of shards is no folder of photographs: answers name what is in them, and questions can be filled in."""
    photos, classes = write_photos(tmp_path / "photos", per_class=4), write_classes(tmp_path / "classes.txt")
    place = tmp_path / "shards.features"
    if kind == "features":
        finelens.features(photos, place, backbone=f"local:{tiny_vit}", console=QUIET)
    else:
        place = tmp_path / "shards"
        packed(kind, photos, place)
    given = {"backbone": f"local:{tiny_vit}", "options": options_for("consensus"), "console": QUIET}
    api.adapt(place, classes, tmp_path / "run", **given)
    asked = api.ask(tmp_path / "run", 3, csv=tmp_path / "questions.csv", console=QUIET)
    header, *lines = (tmp_path / "questions.csv").read_text().splitlines()
    (tmp_path / "questions.csv").write_text("\n".join([header, *(line.replace(",", f",{CLASSES[1]}", 1) for line in lines), ""]))
    api.adapt(place, classes, tmp_path / "run-2", hints=tmp_path / "questions.csv", **given)
    rows = {row.path: row for row in read_predictions(tmp_path / "run-2" / "predictions.csv")}
    assert {look.path for look in asked} == {name for name, row in rows.items() if row.answered and row.label == CLASSES[1]}

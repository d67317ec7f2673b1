"""Conformal sets: the threshold against its definition, the promise against many draws, the refusals."""

from __future__ import annotations

import csv
import json
import math
import shutil

import numpy as np
import pytest

import finelens
from finelens import api
from finelens.cli import main
from finelens.core.schemas import SET_COLUMNS
from finelens.errors import UserError
from finelens.evaluation.conformal import calibrate, labels_needed
from finelens.storage.predictions import read_predictions, softmax
from tests.toy import CLASSES, QUIET, options_for, write_classes, write_photos


def draw(rng, n: int, classes: int = 4, sharp: float = 3.0):
    """Overconfident probabilities (N, C) and classes drawn from flatter ones."""
    z = 2 * rng.normal(size=(n, classes))
    y = (softmax(z).cumsum(1) > rng.random((n, 1))).argmax(1)
    return softmax(sharp * z), y


@pytest.mark.parametrize(("coverage", "needed"), [(0.5, 1), (0.8, 4), (0.9, 9), (0.95, 19), (0.99, 99), (2 / 3, 2), (0.1, 1)])
def test_labels_needed_are_those_whose_quantile_exists(coverage, needed):
    assert labels_needed(coverage) == needed
    assert math.ceil(round((needed + 1) * coverage, 9)) <= needed
    assert needed == 1 or math.ceil(round(needed * coverage, 9)) > needed - 1


def test_threshold_is_the_quantile_written_out():
    p, y = draw(np.random.default_rng(0), 37)
    scores = sorted(1 - p[i, y[i]] for i in range(37))
    found = calibrate(p, y, 0.8)
    assert found.threshold == pytest.approx(1 - scores[math.ceil(38 * 0.8) - 1])
    inside = found.contains(p)
    # Of the labelled images themselves, exactly those up to the quantile, and those whose likeliest class is right.
    expected = [scores_i <= scores[math.ceil(38 * 0.8) - 1] + 1e-9 or p[i].argmax() == y[i] for i, scores_i in enumerate(1 - p[np.arange(37), y])]
    assert inside[np.arange(37), y].tolist() == expected


@pytest.mark.parametrize(("coverage", "n"), [(0.9, 9), (0.9, 40), (0.8, 30), (0.95, 19)])
def test_promise_holds_over_draws_of_labels(coverage, n):
    rng, covered = np.random.default_rng(1), []
    for _ in range(400):
        p, y = draw(rng, n + 40)
        inside = calibrate(p[:n], y[:n], coverage).contains(p[n:])
        covered.append(inside[np.arange(40), y[n:]].mean())
    assert np.mean(covered) >= coverage - 3 * np.std(covered) / math.sqrt(400)


def test_sets_are_never_empty_and_hold_the_answer():
    p, _ = draw(np.random.default_rng(2), 200, sharp=0.5)
    easy = np.zeros((50, 4))
    easy[:, 0] = 1
    found = calibrate(easy, np.zeros(50, dtype=int), 0.9)
    assert found.threshold == 1
    inside = found.contains(p)
    assert (inside.sum(1) == 1).all()
    assert (inside.argmax(1) == p.argmax(1)).all()
    assert calibrate(easy, np.ones(50, dtype=int), 0.9).contains(p).all()


def test_sets_grow_with_the_coverage():
    p, y = draw(np.random.default_rng(3), 400)
    sizes = [calibrate(p[:200], y[:200], coverage).contains(p[200:]).sum() for coverage in (0.5, 0.7, 0.9, 0.99)]
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[-1]


def test_too_few_labels_and_bad_coverage_are_refused_with_the_number_needed():
    p, y = draw(np.random.default_rng(4), 8)
    with pytest.raises(UserError, match=r"8 labelled photographs are too few for coverage 0\.9: 9 are needed"):
        calibrate(p, y, 0.9)
    for coverage in (0.0, 1.0, -0.5, 1.5, float("nan")):
        with pytest.raises(UserError, match="--coverage"):
            calibrate(p, y, coverage)


def test_guarantee_says_how_many_labels_it_rests_on():
    p, y = draw(np.random.default_rng(5), 25)
    assert "at least 0.9" in (text := calibrate(p, y, 0.9).guarantee())
    assert "25 labelled" in text


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_vit):
    """A finished run, and labels of its photographs."""
    folder = tmp_path_factory.mktemp("sets")
    photos, classes = write_photos(folder / "photos"), write_classes(folder / "classes.txt")
    (photos / "broken.jpg").write_bytes(b"\xff\xd8\xff nothing")
    api.adapt(photos, classes, folder / "run", backbone=f"local:{tiny_vit}", method="stata", options=options_for("stata"), console=QUIET)
    lines = [f"{path.relative_to(photos).as_posix()},{path.parent.name}" for path in sorted(photos.glob("*/*.png"))]
    (folder / "labels.csv").write_text("path,label\n" + "\n".join(lines) + "\n")
    return folder


def sets(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_predict_writes_sets_beside_the_predictions_and_says_what_they_promise(run, capsys):
    with pytest.raises(SystemExit) as code:
        main(["predict", str(run / "run"), str(run / "photos"), "--csv", str(run / "new.csv"), "--calibrate", str(run / "labels.csv")])
    assert code.value.code == 0
    said = capsys.readouterr().err
    assert "at least 0.9" in said
    assert "24 labelled" in said
    found = sets(run / "new.sets.csv")
    rows = read_predictions(run / "new.csv")
    assert [row["path"] for row in found] == [row.path for row in rows]
    assert tuple(found[0]) == SET_COLUMNS
    p = finelens.load(run / "run").predict_proba(run / "photos")
    readable = [i for i, row in enumerate(rows) if row.status == "ok"]
    truth = [CLASSES.index(rows[i].path.split("/")[0]) for i in readable]
    rule = calibrate(p[readable], truth, 0.9)
    for i, row in enumerate(found):
        if i not in readable:
            assert (row["set"], row["size"], row["status"]) == ("", "", "corrupt")
            continue
        names = json.loads(row["set"])
        assert len(names) == int(row["size"])
        assert names[0] == rows[i].label
        assert set(names) == {CLASSES[c] for c in np.flatnonzero(rule.contains(p[i : i + 1])[0])}


def test_labels_of_files_that_are_not_there_are_counted(run, capsys):
    labels = run / "more.csv"
    labels.write_text((run / "labels.csv").read_text() + f"gone.png,{CLASSES[0]}\ngone too.png,{CLASSES[0]}\n")
    for name, own in (("all", run / "labels.csv"), ("some", labels)):
        api.predict(run / "run", run / "photos", run / f"{name}.csv", calibrate=own)
    assert sets(run / "all.sets.csv") == sets(run / "some.sets.csv")
    said = capsys.readouterr().err
    assert "2 labels are left out of the calibration, the first because: labels file" in said
    assert "there is no file 'gone.png'" in said
    labels.write_text(f"path,label\ngone.png,{CLASSES[0]}\n")
    with pytest.raises(UserError, match=r"there is no file 'gone\.png'.*give paths relative"):
        api.predict(run / "run", run / "photos", run / "none.csv", calibrate=labels)


def test_sets_from_python_are_those_of_the_command(run):
    api.predict(run / "run", run / "photos", run / "again.csv", calibrate=run / "labels.csv", calibrate_photos=run / "photos", console=QUIET)
    paths = sorted(run.glob("photos/*/*.png"))
    found = finelens.load(run / "run").predict_sets(paths, paths, [path.parent.name for path in paths])
    expected = {row["path"]: json.loads(row["set"]) for row in sets(run / "again.sets.csv") if row["set"]}
    assert found == [expected[path.relative_to(run / "photos").as_posix()] for path in paths]


def test_predict_refuses_before_it_writes(run):
    given = (run / "run", run / "photos", run / "refused.csv")
    with pytest.raises(UserError, match=r"24 labelled photographs are too few for coverage 0\.99: 99 are needed"):
        api.predict(*given, calibrate=run / "labels.csv", coverage=0.99, console=QUIET)
    with pytest.raises(UserError, match="with --calibrate only"):
        api.predict(*given, coverage=0.8, console=QUIET)
    (run / "refused.sets.csv").write_text("mine")
    with pytest.raises(UserError, match=r"refused\.sets\.csv"):
        api.predict(*given, calibrate=run / "labels.csv", console=QUIET)
    assert not (run / "refused.csv").exists()
    classifier, paths = finelens.load(run / "run"), sorted(run.glob("photos/*/*.png"))
    with pytest.raises(UserError, match="unknown class"):
        classifier.predict_sets(paths, paths, ["zebra"] * len(paths))
    with pytest.raises(UserError, match="3 labels for 24"):
        classifier.predict_sets(paths, paths, [CLASSES[0]] * 3)


def test_ties_are_relative_and_small_probabilities_keep_their_digits():
    # The smallest case: as a difference both are the same, as probabilities one is four times the other.
    p = np.array([[1 - 9e-10, 9e-10], [1 - 2e-10, 2e-10]])
    assert calibrate(p[:1], [1], 0.5).contains(p).tolist() == [[True, True], [True, False]]
    # One minus such a probability is one: the threshold is kept as the probability it is.
    tiny = np.array([[1 - 3e-20, 3e-20], [1 - 1e-20, 1e-20]])
    rule = calibrate(tiny[:1], [1], 0.5)
    assert rule.threshold == 3e-20
    assert rule.contains(tiny).tolist() == [[True, True], [True, False]]
    # What only rounds differently is a tie.
    assert calibrate(tiny[:1], [1], 0.5).contains(tiny[:1] * [1, 1 - 1e-7]).all()


def test_peaked_probabilities_give_the_sets_of_the_rule():
    rng = np.random.default_rng(6)
    z = rng.normal(size=(450, 37))
    y = (softmax(z).cumsum(1) > rng.random((450, 1))).argmax(1)
    p = softmax(100 * z)
    rule = calibrate(p[:50], y[:50], 0.9)
    # Written out in logarithms, where nothing is lost: the 46th largest of the 50.
    logs = 100 * z - 100 * z.max(1, keepdims=True)
    logs -= np.log(np.exp(logs).sum(1, keepdims=True))
    least = np.sort(logs[np.arange(50), y[:50]])[::-1][45]
    expected = (logs[50:] >= least - 1e-6) | (logs[50:] == logs[50:].max(1, keepdims=True))
    assert least < math.log(1e-12)
    assert (rule.contains(p[50:]) == expected).all()
    assert expected.sum(1).mean() < 37


def test_labels_that_the_run_was_told_are_left_out(run, tiny_vit, capsys):
    lines = (run / "labels.csv").read_text().splitlines()
    (run / "hints.csv").write_text("\n".join(lines[:9]) + "\n")
    given = (run / "photos", run / "classes.txt", run / "hinted")
    api.adapt(*given, hints=run / "hints.csv", backbone=f"local:{tiny_vit}", method="stata", options=options_for("stata"), console=QUIET)
    (run / "others.csv").write_text("\n".join([lines[0], *lines[9:]]) + "\n")
    # The same photographs under other names: what was answered is known by its content too.
    shutil.copytree(run / "photos", run / "copied", dirs_exist_ok=True)
    for name, labels, place in (("all", "labels.csv", "photos"), ("untold", "others.csv", "photos"), ("copies", "labels.csv", "copied")):
        api.predict(run / "hinted", run / "photos", run / f"h-{name}.csv", calibrate=run / labels, calibrate_photos=run / place)
        told = capsys.readouterr().err
        assert ("8 labels are left out of the calibration, the first because: " in told) == (name != "untold")
        assert "16 labelled" in told
    assert sets(run / "h-all.sets.csv") == sets(run / "h-untold.sets.csv") == sets(run / "h-copies.sets.csv")
    with pytest.raises(UserError, match="the run knows the answer of each of them"):
        api.predict(run / "hinted", run / "photos", run / "h-none.csv", calibrate=run / "hints.csv", console=QUIET)

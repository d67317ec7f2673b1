"""Photographs that belong together: groups, near-copies, and the answers of groups beside those of photographs."""

from __future__ import annotations

import csv
import tracemalloc

import numpy as np
import pytest
import torch
from PIL import Image

from finelens import api
from finelens.core.schemas import GROUP_COLUMNS
from finelens.errors import UserError
from finelens.evaluation.together import group_probabilities, near_copies
from finelens.images.boxes import Box
from finelens.images.discover import ImageFile, discover
from finelens.protocol import ImageRecord
from finelens.runs.group_by import GroupBy, absolute_groups
from finelens.runs.predict import Predictions
from finelens.runs.sources import source_at
from finelens.runs.together import Gathered, groups_by, together
from finelens.storage.predictions import PredictionRow, rows_from_probabilities, write_predictions
from tests.toy import CLASSES, QUIET, options_for, write_classes, write_photos


def test_near_copies_are_found_within_a_group_only():
    angle = np.radians([0, 5, 10, 90, 2])
    looks = np.stack([np.cos(angle), np.sin(angle)], 1)
    groups = ["a", "a", "a", "a", "b"]
    # 10 degrees from the first is no copy of it, though it is one of the second: what a copy names is none itself.
    assert near_copies(looks, groups, np.cos(np.radians(6))).tolist() == [0, 0, 2, 3, 4]
    assert near_copies(looks, groups, 0.0).tolist() == [0, 0, 0, 0, 4]


def test_a_group_answers_with_the_mean_of_what_is_no_copy():
    p = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.25, 0.75]])
    found = group_probabilities(p, ["a", "a", "a", "b"], np.array([0, 0, 2, 3]))
    assert found.tolist() == [[0.5, 0.5], [0.5, 0.5], [0.5, 0.5], [0.25, 0.75]]
    assert group_probabilities(p, ["a", "a", "a", "b"], np.arange(4))[0].tolist() == pytest.approx([2 / 3, 1 / 3])


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    taken = {"cam1/a.jpg": "01", "cam1/b.jpg": "03", "cam1/c.jpg": "05", "cam1/d.jpg": "09", "cam2/e.jpg": "03", "cam1/f.jpg": ""}
    for name, second in taken.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        exif = Image.Exif()
        if second:
            exif[0x0132] = f"2026:05:04 03:02:{second}"
        Image.new("RGB", (9, 9)).save(folder / name, exif=exif)
    return folder


def test_rules(photos, tmp_path):
    files = list(discover(photos))
    names = [file.name for file in files]
    assert names == [*(f"cam1/{letter}.jpg" for letter in "abcdf"), "cam2/e.jpg"]

    def found(text: str) -> list[str]:
        return groups_by(GroupBy.parse(text), names, files)

    assert found("folder") == ["cam1"] * 5 + ["cam2"]
    assert groups_by(GroupBy.parse("folder"), ["a.jpg", "b.jpg"], []) == ["a.jpg", "b.jpg"]
    # Each within two seconds of the one before it, of one camera; without a time alone.
    assert found("time:2") == ["cam1/a.jpg"] * 3 + ["cam1/d.jpg", "cam1/f.jpg", "cam2/e.jpg"]
    assert found("time:1.5") == names
    (tmp_path / "groups.csv").write_text("path,group,note\ncam1/a.jpg,fox 1,x\ncam2/e.jpg,fox 1,x\ncam1/b.jpg,,x\nno.jpg,fox 2,x\n")
    assert found(f"column:{tmp_path / 'groups.csv'}") == ["fox 1", *names[1:5], "fox 1"]
    (tmp_path / "groups.csv").write_text("path,group\nno.jpg,fox 2\n")
    with pytest.raises(UserError, match="names none of the photographs"):
        found(f"column:{tmp_path / 'groups.csv'}")
    (tmp_path / "groups.csv").write_text("path,label\nno.jpg,fox 2\n")
    with pytest.raises(UserError, match="lacks a column path or group"):
        found(f"column:{tmp_path / 'groups.csv'}")


def test_boxes_of_one_photograph_were_taken_at_one_time(photos):
    place = str(photos / "cam1" / "a.jpg")
    files = [ImageFile(place, f"cam1/a.jpg#{k}", Box(0, 0, 0.5, 1)) for k in (1, 2)]
    assert groups_by(GroupBy.parse("time:1"), [file.name for file in files], files) == ["cam1/a.jpg#1"] * 2


@pytest.mark.parametrize("text", ["", "folders", "folder:3", "time", "time:", "time:0", "time:-1", "time:x", "column", "column:"])
def test_rules_that_are_none(text):
    with pytest.raises(UserError, match="expected folder, time:SECONDS or column:FILE"):
        GroupBy.parse(text)


def test_a_file_of_groups_has_its_whole_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert absolute_groups("column:g.csv") == f"column:{tmp_path / 'g.csv'}"
    assert absolute_groups("time:3") == "time:3"


def test_a_person_answers_for_the_group():
    rows = [
        PredictionRow("a", "owl", 1.0, answered="yes"),
        PredictionRow("b", "lark", 0.75),
        PredictionRow("c", status="corrupt"),
        PredictionRow("d", "lark", 0.75),
    ]
    p = np.array([[0.25, 0.75], [0.25, 0.75], [0.25, 0.75]])
    found = together(rows, ["g", "g", "g", "h"], [0, 1, None, 2], ["owl", "lark"], p, np.eye(3))
    lines = list(csv.DictReader(found.text.splitlines()))
    assert [tuple(line.values()) for line in lines] == [
        ("a", "g", "2", "", "owl", "1", "owl", "1", "ok"),
        ("b", "g", "2", "", "owl", "1", "lark", "0.75", "ok"),
        ("c", "g", "", "", "", "", "", "", "corrupt"),
        ("d", "h", "1", "", "lark", "0.75", "lark", "0.75", "ok"),
    ]
    assert found.lines == ("groups: 2 photographs in 1 group of two and more, 0 near-copies counted once", "classes by 2 groups: owl 1, lark 1")


def test_a_run_with_groups(tiny_vit, tmp_path):
    photos = write_photos(tmp_path / "photos", per_class=3)
    (photos / CLASSES[0] / "copy.png").write_bytes((photos / CLASSES[0] / "0.png").read_bytes())
    classes = write_classes(tmp_path / "classes.txt")
    given = {"backbone": f"local:{tiny_vit}", "options": options_for("zero-shot"), "console": QUIET}
    api.zero_shot(photos, classes, tmp_path / "run", group_by="folder", **given)
    with (tmp_path / "run" / "predictions_groups.csv").open(encoding="utf-8", newline="") as file:
        lines = {line["path"]: line for line in csv.DictReader(file)}
    plain = {row.path: row for row in api.read_predictions(tmp_path / "run" / "predictions.csv")}
    assert list(lines) == list(plain)
    assert tuple(next(iter(lines.values()))) == GROUP_COLUMNS
    assert lines[f"{CLASSES[0]}/copy.png"]["copy_of"] == f"{CLASSES[0]}/0.png"
    own = [path for path in plain if path.startswith(f"{CLASSES[1]}/")]
    assert {lines[path]["group"] for path in own} == {CLASSES[1]}
    # Four classes: ``top5`` has all probabilities. Each picture of the group counts once, with its copies.
    stands = [lines[path]["copy_of"] or path for path in own]
    weights = [1 / stands.count(name) for name in stands]
    mean = {name: np.average([dict(plain[path].top5)[name] for path in own], weights=weights) for name in CLASSES}
    best = max(mean, key=lambda name: mean[name])
    for path in own:
        assert lines[path]["group_class"] == best
        assert float(lines[path]["group_probability"]) == pytest.approx(mean[best], abs=1e-4)


def test_new_photographs_with_groups(tiny_vit, tmp_path):
    photos = write_photos(tmp_path / "photos", per_class=3)
    (photos / CLASSES[0] / "copy.png").write_bytes((photos / CLASSES[0] / "0.png").read_bytes())
    (photos / CLASSES[0] / "broken.png").write_bytes(b"no picture")
    classes = write_classes(tmp_path / "classes.txt")
    given = {"backbone": f"local:{tiny_vit}", "options": options_for("zero-shot"), "console": QUIET}
    api.zero_shot(photos, classes, tmp_path / "run", group_by="folder", **given)
    whole = (tmp_path / "run" / "predictions_groups.csv").read_bytes()
    # The same photographs, the same answers of groups; without the unadapted model's answers as well.
    for name, asked in (("new", {}), ("fast", {"zero_shot": False})):
        api.predict_to(tmp_path / "run", photos, tmp_path / f"{name}.csv", group_by="folder", console=QUIET, **asked)
        assert (tmp_path / f"{name}_groups.csv").read_bytes() == whole
    api.predict_to(tmp_path / "run", photos, tmp_path / "alone.csv", console=QUIET)
    assert (tmp_path / "alone.csv").read_bytes() == (tmp_path / "new.csv").read_bytes()
    assert not (tmp_path / "alone_groups.csv").exists()
    with pytest.raises(UserError, match="--group-by needs all photographs"):
        api.predict_to(tmp_path / "run", photos, tmp_path / "part.csv", group_by="folder", shard="1/2", console=QUIET)


def test_groups_reach_over_what_is_read_at_a_time(tiny_vit, tmp_path, monkeypatch):
    photos = write_photos(tmp_path / "photos", per_class=3)
    classes = write_classes(tmp_path / "classes.txt")
    given = {"backbone": f"local:{tiny_vit}", "options": options_for("zero-shot"), "console": QUIET}
    api.zero_shot(photos, classes, tmp_path / "run", **given)
    api.predict_to(tmp_path / "run", photos, tmp_path / "whole.csv", group_by="folder", console=QUIET)
    monkeypatch.setattr("finelens.runs.predict.GROUP", 2)
    api.predict_to(tmp_path / "run", photos, tmp_path / "parts.csv", group_by="folder", console=QUIET)

    def groups(name: str) -> list[tuple[str, ...]]:
        with (tmp_path / f"{name}_groups.csv").open(encoding="utf-8", newline="") as file:
            return [(line["path"], line["group"], line["group_size"], line["copy_of"], line["group_class"]) for line in csv.DictReader(file)]

    assert groups("parts") == groups("whole")
    assert {line[2] for line in groups("parts")} == {"3"}


def gathered_peak(folder, count: int, group: int) -> tuple[int, str]:
    """Largest memory while so many photographs are put together in groups of so many, and what came out."""
    folder.mkdir()
    Image.new("RGB", (9, 9)).save(folder / "one.jpg")
    classes = [f"kind {c}" for c in range(200)]
    records = [ImageRecord(f"{i // group:05d}/{i:06d}.jpg", "ok", "", f"{i:064x}", i % 100) for i in range(count)]
    rng = np.random.default_rng(0)
    tracemalloc.start()
    found = Gathered(GroupBy.parse("folder"), source_at(folder))
    lines = []
    for start in range(0, count, 100):
        own, p = records[start : start + 100], rng.dirichlet(np.ones(200), 100)
        looks = torch.from_numpy(rng.standard_normal((100, 64)).astype(np.float16))
        lines += rows_from_probabilities(own, classes, p)
        found.add(Predictions(own, {}, {}, looks=looks), p)
    write_predictions(folder / "p.csv", lines)
    del lines
    tracemalloc.reset_peak()
    text = found.answers(classes, folder / "p.csv").text
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak, text


def test_memory_of_groups_grows_with_names_and_not_with_probabilities(tmp_path, monkeypatch):
    monkeypatch.setattr("finelens.runs.together.spill_folder", lambda: tmp_path)
    small, _ = gathered_peak(tmp_path / "a", 1000, 4)
    # The interpreter's table of interned names may happen to grow in one of them.
    large, text = min(gathered_peak(tmp_path / name, 5000, 4) for name in ("b", "d"))
    # Probabilities alone are 1,600 bytes a photograph.
    assert (large - small) / 4000 < 1200
    monkeypatch.setattr("finelens.runs.together.spill_folder", lambda: None)
    assert gathered_peak(tmp_path / "c", 5000, 4)[1] == text

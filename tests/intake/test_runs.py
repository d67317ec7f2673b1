"""Runs whose rows come from a file of another tool: boxes in, rows out, and back into the boxes."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import finelens
from finelens import api
from finelens.cli import main
from finelens.errors import UserError
from finelens.images.decode import DecodeLimits
from finelens.intake.taken import saved, take
from finelens.reporting.record import read_run
from finelens.reporting.review.sheet import adapt_command
from finelens.reporting.thumbnails import from_run
from finelens.runs.folder import RunFolder
from finelens.storage.predictions import read_predictions
from tests.toy import CLASSES, QUIET, options_for, picture, write_classes

# Two subjects in each photograph, side by side: those of the class at its place and of the next.
LEFT, RIGHT = [0.0, 0.0, 0.5, 1.0], [0.5, 0.0, 0.5, 1.0]


def pair(kind: int, seed: int) -> np.ndarray:
    return np.concatenate([picture(kind, seed), picture((kind + 1) % 4, seed)], axis=1)


def detected(photos: Path, names: list[str]) -> dict[str, object]:
    images: list[dict[str, object]] = []
    for name in names:
        boxes = [{"category": "1", "conf": 0.875, "bbox": box, "note": "kept"} for box in (LEFT, RIGHT)]
        images.append({"file": name, "detections": [*boxes, {"category": "1", "conf": 0.05, "bbox": LEFT}]})
    images.append({"file": "none.png", "failure": "image access failure", "detections": None})
    return {
        "info": {"format_version": "1.6", "detector": "md_v5a"},
        "detection_categories": {"1": "animal"},
        "classification_categories": {"0": "green check", "7": "other"},
        "images": images,
    }


@pytest.fixture(scope="module")
def world(tmp_path_factory, tiny_vit) -> Path:
    """``photos`` of two subjects each, ``boxes.json``, ``classes.txt`` and a finished ``run`` on the boxes."""
    root = tmp_path_factory.mktemp("boxes")
    photos = root / "photos"
    (photos / "cam").mkdir(parents=True)
    for kind in range(4):
        for seed in range(3):
            Image.fromarray(pair(kind, seed)).save(photos / "cam" / f"{kind}{seed}.png")
    Image.fromarray(pair(0, 9)).save(photos / "unlisted.png")
    names = [f"cam/{kind}{seed}.png" for kind in range(4) for seed in range(3)]
    (root / "boxes.json").write_text(json.dumps(detected(photos, names)))
    classes = write_classes(root / "classes.txt")
    # The tiny tower knows pictures apart, and no names: a person gives one box of each class.
    (root / "hints.csv").write_text("path,label\n" + "".join(f"cam/{kind}1.png#1,{name}\n" for kind, name in enumerate(CLASSES)))
    given = {"backbone": f"local:{tiny_vit}", "options": options_for("consensus"), "console": QUIET}
    api.adapt(photos, classes, root / "run", in_file=root / "boxes.json", hints=root / "hints.csv", **given)
    return root


def test_boxes_are_rows(world):
    rows = read_predictions(world / "run" / "predictions.csv")
    assert [row.path for row in rows] == [f"cam/{kind}{seed}.png#{box}" for kind in range(4) for seed in range(3) for box in (1, 2)]
    assert all(row.status == "ok" for row in rows)
    # What is in the box, not what is in the photograph: both halves of one photograph get the class of their own subject.
    assert [row.label for row in rows] == [CLASSES[(kind + box) % 4] for kind in range(4) for seed in range(3) for box in (0, 1)]
    assert sum(row.answered == "yes" for row in rows) == 4


def test_a_box_is_answered_as_its_cut_out_picture(world, tmp_path):
    for name, box in (("a", slice(None, 90)), ("b", slice(90, None))):
        Image.fromarray(pair(2, 0)[:, box]).save(tmp_path / f"{name}.png")
    alone = api.predict(world / "run", tmp_path, tmp_path.parent / "alone.csv", console=QUIET)
    boxed = [row for row in read_predictions(world / "run" / "predictions.csv") if row.path.startswith("cam/20.png")]
    assert [(row.label, row.probability) for row in boxed] == [(row.label, pytest.approx(row.probability, abs=1e-5)) for row in alone]


def test_pictures_of_the_report_are_the_boxes(world):
    photos = from_run(world / "run", str(world / "photos"), DecodeLimits())
    first, second = photos("cam/20.png#1"), photos("cam/20.png#2")
    assert first is not None
    assert second is not None
    assert np.array_equal(first.pixels.permute(1, 2, 0).numpy(), pair(2, 0)[:, :90])
    assert np.array_equal(second.pixels.permute(1, 2, 0).numpy(), pair(2, 0)[:, 90:])
    assert "cam/20.png#2" in (world / "run" / "report.html").read_text("utf-8")
    page = (world / "run" / "report.html").read_text("utf-8")
    assert f"--in {world / 'boxes.json'}" in page


def test_the_run_keeps_its_rows_when_the_file_is_gone(world, tmp_path):
    (world / "boxes.json").rename(world / "moved.json")
    try:
        assert api.report(world / "run", console=QUIET).is_file()
        assert finelens.ask(world / "run", 3, console=QUIET)[0].path.endswith(("#1", "#2"))
        record = read_run(RunFolder.open(world / "run", lock=False))
        assert f"--classes {world / 'classes.txt'} --in {world / 'boxes.json'}" in adapt_command(record)
        (tmp_path / "labels.csv").write_text("path,label\ncam/20.png#1,blue disc\ncam/20.png#2,yellow ramp\n")
        api.report(world / "run", labels=tmp_path / "labels.csv", console=QUIET)
        assert json.loads((world / "run" / "evaluation.json").read_text())["n"] == 2
        # Without the file the boxes are written anew.
        finelens.write(world / "run", "megadetector", tmp_path / "new.json")
        image = json.loads((tmp_path / "new.json").read_text())["images"][0]
        assert (image["file"], [box["bbox"] for box in image["detections"]]) == ("cam/00.png", [LEFT, RIGHT])
    finally:
        (world / "moved.json").rename(world / "boxes.json")
        (world / "run" / "evaluation.json").unlink()


def test_classes_go_back_into_the_boxes_of_the_file(world, tmp_path):
    finelens.write(world / "run", "megadetector", tmp_path / "out.json")
    given, out = (json.loads(path.read_text()) for path in (world / "boxes.json", tmp_path / "out.json"))
    names = out["classification_categories"]
    # Numbers that the file held stay, and the classes of the run get new ones.
    assert (names["0"], names["7"]) == ("green check", "other")
    assert set(names.values()) == {*CLASSES, "other"}
    rows = {row.path: row for row in read_predictions(world / "run" / "predictions.csv")}
    for image in out["images"][:-1]:
        for place, box in enumerate(image["detections"][:2], start=1):
            row = rows[f"{image['file']}#{place}"]
            assert [(names[key], p) for key, p in box.pop("classifications")] == list(row.top5)
        assert "classifications" not in image["detections"][2]
    assert out["images"] == given["images"]
    assert (out["info"]["detector"], out["info"]["classifier"][:8]) == ("md_v5a", "finelens")


def test_boxes_stay_where_the_photographs_have_moved(world, tmp_path):
    finelens.write(world / "run", "coco-ct", tmp_path / "here.json")
    (world / "photos").rename(world / "elsewhere")
    try:
        with pytest.raises(UserError, match="photos is no folder of photographs, or not any more; give their folder with --photos"):
            finelens.write(world / "run", "coco-ct", tmp_path / "lost.json")
        finelens.write(world / "run", "coco-ct", tmp_path / "there.json", photos=world / "elsewhere")
    finally:
        (world / "elsewhere").rename(world / "photos")
    assert json.loads((tmp_path / "there.json").read_text())["annotations"] == json.loads((tmp_path / "here.json").read_text())["annotations"]


def test_new_photographs_with_their_boxes(world, tmp_path):
    photos = tmp_path / "new"
    photos.mkdir()
    Image.fromarray(pair(1, 7)).save(photos / "x.png")
    # Of a name with blanks around it, and an entry without one.
    document = detected(photos, [" x.png", "gone.png"])
    document["images"].append({"failure": "no name", "detections": None})  # type: ignore[attr-defined]
    (tmp_path / "new.json").write_text(json.dumps(document))
    with pytest.raises(SystemExit) as stop:
        main(["predict", str(world / "run"), str(photos), "--in", str(tmp_path / "new.json"), "--csv", str(tmp_path / "new.csv"), "--quiet"])
    assert stop.value.code == 0
    rows = read_predictions(tmp_path / "new.csv")
    assert [(row.path, row.status) for row in rows] == [
        ("x.png#1", "ok"),
        ("x.png#2", "ok"),
        ("gone.png#1", "vanished"),
        ("gone.png#2", "vanished"),
    ]
    finelens.write(
        world / "run", "megadetector", tmp_path / "out.json", predictions=tmp_path / "new.csv", photos=photos, in_file=tmp_path / "new.json"
    )
    out = json.loads((tmp_path / "out.json").read_text())
    names = out["classification_categories"]
    assert [names[box["classifications"][0][0]] for box in out["images"][0]["detections"][:2]] == [row.label for row in rows[:2]]
    with pytest.raises(UserError, match=r"boxes\.json does not name .*, which has an answer"):
        finelens.write(
            world / "run", "coco-ct", tmp_path / "no.json", predictions=tmp_path / "new.csv", photos=world / "photos", in_file=world / "boxes.json"
        )


@pytest.mark.parametrize("to", ["coco-ct", "cvat", "label-studio"])
def test_boxes_come_back_from_other_forms(world, tmp_path, to):
    finelens.write(world / "run", to, tmp_path / "out")
    again, given = take(tmp_path / "out", world / "photos"), saved(world / "run" / "given_in.json")
    assert given is not None
    if to == "label-studio":
        # A person's rectangles come back, with their hints; a machine's are predictions, which are not read.
        assert again.hints == {f"cam/{kind}1.png#1": name for kind, name in enumerate(CLASSES)}
        result = json.loads((tmp_path / "out").read_text())[0]["predictions"][0]["result"][1]
        assert [result["value"][key] for key in ("x", "y", "width", "height")] == [50, 0, 50, 100]
        assert (result["original_width"], result["original_height"]) == (180, 70)
        return
    assert [(row.name, row.box.values) for row in again.rows if row.box] == [(row.name, row.box.values) for row in given.rows if row.box]
    if to == "cvat":
        labels = [own.get("label") for own in ElementTree.parse(tmp_path / "out").getroot().iter("box")]
        assert labels == [row.label for row in read_predictions(world / "run" / "predictions.csv")]


def test_a_form_without_boxes_is_refused(world, tmp_path):
    with pytest.raises(UserError, match="--to xmp has no place for them; forms with boxes: megadetector, coco-ct, label-studio, cvat"):
        finelens.write(world / "run", "xmp", tmp_path / "out")


def test_answers_of_people_are_hints(world, tiny_vit, tmp_path):
    def task(name: str, *labels: str) -> dict[str, object]:
        result = [{"type": "choices", "value": {"choices": list(labels)}}] if labels else []
        return {"data": {"image": f"/data/local-files/?d={name}"}, "annotations": [{"result": result}]}

    tasks = [task("cam/00.png", "owl"), task("cam/01.png"), task("cam/10.png", "lark"), task("cam/20.png"), task("cam/30.png")]
    (tmp_path / "tasks.json").write_text(json.dumps(tasks))
    said: list[str] = []

    class Voice(type(QUIET)):  # type: ignore[misc]
        def say(self, text: str) -> None:
            said.append(text)

    given = {"backbone": f"local:{tiny_vit}", "options": options_for("consensus"), "console": Voice(enabled=False)}
    found = api.adapt(world / "photos", None, tmp_path / "run", in_file=tmp_path / "tasks.json", **given)
    rows = {row.path: row for row in found.rows}
    assert [(rows[name].label, rows[name].answered) for name in ("cam/00.png", "cam/10.png")] == [("owl", "yes"), ("lark", "yes")]
    assert len(rows) == 5
    assert any("label-studio, 5 photographs, 2 class names, 2 answers of people" in line for line in said)
    assert any(line.startswith("left out: 8 photographs that the file does not name") for line in said)
    # And out again: a person's answer is an annotation, so that nothing is lost on the way.
    finelens.write(tmp_path / "run", "label-studio", tmp_path / "out.json")
    again = take(tmp_path / "out.json", world / "photos")
    assert again.hints == {"cam/00.png": "owl", "cam/10.png": "lark"}


def test_in_needs_a_folder_and_boxes_a_file(world, tmp_path, capsys):
    for arguments, message in (
        (("--box-confidence", "0.5"), "--box-confidence is about the boxes of --in FILE"),
        (("--in", tmp_path / "none.json"), "none.json: No such file"),
    ):
        with pytest.raises(SystemExit) as stop:
            main(["adapt", str(world / "photos"), "--out", str(tmp_path / "run"), *map(str, arguments)])
        assert stop.value.code == 2
        assert message in capsys.readouterr().err
    np.save(tmp_path / "x.npy", np.eye(3, dtype=np.float32))
    with pytest.raises(SystemExit):
        main(["adapt", str(tmp_path / "x.npy"), "--in", str(world / "boxes.json"), "--out", str(tmp_path / "run")])
    assert "give the folder of the photographs" in capsys.readouterr().err

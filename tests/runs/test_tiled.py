"""``predict --tiles``: a row a tile, and the classes that each photograph shows."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import finelens
from finelens import api
from finelens.cli import main
from finelens.errors import UserError
from finelens.images.tiles import Grid
from finelens.runs.tiled import Shown, shown, tiles_file
from finelens.storage.predictions import PredictionRow, read_predictions
from tests.toy import CLASSES, QUIET, options_for, picture, write_classes


def row(path: str, label: str, probability: float, none: float | None = 0.0) -> PredictionRow:
    return PredictionRow(path, label, probability, 0.1, ((label, probability),), none_of_these=none)


def mixed(kinds: list[int], seed: int) -> np.ndarray:
    return np.concatenate([picture(kind, seed) for kind in kinds], axis=1)


@pytest.fixture(scope="module")
def world(tmp_path_factory, tiny_vit) -> Path:
    """A ``run`` whose classes a person taught it, and ``new`` photographs of two subjects side by side, of one, and damaged."""
    root = tmp_path_factory.mktemp("tiles")
    (root / "photos").mkdir()
    (root / "new").mkdir()
    for kind in range(4):
        for seed in range(4):
            Image.fromarray(picture(kind, seed)).save(root / "photos" / f"{kind}{seed}.png")
    Image.fromarray(mixed([0, 1], 8)).save(root / "new" / "a.png")
    Image.fromarray(mixed([2, 2], 8)).save(root / "new" / "b.png")
    (root / "new" / "c.png").write_bytes(b"no picture")
    (root / "hints.csv").write_text("path,label\n" + "".join(f"{kind}{seed}.png,{CLASSES[kind]}\n" for kind in range(4) for seed in (0, 1)))
    options = options_for("consensus")
    classes = write_classes(root / "classes.txt")
    api.adapt(root / "photos", classes, root / "run", hints=root / "hints.csv", backbone=f"local:{tiny_vit}", options=options, console=QUIET)
    return root


def table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_a_class_is_shown_where_a_view_is_sure_of_it():
    views = [row("a", "owl", 0.6), row("a#1", "lark", 0.9), row("a#2", "owl", 0.8), row("a#3", "wren", 0.49), row("a#4", "owl", 0.5)]
    assert shown(views) == [Shown("lark", 1, 1, 0.9), Shown("owl", 3, 2, 0.8)]
    assert [own.label for own in shown(views, 0.85)] == ["lark"]


def test_what_probably_belongs_to_no_class_names_none():
    views = [row("a", "owl", 0.9, 0.51), row("a#1", "lark", 0.99, 1.0), row("a#2", "wren", 0.7, 0.5), PredictionRow("a#3", status="corrupt")]
    assert [own.label for own in shown(views)] == ["wren"]
    found = tiles_file(views, Grid(3, 1), 0.5)
    assert found.lines[1] == "tiles that probably belong to none of the classes, and name none: 1 of 2"
    assert found.text.splitlines()[1:] == ["a,wren,0.7,1,a#2,0.3,0,0.4,1,3,2,ok"]


def test_every_photograph_has_a_line():
    rows = [row("a", "owl", 0.1), row("a#1", "owl", 0.2), row("a#2", "lark", 0.2)]
    rows += [PredictionRow("b", status="corrupt"), PredictionRow("b#1", status="corrupt"), PredictionRow("b#2", status="corrupt")]
    found = tiles_file(rows, Grid(2, 1), 0.5)
    assert found.text.splitlines()[1:] == ["a,,,,,,,,,3,0,ok", "b,,,,,,,,,0,0,corrupt"]
    assert found.lines[0] == "2 photographs in 2 tiles each: with several classes 0, with none 1, not readable 1"
    assert found.lines[1].endswith(": 0 of 2")


def test_where_no_view_was_asked_whether_it_belongs_it_is_said():
    found = tiles_file([row("a", "owl", 0.9, None), row("a#1", "owl", 0.9, None), row("a#2", "lark", 0.7, None)], Grid(2, 1), 0.5)
    assert "was not asked: only --tile-floor" in found.lines[1]


def test_both_subjects_of_a_photograph_are_found(world, tmp_path):
    api.predict(world / "run", world / "new", tmp_path / "new.csv", tiles="2x1:0", tile_floor=0.0, console=QUIET)
    rows = read_predictions(tmp_path / "new.csv")
    assert [own.path for own in rows] == [f"{name}.png{end}" for name in "abc" for end in ("", "#1", "#2")]
    # Whether the toy's halves pass for photographs of its classes is not what this is about.
    halves = {own.path: own.label for own in rows}
    assert [halves["a.png#1"], halves["a.png#2"]] == [CLASSES[0], CLASSES[1]]
    named = {own["path"]: own for own in table(tmp_path / "new_tiles.csv")}
    assert set(named) == {"a.png", "b.png", "c.png"}
    assert (named["c.png"]["class"], named["c.png"]["status"], named["c.png"]["read"]) == ("", "corrupt", "0")
    refused = {own.path for own in rows if own.none_of_these is not None and own.none_of_these > 0.5}
    wanted = {(own.path.split("#")[0], own.label) for own in rows if own.status == "ok" and own.path not in refused}
    assert {(own["path"], own["class"]) for own in table(tmp_path / "new_tiles.csv") if own["class"]} == wanted


def test_the_whole_photograph_is_answered_as_without_tiles(world, tmp_path):
    alone = api.predict(world / "run", world / "new", tmp_path / "alone.csv", console=QUIET)
    tiled = api.predict(world / "run", world / "new", tmp_path / "tiled.csv", tiles="2", console=QUIET)
    for whole, own in zip(alone, (own for own in tiled if "#" not in own.path), strict=True):
        assert (own.path, own.label) == (whole.path, whole.label)
        assert own.probability == (whole.probability and pytest.approx(whole.probability))


def test_one_photograph_is_cut_too(world, tmp_path):
    rows = api.predict(world / "run", world / "new" / "a.png", tmp_path / "one.csv", tiles="2", console=QUIET)
    assert [Path(own.path).name for own in rows] == ["a.png", "a.png#1", "a.png#2", "a.png#3", "a.png#4"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"tile_floor": 0.5}, "--tile-floor is about the tiles of --tiles GRID"),
        ({"tiles": "2", "tile_floor": 1.5}, "--tile-floor is between 0 and 1, got 1.5"),
        ({"tiles": "2", "group_by": "folder"}, "--tiles and --group-by do not go together"),
        ({"tiles": "2", "shard": "1/2"}, "--tiles and --shard or torchrun do not go together"),
        ({"tiles": "2", "in_file": "boxes.json"}, "--tiles and --in do not go together"),
        ({"tiles": "2", "calibrate": "hints.csv"}, "--tiles and --calibrate do not go together"),
    ],
)
def test_what_tiles_have_no_place_for_is_refused(world, tmp_path, monkeypatch, given, message):
    monkeypatch.chdir(world)
    with pytest.raises(UserError, match=message):
        api.predict(world / "run", world / "new", tmp_path / "no.csv", console=QUIET, **given)


def test_tiles_are_not_written_for_other_tools(world, tmp_path):
    api.predict(world / "run", world / "new", tmp_path / "new.csv", tiles="2", console=QUIET)
    with pytest.raises(UserError, match="is a tile of predict --tiles, which other tools have no place for"):
        finelens.write(world / "run", "coco-ct", tmp_path / "out.json", predictions=tmp_path / "new.csv", photos=world / "new")


def test_from_the_command(world, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["predict", str(world / "run"), str(world / "new"), "--csv", str(tmp_path / "new.csv"), "--tiles", "2x1", "--csv-bom"])
    assert stop.value.code == 0
    said = capsys.readouterr().err
    assert "3 files: 2 ok, 1 corrupt" in said
    assert "3 photographs in 2 tiles each" in said
    assert (tmp_path / "new_tiles.csv").read_bytes().startswith("\ufeffpath,class,probability".encode())
    np.save(tmp_path / "x.npy", np.eye(3, dtype=np.float32))
    with pytest.raises(SystemExit):
        main(["predict", str(world / "run"), str(tmp_path / "x.npy"), "--csv", str(tmp_path / "n.csv"), "--tiles", "2x1"])
    assert "--tiles cuts photographs that are files" in capsys.readouterr().err

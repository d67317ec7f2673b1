"""Run folders that an earlier commit wrote are loaded, reported, evaluated and resumed by the code of today, through public names only.

``tests/data/run_of_3a1909f/make.py`` says how they were made. They hold the placeholder ``@ROOT@`` where their folder stood.
"""

from __future__ import annotations

import csv
import json
import runpy
import shutil
import sys
from collections.abc import Callable, Collection
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

import finelens

DATA = Path(__file__).resolve().parents[1] / "data" / "run_of_3a1909f"
ROOT = "@ROOT@"
CLASSES = ["red stripe", "green check", "blue disc", "yellow ramp"]
# Files of before leave patches that lie at the mean of a cut to the solver's rounding. One picture has eight such; these patches were above
# it when its answer was stored, and on other processors others are.
TIED, SALIENT = "red stripe/1.png", (3, 4, 6, 7, 11, 15)
EXACT = ("path", "class", "zero_shot_class", "status", "reason")


@pytest.fixture
def old(tmp_path) -> Path:
    """A copy of the runs and of all that they name, in its new place."""
    root = tmp_path / "old"
    shutil.copytree(DATA, root)
    before = (root / "interrupted" / "events.jsonl").stat().st_size
    for path in root.rglob("*"):
        if path.suffix in (".json", ".jsonl", ".html", ".md"):
            path.write_bytes(path.read_bytes().replace(ROOT.encode(), root.as_posix().encode()))
    rewrite(root / "features" / "photos.safetensors", lambda text: text.replace(ROOT, root.as_posix()))
    # A checkpoint names the length of the events that it rests on, and these have grown with their paths.
    grown = (root / "interrupted" / "events.jsonl").stat().st_size - before
    rewrite(root / "interrupted" / "checkpoint" / "last.safetensors", lambda text: longer_events(text, grown))
    return root


def rewrite(path: Path, change: Callable[[str], str]) -> None:
    """Change the texts in the header of a tensor file."""
    with safe_open(path, framework="pt") as file:
        metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - the handle is no mapping
    save_file(tensors, path, {name: change(text) for name, text in metadata.items()})


def longer_events(text: str, grown: int) -> str:
    position = json.loads(text)
    return json.dumps({**position, "events_offset": position["events_offset"] + grown})


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def assert_same_predictions(found: Path, expected: Path, tolerance: float, but: Collection[int] = ()) -> None:
    """The same rows, ``but`` for some; probabilities differ in their last digits from one processor to another."""
    left, right = ([row for i, row in enumerate(rows(file)) if i not in but] for file in (found, expected))
    assert [{name: row[name] for name in EXACT} for row in left] == [{name: row[name] for name in EXACT} for row in right]
    for a, b in zip(left, right, strict=True):
        # All four classes are among the five best.
        assert dict(json.loads(a["top5"])) == pytest.approx(dict(json.loads(b["top5"])), abs=tolerance)
        for name in ("probability", "margin"):
            assert float(a[name]) == pytest.approx(float(b[name]), abs=2 * tolerance)


def extra(old: Path) -> dict[str, list[Path]]:
    """The features of the second encoder that the solver's run looks at."""
    return {"extra": [old / "features" / "colours.npy"], "extra_names": [old / "features" / "colours.txt"]}


def events(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "events.jsonl").read_text(encoding="utf-8").splitlines()]


def rounded_as_then(matrix: Tensor, solve: Callable[[Tensor], tuple[Tensor, Tensor]] = torch.linalg.eigh) -> tuple[Tensor, Tensor]:
    """Eigenvectors with last digits of the second that make ``SALIENT`` the patches above the mean."""
    values, vectors = solve(matrix)
    digits = torch.full(vectors.shape[-1:], -1e-12, dtype=vectors.dtype)
    digits[list(SALIENT)] = 1e-12
    # The largest of all decides which side is salient.
    digits[SALIENT[0]] = 2e-12
    vectors[..., 1] += vectors[:, SALIENT[0], 1].sign()[:, None] * digits
    return values, vectors


def test_a_finished_run_gives_the_answers_that_it_gave(old, tmp_path, monkeypatch):
    classifier = finelens.load(old / "finished")
    assert classifier.classes == CLASSES
    # Not from the table, whose numbers are rounded.
    expected, table = np.load(old / "expected" / "probabilities.npy"), rows(old / "expected" / "predict.csv")
    (tie,) = (i for i, row in enumerate(table) if row["path"] == TIED)
    settled = [i for i in range(len(table)) if i != tie]
    np.testing.assert_allclose(classifier.predict_proba(old / "photos")[settled], expected[settled], rtol=0, atol=1e-6)
    answers = classifier.predict(old / "photos")
    assert [answers[i] for i in settled] == [table[i]["class"] for i in settled]
    finelens.predict(old / "finished", old / "photos", tmp_path / "new.csv")
    assert_same_predictions(tmp_path / "new.csv", old / "expected" / "predict.csv", 2e-6, but={tie})
    with Image.open(old / "photos" / TIED) as picture, monkeypatch.context() as patch:
        patch.setattr(torch.linalg, "eigh", rounded_as_then)
        np.testing.assert_allclose(classifier.predict_proba([np.array(picture)])[0], expected[tie], rtol=0, atol=1e-6)
        assert classifier.predict([np.array(picture)]) == [table[tie]["class"]]


@pytest.mark.parametrize("name", ["finished", "solved"])
def test_its_report_is_written_again(old, name):
    run = old / name
    for page in ("report.html", "MODEL_CARD.md"):
        (run / page).unlink()
    assert finelens.report(run, labels="folders") == run / "report.html"
    report, card = ((run / page).read_text(encoding="utf-8") for page in ("report.html", "MODEL_CARD.md"))
    assert all(label in report and label in card for label in CLASSES)
    right = [row["class"] == row["path"].split("/")[0] for row in rows(run / "predictions.csv")]
    assert json.loads((run / "evaluation.json").read_text(encoding="utf-8"))["accuracy"] == pytest.approx(np.mean(right))


def test_a_finished_run_is_not_resumed(old):
    before = (old / "finished" / "events.jsonl").read_bytes()
    assert finelens.resume(old / "finished") is None
    assert (old / "finished" / "events.jsonl").read_bytes() == before


def test_an_interrupted_run_goes_on_to_the_same_end(old):
    run = old / "interrupted"
    before = events(run)
    assert finelens.resume(run) is not None
    assert_same_predictions(run / "predictions.csv", old / "expected" / "resumed.csv", 1e-4)
    after = events(run)
    # Nothing was taken back, nothing was missing, and the second epoch was finished rather than both repeated.
    assert after[: len(before)] == before
    assert [event["event"] for event in after[len(before) :]] == ["resume", "epoch", "predictions", "end"]
    assert [event["epoch"] for event in after if event["event"] == "epoch"] == [0, 1]
    assert finelens.load(run).classes == CLASSES


def test_a_solver_on_features_gives_the_answers_that_it_gave(old, tmp_path):
    features = old / "features" / "photos.safetensors"
    assert finelens.load(old / "solved", **extra(old)).predict(features) == [row["class"] for row in rows(old / "expected" / "solved.csv")]
    finelens.predict(old / "solved", features, tmp_path / "new.csv", **extra(old))
    assert_same_predictions(tmp_path / "new.csv", old / "expected" / "solved.csv", 2e-6)


def test_the_command_line_evaluates_it(old, tmp_path, monkeypatch, capsys):
    scores = tmp_path / "scores.json"
    command = ["evaluate", old / "finished", old / "photos", "--labels", "folders", "--json", scores]
    monkeypatch.setattr(sys, "argv", ["finelens", *map(str, command)])
    with pytest.raises(SystemExit) as stop:
        runpy.run_module("finelens", run_name="__main__")
    assert not stop.value.code
    expected = rows(old / "expected" / "predict.csv")
    for measure, column in (("accuracy", "class"), ("zero_shot_accuracy", "zero_shot_class")):
        right = np.mean([row[column] == row["path"].split("/")[0] for row in expected])
        assert json.loads(scores.read_text(encoding="utf-8"))[measure] == pytest.approx(right)
    assert f"{len(expected)} images" in capsys.readouterr().out

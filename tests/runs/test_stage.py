"""A stage before a method: what the run keeps of it, what it starts from, and what is refused."""

from __future__ import annotations

import json

import pytest
import torch

from finelens import api
from finelens.backbones.registry import load_backbone
from finelens.classes.captions import read_captions
from finelens.core.schemas import CONFIG_FILE, EVENTS_FILE
from finelens.errors import UserError
from finelens.feature_store.encoder import tower_digest
from finelens.runs.classifier import load_run
from finelens.runs.encode import features
from finelens.runs.stage import surest
from finelens.storage.predictions import read_predictions
from finelens.training.loop import Interrupted
from tests.toy import QUIET, options_for, stop_after

STAGE = {"lr": 1e-3, "batch_size": 4}


def adapt(out, photos, classes, backbone, method="zero-shot", stage=STAGE, **given):
    options = {**options_for(method), **({"stage": stage} if given.get("stage_name", "clip-refine") else {})}
    name = given.pop("stage_name", "clip-refine")
    return api.adapt(photos, classes, out, method=method, backbone=f"local:{backbone}", options=options, stage=name or None, console=QUIET, **given)


def event(run, name):
    return next(e for line in (run / EVENTS_FILE).read_text().splitlines() if (e := json.loads(line))["event"] == name)


@pytest.fixture(scope="module")
def refined(tmp_path_factory, photos, classes, tiny_vit):
    out = tmp_path_factory.mktemp("stage") / "run"
    adapt(out, photos, classes, tiny_vit, "consensus")
    return out


def test_the_gap_is_logged_and_the_report_gives_the_command_again(refined):
    found = event(refined, "stage")
    assert found["pairs"] >= 12
    assert found["after"]["pair_distance"] < found["before"]["pair_distance"]
    page = (refined / "report.html").read_text()
    assert "stage.name=clip-refine" in page
    assert f"{found['before']['gap']:.4f} before, {found['after']['gap']:.4f} after" in page
    assert json.loads((refined / CONFIG_FILE).read_text())["stage"]["lr"] == 1e-3


def test_the_refined_tower_is_kept_and_answers_the_same_again(refined, photos, tiny_vit):
    classifier = load_run(refined)
    # The feature cache goes by this hash.
    assert tower_digest(classifier.backbone) != tower_digest(load_backbone(f"local:{tiny_vit}"))
    rows = read_predictions(refined / "predictions.csv")
    p = classifier.predict_proba([str(photos / row.path) for row in rows])
    assert [classifier.classes[c] for c in p.argmax(1)] == [row.label for row in rows]
    assert [round(float(v), 6) for v in p.max(1)] == pytest.approx([row.probability for row in rows], abs=2e-6)


def test_rate_zero_is_a_run_without_the_stage(tmp_path, photos, classes, tiny_vit):
    with_stage, without = tmp_path / "with", tmp_path / "without"
    adapt(with_stage, photos, classes, tiny_vit, "consensus", {"lr": 0.0})
    adapt(without, photos, classes, tiny_vit, "consensus", stage_name="")
    for name in ("predictions.csv", "model/model.safetensors", "model/zero_shot.safetensors"):
        assert (with_stage / name).read_bytes() == (without / name).read_bytes()


def test_a_run_stopped_in_its_method_goes_on_from_the_same_towers(tmp_path, photos, classes, tiny_vit):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    adapt(whole, photos, classes, tiny_vit, "dpa")
    with pytest.raises(Interrupted):
        adapt(stopped, photos, classes, tiny_vit, "dpa", should_stop=stop_after(3))
    api.resume(stopped, console=QUIET)
    for name in ("predictions.csv", "model/model.safetensors"):
        assert (stopped / name).read_bytes() == (whole / name).read_bytes()


def test_pairs_of_a_file(tmp_path, photos, classes, tiny_vit):
    names = sorted(path.relative_to(photos).as_posix() for path in photos.rglob("*.png"))[:8]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps({"image": n, "caption": f"picture {i}"}) + "\n" for i, n in enumerate(names)))
    adapt(tmp_path / "run", photos, classes, tiny_vit, captions=tmp_path / "pairs.jsonl")
    assert event(tmp_path / "run", "stage")["pairs"] == 8


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "lacks the column image"),
        ("image\na.png\n", "lacks the column text"),
        ("image,text\n", "no pairs"),
        ("image,text\na.png,one\n", "one pair"),
        ("image,text\na.png,one\nb.png,two\n", "1 of 2 images are not there"),
        ("image,text\na.png,one\na.png,\n", "line 3: no text"),
        ("image,text\na.png,one\na.png,two,three\n", "line 3: expected 2 cells"),
    ],
)
def test_files_that_are_no_captions_are_named(tmp_path, text, said):
    (tmp_path / "a.png").write_bytes(b"")
    (tmp_path / "pairs.csv").write_text(text)
    with pytest.raises(UserError, match=said):
        read_captions(tmp_path / "pairs.csv", None)


def test_several_texts_of_an_image_are_several_pairs(tmp_path):
    (tmp_path / "a.png").write_bytes(b"")
    (tmp_path / "pairs.csv").write_text("text,image\none,a.png\ntwo,a.png\n  ,  \n,\n")
    found = read_captions(tmp_path / "pairs.csv", None)
    assert found.texts == ("one", "two")
    assert found.files == (tmp_path / "a.png",) * 2


def test_the_surest_of_each_class_are_taken():
    logits = torch.tensor([[3.0, 0.0], [1.0, 0.0], [2.0, 0.0], [0.0, 1.0]])
    chosen, label = surest(logits, 0.5)
    assert (chosen.tolist(), label.tolist()) == ([0, 2, 3], [0, 0, 1])


def test_what_has_no_effect_or_no_text_is_refused(tmp_path, photos, classes, tiny_vit, refined):
    with pytest.raises(UserError, match=r"stage\.lr has no effect without --stage"):
        api.adapt(photos, classes, tmp_path / "a", method="zero-shot", options={"stage": {"lr": 0.1}}, console=QUIET)
    with pytest.raises(UserError, match="finelens adapt --method zero-shot --stage"):
        api.zero_shot(photos, classes, tmp_path / "b", stage="clip-refine", console=QUIET)
    with pytest.raises(UserError, match="text tower that --stage clip-refine left is not kept"):
        load_run(refined).with_classes(["red stripe", "purple dot"])
    assert load_run(refined).with_classes(["red stripe", "blue disc"]).classes == ["red stripe", "blue disc"]


def test_pairs_of_which_one_can_be_read_are_too_few_and_the_remedy_is_named(tmp_path, photos, classes, tiny_vit):
    first = next(photos.rglob("*.png"))
    (tmp_path / "broken.png").write_bytes(b"no image")
    (tmp_path / "pairs.csv").write_text(f"image,text\n{first},one\nbroken.png,two\n")
    with pytest.raises(UserError, match=r"1 pair of an image and a text; .* captions file with more images that can be read, or leave --stage out"):
        adapt(tmp_path / "run", photos, classes, tiny_vit, captions=tmp_path / "pairs.csv")


def test_the_explanation_says_that_the_stage_kept_no_texts(refined, photos, tmp_path):
    found = api.explain(refined, next(photos.rglob("*.png")), tmp_path / "page.html", console=QUIET)
    said = "the text tower that --stage clip-refine left is not kept"
    assert [line.strip() for line in found.lines()].count(said) == len(found.sides) == 2
    assert said in (tmp_path / "page.html").read_text()


def test_features_of_the_tower_before_the_stage_are_refused_with_the_remedy(refined, photos, tiny_vit, tmp_path):
    features(photos, out=tmp_path / "f.safetensors", backbone=f"local:{tiny_vit}", console=QUIET)
    with pytest.raises(UserError, match=r"f\.safetensors holds features of .* with other weights than the run has .* give the photographs"):
        api.predict_to(refined, tmp_path / "f.safetensors", tmp_path / "p.csv", console=QUIET)

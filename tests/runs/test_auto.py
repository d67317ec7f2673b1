"""``--method auto``: the rule branch by branch, and a run that is the same as with the chosen method named."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from finelens import LabelFreeClassifier, api
from finelens.engine.flops import TowerFlops
from finelens.errors import UserError
from finelens.methods import auto
from finelens.methods.auto import Facts, choose_method
from finelens.methods.registry import METHODS, find_method
from finelens.runs import auto as choice
from finelens.training.estimate import Estimate
from finelens.training.loop import Interrupted
from tests.toy import CLASSES, QUIET, events, forwards, pictures, stop_after

PLAIN = {"training": {"precision": "float32"}}
MANY = Facts(images=4000, classes=40, named=30, photographs=True, descriptions=True)
PAID = replace(MANY, budget=60, training=20.4)


@pytest.mark.parametrize(
    ("facts", "name", "words"),
    [
        (replace(PAID, hints=40, hinted=40), "gda", "all 40 classes have hinted images"),
        (replace(PAID, images=12, hints=40, hinted=40), "gda", "all 40"),
        (replace(PAID, hints=90, hinted=39), "stata", "hints cover 39 of 40 classes"),
        (replace(MANY, images=12, hints=1, hinted=0), "stata", "hints cover 0 of 40 classes"),
        (replace(PAID, images=49), "cupl", "49 images, fewer than 50, are too few to adapt to; descriptions were given"),
        (replace(PAID, images=49, descriptions=False), "zero-shot", "no descriptions were given"),
        (replace(MANY, images=50), "tip-adapter", "no --minutes were given"),
        (PAID, "microclip", "4000 photographs, zero-shot names 30 of 40 classes, training takes about 20 of 60 minutes"),
        (replace(PAID, training=60.0), "microclip", "about 60 of 60"),
        (replace(PAID, images=1000, named=20), "microclip", "names 20 of 40"),
        (replace(PAID, training=60.1), "tip-adapter", "training would take about 60 of 60 minutes"),
        (replace(PAID, photographs=False), "tip-adapter", "features cannot be trained on"),
        (replace(PAID, images=999), "tip-adapter", "999 photographs are fewer than 1000"),
        (replace(PAID, named=19), "tip-adapter", "zero-shot names only 19 of 40 classes"),
        (replace(MANY, named=40), "tip-adapter", "microclip was left out: no --minutes"),
    ],
)
def test_the_rule(facts, name, words):
    chosen, reason = choose_method(facts)
    assert chosen == name
    assert words in reason
    assert "\n" not in reason


def test_auto_is_no_method_and_chooses_methods_that_exist():
    assert auto.AUTO not in {method.name for method in METHODS}
    assert find_method(auto.PROVISIONAL).adapts
    assert find_method(choice.TRAINED).trains


@pytest.fixture(scope="module")
def given(tiny_vit) -> dict:
    return {"backbone": f"local:{tiny_vit}", "options": PLAIN, "console": QUIET}


def test_a_run_is_that_of_the_chosen_method_and_says_why(tmp_path, photos, classes, given, capsys):
    chosen = api.adapt(photos, classes, tmp_path / "auto", method="auto", **given)
    config = json.loads((chosen.path / "config.json").read_text())
    assert config["method"] == "zero-shot"
    assert config["method_options"] == {}
    (event,) = [event for event in events(chosen.path) if event["event"] == "choice"]
    assert event["method"] == "zero-shot"
    assert "24 images" in event["reason"]
    assert event["reason"] in (chosen.path / "report.html").read_text(encoding="utf-8")
    # The look that the choice rests on is the run's own.
    assert forwards(chosen.path) == (24, 0)
    named = api.adapt(photos, classes, tmp_path / "named", method="zero-shot", **given)
    assert (named.path / "predictions.csv").read_bytes() == (chosen.path / "predictions.csv").read_bytes()
    assert len(api.predict(chosen.path, photos, tmp_path / "new.csv", console=QUIET)) == 24


def hint(path, photos, folders):
    path.write_text("path,label\n" + "".join(f"{name}/0.png,{name}\n" for name in folders))
    assert all((photos / name / "0.png").is_file() for name in folders)
    return path


@pytest.mark.parametrize(("count", "method"), [(4, "gda"), (2, "stata")])
def test_hints_decide(tmp_path, photos, classes, given, count, method):
    run = api.adapt(photos, classes, tmp_path / "run", method="auto", hints=hint(tmp_path / "hints.csv", photos, CLASSES[:count]), **given)
    assert json.loads((run.path / "config.json").read_text())["method"] == method


def test_descriptions_decide(tmp_path, photos, classes, given):
    (tmp_path / "d.json").write_text(json.dumps({name: [f"a picture with a {name}"] for name in CLASSES}))
    run = api.adapt(photos, classes, tmp_path / "run", method="auto", descriptions=tmp_path / "d.json", **given)
    assert json.loads((run.path / "config.json").read_text())["method"] == "cupl"


@pytest.fixture
def ample(monkeypatch):
    """A rule for 24 pictures, of which zero-shot names every class, an estimate of two minutes, and training of two epochs."""
    monkeypatch.setattr(auto, "FEW_IMAGES", 5)
    monkeypatch.setattr(auto, "MANY_IMAGES", 20)
    monkeypatch.setattr(choice, "estimate", lambda *_: Estimate(120.0, 1.0, 1.0, TowerFlops(1, 1)))
    monkeypatch.setattr(choice, "unadapted_logits", lambda *_: (torch.eye(len(CLASSES)).repeat(6, 1), None))
    method = find_method("microclip")
    monkeypatch.setattr(type(method), "training_defaults", property(lambda self: {"epochs": 2, "batch_size": 8} if self.trains else {}))


@pytest.mark.parametrize(("minutes", "method"), [(1.9, "tip-adapter"), (None, "tip-adapter")])
def test_a_budget_that_does_not_cover_training(tmp_path, photos, classes, given, ample, minutes, method):
    run = api.adapt(photos, classes, tmp_path / "run", method="auto", minutes=minutes, **given)
    assert json.loads((run.path / "config.json").read_text())["method"] == method


def test_a_trained_choice_goes_on_after_a_stop_and_keeps_its_reason(tmp_path, photos, classes, given, ample):
    whole = api.adapt(photos, classes, tmp_path / "whole", method="auto", minutes=2, **given)
    for steps, name in ((1, "early"), (5, "late")):
        with pytest.raises(Interrupted):
            api.adapt(photos, classes, tmp_path / name, method="auto", minutes=2, should_stop=stop_after(steps), **given)
        api.resume(tmp_path / name, console=QUIET)
        assert events(tmp_path / name) == events(whole.path)
        assert (tmp_path / name / "predictions.csv").read_bytes() == (whole.path / "predictions.csv").read_bytes()
    reason = "24 photographs, zero-shot names 4 of 4 classes, training takes about 2 of 2 minutes"
    assert events(whole.path)[1] == {"event": "choice", "method": "microclip", "reason": reason}


def test_a_run_killed_before_its_first_checkpoint_keeps_the_reason(tmp_path, photos, classes, given, monkeypatch):
    def broken(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("finelens.runs.execute.fit", broken)
        with pytest.raises(KeyboardInterrupt):
            api.adapt(photos, classes, tmp_path / "run", method="auto", **given)
    api.resume(tmp_path / "run", console=QUIET)
    assert [event["event"] for event in events(tmp_path / "run")][:2] == ["start", "choice"]


def test_the_estimator_takes_it(tiny_vit):
    images = pictures()
    model = LabelFreeClassifier(CLASSES, method="auto", backbone=f"local:{tiny_vit}", options=PLAIN).fit(images)
    assert model.classifier_.model.method == "zero-shot"
    hints = {6 * kind: name for kind, name in enumerate(CLASSES)}
    assert model.fit(images, hints=hints).classifier_.model.method == "gda"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"method": "auto", "options": {"method": {"alpha": 1}}}, r"method\.alpha is an option of one method"),
        ({"method": "auto", "options": {"training": {"precision": "float32", "epochs": 3}}}, r"training\.epochs is an option of one method"),
        ({"method": "auto", "minutes": 0}, "--minutes must be above 0"),
        ({"method": "auto", "minutes": float("nan")}, "--minutes must be above 0"),
        ({"method": "stata", "minutes": 5}, r"--minutes has an effect with --method consensus \(the default\) or auto only"),
        ({"minutes": -1}, "--minutes must be above 0"),
        ({"minutes": 5, "options": {"training": {"epochs": 3}}}, r"leave training\.epochs out"),
    ],
)
def test_what_could_have_no_effect_is_refused(tmp_path, photos, classes, arguments, words):
    with pytest.raises(UserError, match=words):
        api.adapt(photos, classes, tmp_path / "run", console=QUIET, **arguments)
    assert not (tmp_path / "run").exists()


def test_zero_shot_names_the_other_verb(tmp_path, photos, classes):
    with pytest.raises(UserError, match="use finelens adapt --method auto"):
        api.zero_shot(photos, classes, tmp_path / "run", method="auto", console=QUIET)

"""``--minutes`` without a method: the answer of consensus teaches the tower where the time and the start allow it, and the run says why."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest

from finelens import LabelFreeClassifier, api
from finelens.engine.flops import TowerFlops
from finelens.errors import UserError
from finelens.methods.auto import lessons_within
from finelens.methods.consensus_tuned import LESSON, LESSONS
from finelens.runs import auto as choice
from finelens.training.estimate import Estimate
from finelens.training.loop import Interrupted
from tests.toy import CLASSES, QUIET, events, pictures, stop_after

OPTIONS = {"training": {"precision": "float32", "batch_size": 8, "lr": 1e-3}, "method": {"neighbours": 4}}
KNOWN, WEAK = SimpleNamespace(weak=False, account=""), SimpleNamespace(weak=True, account="it says nothing")


@pytest.mark.parametrize(("minutes", "lessons"), [(1, 0), (1.2, 0), (1.3, 1), (2.6, 2), (3.7, 2), (3.8, 3), (1e9, 3)])
def test_lessons_that_fit(minutes, lessons):
    # A minute a lesson, and a fifth of the time for the rest.
    assert lessons_within(60 * minutes, 60, 3) == lessons


@pytest.fixture
def given(tiny_vit, monkeypatch) -> dict:
    """A start that knows the classes, and a lesson of ten seconds."""
    monkeypatch.setattr(choice, "estimate", lambda *_: Estimate(10.0, 1.0, 1.0, TowerFlops(1, 1)))
    monkeypatch.setattr(choice, "start_from", lambda *_: KNOWN)
    monkeypatch.setattr("finelens.runs.fit.start_from", lambda *_: KNOWN)
    return {"backbone": f"local:{tiny_vit}", "options": OPTIONS, "console": QUIET}


def said(run):
    (event,) = [event for event in events(run.path) if event["event"] == "choice"]
    return event["method"], event["reason"]


# In the first lesson, at its end, behind it, and in the last.
@pytest.mark.parametrize("steps", [4, 6, 7, 16])
def test_the_budget_is_spent_and_the_run_goes_on_after_a_stop(steps, tmp_path, photos, classes, given):
    whole = api.adapt(photos, classes, tmp_path / "whole", minutes=0.7, **given)
    config = json.loads((whole.path / "config.json").read_text())
    assert (config["method"], config["training"]["epochs"], config["training"]["lr"]) == ("consensus-tuned", LESSON * LESSONS, 1e-3)
    # What was set of consensus is set of the teacher.
    assert config["method_options"]["neighbours"] == 4
    assert said(whole) == ("consensus-tuned", "0.7 minutes are enough for 3 of its 3 lessons, of about 10 s each")
    (decision,) = [event["message"] for event in events(whole.path) if event["event"] == "decision"]
    report = (whole.path / "report.html").read_text(encoding="utf-8")
    assert "0.7 minutes are enough" in report
    assert decision.partition(":")[0] in report
    with pytest.raises(Interrupted):
        api.adapt(photos, classes, tmp_path / "late", minutes=0.7, should_stop=stop_after(steps), **given)
    api.resume(tmp_path / "late", console=QUIET)
    assert events(tmp_path / "late") == events(whole.path)
    assert (tmp_path / "late" / "predictions.csv").read_bytes() == (whole.path / "predictions.csv").read_bytes()
    rows = {row.path: row.label for row in api.predict(whole.path, photos, tmp_path / "new.csv", console=QUIET)}
    assert rows == {row.path: row.label for row in whole.rows}


@pytest.mark.parametrize("method", ["consensus", "consensus-tuned"])
def test_a_decision_stands_once_whenever_the_run_died(method, tmp_path, photos, classes, given, monkeypatch):
    def die(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as broken:
        broken.setattr("finelens.runs.execute.save_model", die)
        with pytest.raises(KeyboardInterrupt):
            api.adapt(photos, classes, tmp_path / "run", method=method, **given | {"options": {"training": {"precision": "float32"}}})
    died = [event for event in events(tmp_path / "run") if event["event"] == "decision"]
    api.resume(tmp_path / "run", console=QUIET)
    assert [event for event in events(tmp_path / "run") if event["event"] == "decision"] == died != []


def test_too_little_time_leaves_the_solver(tmp_path, photos, classes, given):
    run = api.adapt(photos, classes, tmp_path / "run", minutes=0.2, **given)
    against = "a lesson takes about 10 s (--minutes 1 would do)"
    assert said(run) == ("consensus", f"nothing is trained in the 0.2 minutes: {against}")
    options = {"training": {"precision": "float32"}, "method": OPTIONS["method"]}
    named = api.adapt(photos, classes, tmp_path / "named", **{**given, "options": options})
    assert (named.path / "predictions.csv").read_bytes() == (run.path / "predictions.csv").read_bytes()


def test_a_little_time_is_spent_on_fewer_lessons(tmp_path, photos, classes, given):
    run = api.adapt(photos, classes, tmp_path / "run", minutes=0.3, **given)
    assert json.loads((run.path / "config.json").read_text())["training"]["epochs"] == LESSON
    assert said(run)[1] == "0.3 minutes are enough for 1 of its 3 lessons, of about 10 s each"


def test_a_weak_start_leaves_the_solver(tmp_path, photos, classes, given, monkeypatch):
    monkeypatch.setattr(choice, "start_from", lambda *_: WEAK)
    method, reason = said(api.adapt(photos, classes, tmp_path / "run", minutes=60, **given))
    assert method == "consensus"
    assert "it says nothing" in reason


def test_what_cannot_be_trained_is_refused(tmp_path, photos, classes, given):
    rng = np.random.default_rng(0)
    np.save(tmp_path / "x.npy", rng.normal(size=(20, 6)).astype(np.float32))
    np.save(tmp_path / "w.npy", rng.normal(size=(len(CLASSES), 6)).astype(np.float32))
    with pytest.raises(UserError, match="consensus-tuned needs photographs"):
        api.adapt(tmp_path / "x.npy", classes, tmp_path / "run", prototypes=tmp_path / "w.npy", minutes=60, console=QUIET)
    with pytest.raises(UserError, match=r"method\.extra must be \[\] or cls where the tower is trained"):
        api.adapt(photos, classes, tmp_path / "run", extra=[tmp_path / "x.npy"], minutes=60, **given)


def test_the_estimator_spends_it(given):
    model = LabelFreeClassifier(CLASSES, backbone=given["backbone"], minutes=0.7, options=OPTIONS).fit(pictures())
    assert model.classifier_.model.method == "consensus-tuned"
    assert model.predict(pictures()).shape == (24,)

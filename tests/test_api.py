"""The verbs from Python: what they return, what they write, what they refuse."""

from __future__ import annotations

import inspect
import json
import shutil
from dataclasses import fields

import numpy as np
import pytest

import finelens
from finelens import api
from finelens.errors import UserError
from finelens.images.store import LoadedImages, PixelStore
from finelens.protocol import ImageRecord
from finelens.runs import execute as execution
from finelens.runs.arguments import PredictArguments, RunArguments
from finelens.runs.config import RunConfig
from finelens.runs.evaluate import summary
from finelens.runs.folder import RunFolder
from finelens.runs.inputs import images_digest
from finelens.runs.resolve import make_config
from finelens.storage.predictions import read_predictions
from finelens.training.loop import Interrupted
from tests.toy import CLASSES, QUIET, digest, events, forwards, pictures, quick, stop_after


@pytest.fixture(scope="module")
def given(tiny_vit) -> dict:
    return {"method": "microclip", "backbone": f"local:{tiny_vit}", "options": quick(), "console": QUIET}


@pytest.fixture(scope="module")
def finished(tmp_path_factory, photos, classes, given) -> api.RunResult:
    """An adapted run; only read."""
    return finelens.adapt(photos, classes, tmp_path_factory.mktemp("api") / "run", **given)


def test_public_names_are_importable_and_listed():
    assert set(finelens.__all__) <= set(dir(finelens))
    for name in finelens.__all__:
        assert getattr(finelens, name) is not None
    with pytest.raises(AttributeError, match="nothing"):
        _ = finelens.nothing


@pytest.mark.parametrize(
    ("verb", "arguments", "others"),
    [
        (api.adapt, RunArguments, {"out", "overwrite", "console", "should_stop", "labels_follow"}),
        (api.predict_to, PredictArguments, {"console"}),
    ],
    ids=["adapt", "predict"],
)
def test_a_verb_takes_what_its_arguments_hold_with_the_same_defaults(verb, arguments, others):
    taken = {name: parameter.default for name, parameter in inspect.signature(verb).parameters.items() if name not in others}
    assert taken.keys() == {field.name for field in fields(arguments)}
    for field in fields(arguments):
        assert taken[field.name] in (field.default, inspect.Parameter.empty)


def test_options_are_resolved_into_the_configuration():
    options = {"training": {"epochs": 3}, "method": {"gamma": 1}, "views": {"rand_layers": 1}}
    config = make_config("adapt", "p", "microclip", options, seed=4, backbone="local:somewhere")
    assert isinstance(config, RunConfig)
    assert (config.training.epochs, config.training.lr, config.views.rand_layers, config.seed) == (3, 1e-4, 1, 4)
    assert config.method_options.gamma == 1.0
    assert config.method_options.query == "saliency"


@pytest.mark.parametrize("option", [{"epochs": 1}, {"lr": 1e-3}, {"scope": "all"}])
def test_idle_training_options_are_refused(option):
    with pytest.raises(UserError, match=rf"training\.{next(iter(option))} has no effect: method cupl"):
        make_config("zero-shot", "p", "cupl", {"training": option})
    assert make_config("zero-shot", "p", "cupl", {"training": {"precision": "float32"}}).training.precision == "float32"


def test_result_is_what_the_table_says(finished):
    assert read_predictions(finished.path / "predictions.csv") == finished.rows
    assert len(finished.rows) == 24


def test_end_event_counts_the_work(finished):
    log = events(finished.path)
    # 24 looked at before and 24 predicted after; 2 epochs of 1 weak view, 8 crops and 1 strong view.
    assert forwards(finished.path) == (24 + 2 * 24 * 9 + 24, 2 * 24)
    epochs = [event for event in log if event["event"] == "epoch"]
    assert [event["epoch"] for event in epochs] == [0, 1]
    assert all(np.isfinite(event["loss"]) for event in epochs)
    assert log[1]["files"] == 24


def test_loaded_run_predicts_what_was_written(finished, photos):
    classifier = finelens.load(finished.path)
    assert isinstance(classifier, finelens.Classifier)
    assert classifier.classes == list(CLASSES)
    p = classifier.predict_proba(photos)
    np.testing.assert_allclose(p.max(1), [row.probability for row in finished.rows], atol=1e-5)
    assert classifier.predict(photos) == [row.label for row in finished.rows]


def test_branches_of_a_prediction(finished):
    found = finelens.load(finished.path).predictions(pictures(1))
    assert set(found.logits) == {"logits", "global", "fine"}
    assert set(found.zero_shot) == {"templates", "descriptions"}
    assert not finelens.load(finished.path).predictions(pictures(1), zero_shot=False).zero_shot
    answer = found.logits["logits"] * finelens.load(finished.path).model.temperature
    np.testing.assert_allclose(answer, 0.5 * found.logits["global"] + 0.5 * found.logits["fine"], atol=1e-5)


def test_large_folders_are_read_in_groups(finished, photos, monkeypatch):
    whole = finelens.load(finished.path).predictions(photos)
    monkeypatch.setattr("finelens.runs.predict.GROUP", 5)
    monkeypatch.setattr("finelens.runs.predict.BATCH", 3)
    parts = finelens.load(finished.path).predictions(photos)
    assert [record.name for record in parts.records] == [record.name for record in whole.records]

    def by_name(found):
        return {record.name: found.logits["logits"][record.index].numpy() for record in found.records}

    for name, logits in by_name(whole).items():
        np.testing.assert_allclose(by_name(parts)[name], logits, atol=1e-4)


def test_evaluation_of_a_run(finished, photos, tmp_path):
    scores = finelens.evaluate(finished.path, photos, json_file=tmp_path / "scores.json", console=QUIET)
    assert json.loads((tmp_path / "scores.json").read_text()) == scores
    right = [row.label == row.path.split("/")[0] for row in finished.rows]
    assert scores["accuracy"] == pytest.approx(np.mean(right))
    assert scores["n"] == 24
    assert scores["description_ensemble_accuracy"] is None
    said = scores["estimates"]
    assert said["images"] == 24
    assert said["confidence"] == pytest.approx(np.mean([row.probability for row in finished.rows]), abs=1e-4)
    # These are the photographs of the fit: their own level says what their probabilities say.
    assert said["threshold"] == pytest.approx(said["confidence"], abs=1e-4)
    line, own, free = summary(scores).split("\n")
    assert scores["adapted_to"] == 24
    assert own.startswith("all of these are photographs that the run was adapted to, without labels")
    assert free == f"without labels one would say of the accuracy: about {said['confidence']:.0%} right by its own probabilities"
    assert f"{scores['accuracy']:.1%} of {scores['n']} images are right (accuracy;" in line
    assert "24 images" in line
    assert "descriptions" not in line
    assert ", with descriptions 50.0%" in summary(scores | {"description_ensemble_accuracy": 0.5})


def test_evaluation_needs_a_readable_image(finished, tmp_path):
    (tmp_path / "test" / CLASSES[0]).mkdir(parents=True)
    (tmp_path / "test" / CLASSES[0] / "a.png").write_text("no")
    with pytest.raises(UserError, match="none of the 1 labelled files"):
        finelens.evaluate(finished.path, tmp_path / "test", console=QUIET)


def test_zero_shot_refuses_to_train(photos, classes, tmp_path):
    with pytest.raises(UserError, match="finelens adapt --method microclip"):
        finelens.zero_shot(photos, classes, tmp_path / "run", method="microclip")
    assert not (tmp_path / "run").exists()


def test_resume_of_a_finished_run_does_nothing(finished, capsys):
    before = digest(finished.path / "events.jsonl")
    assert finelens.resume(finished.path) is None
    assert "nothing to resume" in capsys.readouterr().err
    assert digest(finished.path / "events.jsonl") == before


@pytest.mark.parametrize("lost", ["predictions.csv", "model/model.json"])
def test_resume_says_what_is_gone_of_a_finished_run(finished, tmp_path, lost):
    """The other verbs say that such a run is not finished, and name resume."""
    shutil.copytree(finished.path, tmp_path / "run")
    (tmp_path / "run" / lost).unlink()
    with pytest.raises(UserError, match=r"is gone, though the run was finished; make it again with the options that finelens config"):
        finelens.resume(tmp_path / "run", console=QUIET)


@pytest.mark.parametrize("lost", ["report.html", "MODEL_CARD.md"])
@pytest.mark.parametrize("verb", [finelens.resume, finelens.report])
def test_a_run_killed_before_its_report_gets_it(finished, tmp_path, verb, lost):
    run = shutil.copytree(finished.path, tmp_path / "run")
    (run / lost).unlink()
    verb(run, console=QUIET)
    assert (run / lost).is_file()
    assert digest(run / "events.jsonl") == digest(finished.path / "events.jsonl")
    assert finelens.resume(run, console=QUIET) is None


def test_scores_replace_scores_and_nothing_else(finished, photos, tmp_path):
    file = tmp_path / "scores.json"
    for text in ('{"a": 1}', "{", "[1]"):
        file.write_text(text)
        with pytest.raises(UserError, match=r"scores\.json"):
            finelens.evaluate(finished.path, photos, json_file=file, console=QUIET)
        assert file.read_text() == text
    file.write_text("")
    first = finelens.evaluate(finished.path, photos, json_file=file, console=QUIET)
    assert finelens.evaluate(finished.path, photos, json_file=file, console=QUIET) == first


@pytest.mark.parametrize("stage", ["write_predictions", "save_model"])
def test_run_killed_after_training_is_finished_by_resume(photos, classes, given, finished, tmp_path, monkeypatch, stage):
    def die(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(execution, stage, die)
        with pytest.raises(KeyboardInterrupt):
            finelens.adapt(photos, classes, tmp_path / "run", **given)
    assert finelens.resume(tmp_path / "run", console=QUIET) is not None
    for file in ("predictions.csv", "model/model.safetensors"):
        assert digest(tmp_path / "run" / file) == digest(finished.path / file)
    assert events(tmp_path / "run") == events(finished.path)


def test_run_killed_before_its_first_checkpoint_starts_afresh(photos, classes, given, finished, tmp_path, monkeypatch):
    def die(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("finelens.methods.microclip.task.MicroClip.step", die)
        with pytest.raises(KeyboardInterrupt):
            finelens.adapt(photos, classes, tmp_path / "run", **given)
    assert not (tmp_path / "run" / "checkpoint").exists()
    assert finelens.resume(tmp_path / "run", console=QUIET) is not None
    assert digest(tmp_path / "run/model/model.safetensors") == digest(finished.path / "model/model.safetensors")
    assert events(tmp_path / "run") == events(finished.path)
    # What the killed process had looked at is not encoded again.
    assert forwards(tmp_path / "run")[0] == forwards(finished.path)[0] - 24


def test_interrupted_several_times(photos, classes, given, finished, tmp_path):
    run = tmp_path / "run"
    with pytest.raises(Interrupted):
        finelens.adapt(photos, classes, run, **given, should_stop=stop_after(1))
    for _ in range(4):
        with pytest.raises(Interrupted):
            finelens.resume(run, console=QUIET, should_stop=stop_after(1))
    with pytest.raises(Interrupted):
        finelens.resume(run, console=QUIET, should_stop=stop_after(1))
    assert finelens.resume(run, console=QUIET, should_stop=stop_after(1)) is not None
    assert digest(run / "model/model.safetensors") == digest(finished.path / "model/model.safetensors")
    assert events(run) == events(finished.path)


def test_run_in_use_is_left_alone(photos, classes, given, tmp_path):
    with pytest.raises(Interrupted):
        finelens.adapt(photos, classes, tmp_path / "run", **given, should_stop=stop_after(1))
    with RunFolder.open(tmp_path / "run"), pytest.raises(UserError, match="another run is using"):
        finelens.resume(tmp_path / "run", console=QUIET)


def test_failed_start_leaves_no_run_and_a_started_one_stays(photos, classes, given, tmp_path):
    """What fails before the first event can be started again in the same folder; what has events cannot."""
    with pytest.raises(UserError, match="unknown tuning scope"):
        finelens.adapt(photos, classes, tmp_path / "run", **{**given, "options": quick(scope="nothing")})
    assert not (tmp_path / "run" / "config.json").exists()
    with pytest.raises(Interrupted):
        finelens.adapt(photos, classes, tmp_path / "run", **given, should_stop=stop_after(1))
    with pytest.raises(UserError, match="--overwrite"):
        finelens.adapt(photos, classes, tmp_path / "run", **given)


def test_digest_of_images_depends_on_content_alone():
    def loaded(ids, names):
        return LoadedImages(PixelStore(ids, []), [ImageRecord(name, "ok", "", key, i) for i, (name, key) in enumerate(zip(names, ids, strict=True))])

    assert images_digest(loaded(["a", "b"], ["x", "y"])) == images_digest(loaded(["a", "b"], ["p", "q"]))
    assert images_digest(loaded(["a", "b"], ["x", "y"])) != images_digest(loaded(["a", "a-1"], ["x", "y"]))
    assert images_digest(loaded(["ab"], ["x"])) != images_digest(loaded(["a", "b"], ["x", "y"]))


def test_prediction_of_unreadable_files_alone(finished, tmp_path):
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "a.png").write_text("no")
    rows = finelens.predict(finished.path, tmp_path / "new", tmp_path / "out.csv", console=QUIET)
    assert [(row.path, row.label, row.status) for row in rows] == [("a.png", None, "corrupt")]
    assert read_predictions(tmp_path / "out.csv") == rows


def test_templates_from_a_file(photos, classes, given, tmp_path):
    (tmp_path / "templates.txt").write_text("a pattern of {}.\n")
    options = {"text": {"templates": str(tmp_path / "templates.txt")}, "training": {"precision": "float32"}}
    finelens.zero_shot(photos, classes, tmp_path / "run", **{**given, "method": "zero-shot", "options": options})
    logged = next(event for event in events(tmp_path / "run") if event["event"] == "classes")
    assert logged["templates"] == ["a pattern of {}."]

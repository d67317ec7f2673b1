"""Runs whose starting model hardly knows the classes: what tells them, what becomes of them, and how to train all the same."""

from __future__ import annotations

import json
import math
from dataclasses import fields, replace

import pytest
import torch

from finelens import LabelFreeClassifier, api
from finelens.bench.rows.health import health_of
from finelens.bench.tables.leaderboard import leaderboard
from finelens.bench.tables.table import markdown_tables
from finelens.core.options import from_mapping
from finelens.core.schemas import VERDICTS
from finelens.errors import UserError
from finelens.evaluation import weak_start as start
from finelens.evaluation.signals import Signals
from finelens.evaluation.verdict import verdict
from finelens.evaluation.weak_start import LEAST_DESCRIPTIONS, LEAST_TEMPLATES, Start, start_of
from finelens.feature_store.encoder import FeatureEncoder
from finelens.feature_store.store import feature_rows
from finelens.images.batches import centre_batches
from finelens.images.decode import DecodeLimits
from finelens.images.load import decode_limits, load
from finelens.images.view_config import ViewConfig
from finelens.methods.auto import Facts, choose_method
from finelens.methods.registry import find_method
from finelens.protocol import Hints
from finelens.reporting.record import read_run
from finelens.reporting.review.sheet import adapt_command
from finelens.runs.fit import fit
from finelens.runs.folder import RunFolder
from finelens.runs.model import load_model, save_model
from finelens.solvers.presence import information
from finelens.storage.predictions import read_predictions
from finelens.training.config import TrainingConfig
from finelens.training.loop import Hooks, Interrupted
from tests.bench.world import make_context, row, write_set
from tests.children import Child
from tests.toy import (
    CLASSES,
    QUIET,
    TRAINING,
    Log,
    events,
    fit_toy,
    forwards,
    options_for,
    pictures,
    prepare_toy,
    stop_after,
    write_classes,
    write_noise,
)

SELF_TRAINING = [name for name in TRAINING if not find_method(name).few_shot]


@pytest.fixture
def strict(monkeypatch):
    """Every start is too weak."""
    monkeypatch.setattr(start, "FEW_IMAGES", 5)
    monkeypatch.setattr(start, "LEAST_TEMPLATES", 1.1)


# The measure.


def posteriors(confidence: float, labels: list[int], classes: int) -> torch.Tensor:
    """Each image's class gets the confidence, the others share the rest."""
    own = torch.nn.functional.one_hot(torch.tensor(labels), classes).double()
    return confidence * own + (1 - confidence) / (classes - 1) * (1 - own)


def test_information_at_its_limits():
    assert information(posteriors(1, [0, 1, 2, 3] * 5, 4)) == 1
    assert information(posteriors(1, [0] * 99 + [1], 2)) == 1
    assert information(torch.full((20, 4), 0.25)) == 0
    # The same answer for every image says nothing about any, however sure it is; and never less than nothing.
    for seed in range(20):
        same = torch.randn(1, 7, generator=torch.Generator().manual_seed(seed)).softmax(1).repeat(100, 1)
        assert str(information(same)) == "0.0"
    # There is nothing to tell apart.
    assert information(torch.ones(20, 1)) == 1
    assert information(torch.zeros(0, 4)) == 1


def test_information_by_hand():
    p = torch.randn(50, 6, generator=torch.Generator().manual_seed(0)).double().softmax(1)
    entropy = lambda q: -sum(x * math.log(x) for x in q)  # noqa: E731
    mean = [sum(column) / 50 for column in zip(*p.tolist(), strict=True)]
    assert information(p) == pytest.approx(1 - sum(map(entropy, p.tolist())) / 50 / entropy(mean), abs=5e-5)


def test_doubt_about_unequal_classes_lowers_it():
    equal, unequal = ([0] * 100 + [1] * 100, [0] * 196 + [1] * 4)
    assert information(posteriors(0.85, equal, 2)) > 0.3
    assert information(posteriors(0.85, unequal, 2)) < LEAST_DESCRIPTIONS
    assert information(posteriors(0.999, unequal, 2)) > 0.9


def test_each_text_has_to_know_enough():
    sure, unsure = posteriors(0.9, [0, 1, 2, 3] * 20, 4), posteriors(0.4, [0, 1, 2, 3] * 20, 4)
    assert information(unsure) < LEAST_DESCRIPTIONS
    assert not start_of(sure, None).weak
    assert not start_of(sure, sure).weak
    assert all(start_of(*texts).weak for texts in ((unsure, None), (unsure, sure), (sure, unsure)))
    # Of a few images nothing is said.
    assert not start_of(unsure[:49], None).weak
    assert start_of(unsure[:50], None).weak
    assert not Start(50, LEAST_TEMPLATES, LEAST_DESCRIPTIONS).weak
    assert Start(50, LEAST_TEMPLATES, LEAST_DESCRIPTIONS - 0.0001).weak
    assert Start(50, LEAST_TEMPLATES - 0.0001, LEAST_DESCRIPTIONS).weak
    assert "from knowing nothing to being certain of the class: 10.99%; training needs 14.50%" in Start(50, 0.1099, None).account
    assert "certain of the class: 30.00% with class names (templates), 10.99% with descriptions" in Start(50, 0.3, 0.1099).account
    assert Start(50, 0.3, 0.1099).account.endswith("training needs 14.50% and 13.00%")


# Who asks.


def test_the_choice_of_auto():
    facts = Facts(images=4000, classes=40, named=30, photographs=True, descriptions=True, budget=60, training=20.4)
    assert choose_method(facts)[0] == "microclip"
    name, reason = choose_method(replace(facts, weak_start="it knows nothing"))
    assert name == "tip-adapter"
    assert reason.endswith("microclip was left out: it knows nothing")


def test_auto_asks_before_it_estimates(noise, tmp_path, tiny_vit, monkeypatch):
    monkeypatch.setattr("finelens.methods.auto.MANY_IMAGES", 20)
    monkeypatch.setattr("finelens.runs.auto.estimate", None)
    given = {"backbone": f"local:{tiny_vit}", "console": QUIET, "options": {"training": {"precision": "float32"}}}
    monkeypatch.setattr("finelens.runs.auto.unadapted_logits", lambda *_: (torch.eye(len(CLASSES)).repeat(13, 1), None))
    run = api.adapt(noise, write_classes(tmp_path / "names.txt"), tmp_path / "run", method="auto", minutes=60, **given)
    (event,) = [event for event in events(run.path) if event["event"] == "choice"]
    assert event["method"] == "tip-adapter"
    assert "microclip was left out: the starting model hardly knows these classes: by its own account" in event["reason"]


def signals(**changes) -> Signals:
    usual = {field.name: 0.5 for field in fields(Signals)}
    healthy = {"classes": 10, "images": 100, "agreement": 0.7, "kept": 0.9, "text_agreement": 0.8, "spread": 0.8, "spread_zero_shot": 0.8}
    healthy |= {"largest": 0.2, "name_sense": 9.0}
    return Signals(**{**usual, **healthy, **changes})


def test_the_verdict_on_a_run_that_was_trained_all_the_same():
    assert verdict(signals()).level == "improved"
    found = verdict(signals(descriptions_information=0.05))
    assert found.level == "unclear"
    assert "hardly knows these classes" in found.sentence
    assert any(reason.kind == "bad" and "5.00% with descriptions" in reason.text for reason in found.reasons)
    assert verdict(signals(templates_information=None)).level == "improved"
    # Labels are something to build on.
    assert verdict(signals(descriptions_information=0.05), labelled=True).level == "improved"


# Every method that trains on answers of its own.


@pytest.mark.parametrize("method", [name for name in SELF_TRAINING if name != "consensus-tuned"])
def test_a_weak_start_is_kept(method, tiny_vit, strict, tmp_path):
    prepared, fitted, log = fit_toy(tiny_vit, method, pictures())
    assert "training needs" in str(fitted.untrained)
    assert log.events == []
    assert prepared.engine.counts[:2] == (24, 0)
    save_model(tmp_path, fitted.model)
    again = load_model(tmp_path)
    assert again.method == "zero-shot"
    store = load(pictures(), DecodeLimits(), QUIET).store
    preprocess = prepared.engine.backbone.preprocess
    views = torch.cat([centre for _, centre in centre_batches(store, preprocess, 64)])
    (rows,) = feature_rows(FeatureEncoder(prepared.engine, decode_limits(ViewConfig(), preprocess).short_side).centre(store, QUIET, ""), 64)
    for model in (fitted.model, again):
        # The same batch, that of the fit: the same bits.
        assert torch.equal(model.logits(rows)["logits"], fitted.zero_shot_logits)
        # Another batch: a matrix product may differ in its last bits, which the logit scale multiplies.
        torch.testing.assert_close(
            model.logits(views)["logits"], fitted.zero_shot_logits, rtol=0, atol=1e-5 * float(model.engine.backbone.logit_scale)
        )
    assert torch.equal(again.logits(views)["logits"], fitted.model.logits(views)["logits"])


def test_the_teacher_answers_where_its_student_is_not_trained(tiny_vit, strict):
    """With the options that both have, as where a time budget is not spent."""
    options = {"training": {"precision": "float32"}, "method": {"neighbours": 4}}
    found, expected = (fit_toy(tiny_vit, name, pictures(), options=options)[1] for name in ("consensus-tuned", "consensus"))
    assert "training needs" in str(found.untrained)
    assert expected.untrained is None
    assert found.model.method == "consensus"
    assert found.model.method_options == expected.model.method_options
    states = (fitted.model.task.state_dict() for fitted in (found, expected))
    torch.testing.assert_close(*states, rtol=0, atol=0)
    health = health_of(found, load(pictures(), DecodeLimits(), QUIET).store, QUIET)
    assert "zero-shot" not in health.verdict.sentence
    assert health.to_json()["untrained"] == found.untrained


@pytest.mark.parametrize("method", TRAINING)
def test_what_lets_it_train(method, tiny_vit, strict):
    """The option, or a person who named a class; few-shot methods have that always."""
    config, prepared = prepare_toy(tiny_vit, method, options={"training": {"epochs": 1, "batch_size": 8, "precision": "float32"}})
    store = load(pictures(), decode_limits(config.views, prepared.engine.backbone.preprocess), QUIET).store
    log = Log()
    hints = Hints(torch.arange(4) * 6, torch.arange(4))
    assert fit(prepared, store, config, QUIET, Hooks(run=log), hints=hints).untrained is None
    assert len(log.losses) == 1
    if find_method(method).few_shot:
        return
    options = {"training": {"epochs": 1, "batch_size": 8, "precision": "float32", "guard": "off"}}
    _, fitted, log = fit_toy(tiny_vit, method, pictures(), options=options)
    assert fitted.untrained is None
    assert len(log.losses) == 1


def test_answers_that_are_no_class(tiny_vit, strict):
    """They let nothing train; with nothing but such answers there is nothing to adapt to, whatever the start."""
    config, prepared = prepare_toy(tiny_vit, "dpa")
    store = load(pictures(), decode_limits(config.views, prepared.engine.backbone.preprocess), QUIET).store
    assert fit(prepared, store, config, QUIET, hints=Hints(torch.tensor([0]), torch.tensor([-1]))).untrained is not None
    with pytest.raises(UserError, match="none of the classes"):
        fit(prepared, store, config, QUIET, hints=Hints(torch.arange(24), torch.full((24,), -1)))


def test_labels_on_a_weak_start_are_used_with_a_warning(tiny_vit, strict, capsys):
    config, prepared = prepare_toy(tiny_vit, "dpa", options={"training": {"epochs": 1, "batch_size": 8, "precision": "float32"}})
    store = load(pictures(), decode_limits(config.views, prepared.engine.backbone.preprocess), QUIET).store
    fit(prepared, store, config, QUIET, hints=Hints(torch.tensor([0]), torch.tensor([0])))
    assert "Training goes on, since photographs are labelled" in capsys.readouterr().err


@pytest.mark.parametrize("method", ["stata", "cupl", "gda-em"])
def test_methods_without_training_are_left_alone(method, tiny_vit, strict):
    assert fit_toy(tiny_vit, method, pictures())[1].untrained is None


def test_a_start_that_knows_the_classes_trains_as_without_the_guard(tiny_vit, monkeypatch):
    monkeypatch.setattr(start, "FEW_IMAGES", 5)
    monkeypatch.setattr(start, "LEAST_TEMPLATES", 0.0)
    on, off = (fit_toy(tiny_vit, "dpa", pictures(), options=options_for("dpa", guard=guard))[1].model for guard in ("on", "off"))
    assert all(torch.equal(a, b) for a, b in zip(on.task.state_dict().values(), off.task.state_dict().values(), strict=True))


def test_the_option_is_checked():
    with pytest.raises(UserError, match=r"training.guard.*off"):
        from_mapping(TrainingConfig, {"guard": "of"}, "training")


# As a user meets it. The photographs are noise, so a model has nothing to say about them: no threshold is changed.


@pytest.fixture(scope="module")
def noise(tmp_path_factory):
    return write_noise(tmp_path_factory.mktemp("noise"))


@pytest.fixture(scope="module")
def command(noise, tmp_path_factory, tiny_vit):
    folder = tmp_path_factory.mktemp("command")
    names = write_classes(folder / "names.txt")
    words = ["adapt", str(noise), "--classes", str(names), "--method", "microclip", "--backbone", f"local:{tiny_vit}", "--set", "training.epochs=1"]

    def run(out: str, *more: str):
        process = Child(["-m", "finelens", *words, "--out", folder / out, *more])
        return folder / out, process.communicate().err, process.returncode

    return run


@pytest.fixture(scope="module")
def kept(command):
    folder, said, code = command("kept")
    assert code == 0, said
    return folder, said


def test_a_run_says_so_and_ends_with_the_answers_of_zero_shot(kept):
    folder, said = kept
    # What to do comes first.
    assert "warning: label a few photographs and adapt again with --hints" in said
    assert "nothing is trained, the answers are those of the unadapted model, because the starting model hardly knows these classes: by" in said
    assert "training.guard=off" in said
    assert forwards(folder) == (52, 0)
    (event,) = [event for event in events(folder) if event["event"] == "guard"]
    assert "training needs 14.50%" in event["reason"]
    assert "warning" not in {event["event"] for event in events(folder)}
    rows = read_predictions(folder / "predictions.csv")
    assert len(rows) == 52
    assert all(row.label == row.zero_shot_class is not None for row in rows)
    assert json.loads((folder / "config.json").read_text())["method"] == "microclip"
    assert json.loads((folder / "model" / "model.json").read_text())["method"] == "zero-shot"


def test_the_report_and_the_card_open_with_it(kept):
    page = (kept[0] / "report.html").read_text(encoding="utf-8")
    assert "Nothing was trained, these are the answers of the unadapted model (zero-shot)" in page
    assert "By its own account one photograph brings it so far from knowing nothing" in page
    assert "Method zero-shot (microclip was kept from training), model" in page
    card = (kept[0] / "MODEL_CARD.md").read_text(encoding="utf-8")
    title = r"zero\-shot \(microclip was kept from training\) on 52"
    for words in (title, "Nothing was trained", "Method: zero-shot (text)", "methods/zero-shot.md"):
        assert words in card
    assert "It was adapted" not in card


def test_such_a_run_predicts_explains_and_is_finished(kept, noise, tmp_path, capsys):
    folder = kept[0]
    rows = api.predict(folder, noise, tmp_path / "new.csv", console=QUIET)
    assert [row.label for row in rows] == [row.zero_shot_class for row in rows]
    assert api.resume(folder) is None
    assert "finished" in capsys.readouterr().err
    api.explain(folder, noise / "00.png", tmp_path / "page.html", console=QUIET)
    assert (tmp_path / "page.html").is_file()
    api.report(folder, console=QUIET)
    assert "Nothing was trained" in (folder / "report.html").read_text(encoding="utf-8")


def test_it_trains_when_told_to(command):
    folder, said, code = command("trained", "--set", "training.guard=off", "--set", "method.crops=1")
    assert code == 0, said
    assert "nothing is trained" not in said
    assert forwards(folder)[1] == 52
    # What comes of it is not believed either.
    assert "nothing was trained" not in (folder / "report.html").read_text(encoding="utf-8").lower()
    assert json.loads((folder / "signals.json").read_text())["signals"]["templates_information"] < LEAST_TEMPLATES
    assert "What the unadapted model knows: by its own account" in (folder / "report.html").read_text(encoding="utf-8")


def test_from_python(noise, tiny_vit):
    model = LabelFreeClassifier(CLASSES, method="fair", backbone=f"local:{tiny_vit}").fit(noise)
    assert model.classifier_.model.method == "zero-shot"
    assert "training needs" in model.untrained_
    assert set(model.predict(noise)) <= set(CLASSES)


def test_a_kill_before_the_end_loses_nothing(noise, tmp_path, tiny_vit, monkeypatch):
    names = write_classes(tmp_path / "names.txt")
    given = {"method": "dpa", "backbone": f"local:{tiny_vit}", "console": QUIET, "options": {"training": {"precision": "float32"}}}
    whole = api.adapt(noise, names, tmp_path / "whole", **given)

    def killed(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("finelens.runs.execute.save_model", killed)
        with pytest.raises(KeyboardInterrupt):
            api.adapt(noise, names, tmp_path / "killed", **given)
    api.resume(tmp_path / "killed", console=QUIET)
    assert (tmp_path / "killed" / "predictions.csv").read_bytes() == (whole.path / "predictions.csv").read_bytes()
    assert events(tmp_path / "killed") == events(whole.path)


def test_a_run_that_trains_already_is_not_asked_again(photos, tmp_path, tiny_vit, monkeypatch):
    names = write_classes(tmp_path / "names.txt")
    given = {"method": "dpa", "backbone": f"local:{tiny_vit}", "console": QUIET, "options": options_for("dpa")}
    with pytest.raises(Interrupted):
        api.adapt(photos, names, tmp_path / "run", should_stop=stop_after(4), **given)
    monkeypatch.setattr(start, "FEW_IMAGES", 5)
    monkeypatch.setattr(start, "LEAST_TEMPLATES", 1.1)
    assert api.resume(tmp_path / "run", console=QUIET).untrained is None
    assert api.adapt(photos, names, tmp_path / "new", **given).untrained is not None


def test_the_review_sheet_of_a_kept_run_goes_on_with_auto(kept, tmp_path):
    with RunFolder.open(kept[0], lock=False) as folder:
        assert "--method auto" in adapt_command(read_run(folder))


# In the benchmark.


@pytest.fixture
def context(tmp_path, tiny_vit):
    return make_context(write_set(tmp_path / "set"), tiny_vit)


def test_a_row_says_what_was_kept_and_what_a_report_would_say(context, strict):
    kept, trained = (row(context, "dpa", options=("training.epochs=1", *more)) for more in ((), ("training.guard=off",)))
    assert kept.status == trained.status == "ok"
    assert "training needs" in kept.health["untrained"]
    assert kept.health["verdict"] == "unclear"
    assert kept.measures["accuracy"] == kept.measures["zero_shot_accuracy"]
    assert kept.measures["difference_interval"] == [0.0, 0.0]
    assert (kept.cost["no_grad_forwards"], kept.cost["grad_forwards"], kept.cost["epochs"]) == (24 + 12, 0, 0)
    assert "untrained" not in trained.health
    assert trained.cost["epochs"] == 1
    assert trained.health["signals"]["templates_information"] == kept.health["signals"]["templates_information"]
    table = markdown_tables([kept])
    assert f"{100 * kept.measures['accuracy']:.1f}°" in table
    assert "Nothing was trained on" in table
    assert "°" not in markdown_tables([trained])
    page = leaderboard([kept, trained])
    assert page.count("Nothing was trained on") == 1


def test_rows_of_other_methods_have_a_verdict_too(context):
    found = row(context, "stata").health
    assert found["verdict"] in VERDICTS
    assert found["signals"]["images"] == 24

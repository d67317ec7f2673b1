"""Another list of classes than the run's: what each method makes of it, without a new fit."""

from __future__ import annotations

import csv
import json
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import torch

import finelens
from finelens.errors import UserError
from finelens.methods.method import NEW_CLASSES
from finelens.methods.registry import METHODS, find_method
from finelens.storage.predictions import softmax
from tests.toy import CLASSES, QUIET, hints_file, options_for

OTHER = ("green check", "a purple star", "red stripe")
KEPT = [1, -1, 0]


@pytest.fixture(scope="module")
def run_of(tiny_vit, photos, classes, tmp_path_factory):
    """A finished run of each method, made once."""
    made = {}

    def run(method: str, **given) -> Path:
        key = json.dumps([method, given])
        if key not in made:
            folder = tmp_path_factory.mktemp("other") / "run"
            options = {name: {**values} for name, values in options_for(method, epochs=1).items()}
            options["method"] = {**options.get("method", {}), **given}
            verb = finelens.zero_shot if not find_method(method).adapts else finelens.adapt
            hints = hints_file(method, folder, photos)
            verb(photos, classes, folder, method=method, backbone=f"local:{tiny_vit}", options=options, console=QUIET, calibration=False, **hints)
            made[key] = folder
        return made[key]

    return run


def answers(classifier, photos) -> np.ndarray:
    return classifier.predict_proba(photos)


@pytest.mark.parametrize("method", ["zero-shot", "consensus", "carprt", "dpa", "consensus-tuned"])
def test_names_may_go_with_every_method(run_of, photos, method):
    classifier = finelens.load(run_of(method))
    before = answers(classifier, photos)
    fewer = classifier.with_classes(["blue disc", "red stripe"])
    assert fewer.classes == ["blue disc", "red stripe"]
    # What is left is what was said of the two before, with the others ruled out.
    expected = before[:, [2, 0]] / before[:, [2, 0]].sum(1, keepdims=True)
    np.testing.assert_allclose(answers(fewer, photos), expected, atol=1e-5)
    assert np.array_equal(answers(classifier, photos), before)


@pytest.mark.parametrize("method", ["waffle", "text-classifier"])
def test_methods_of_texts_alone_answer_as_if_the_list_had_been_theirs(run_of, tiny_vit, photos, tmp_path, method):
    found = finelens.load(run_of(method)).with_classes(OTHER)
    names = tmp_path / "names.txt"
    names.write_text("\n".join(OTHER))
    given = {"method": method, "backbone": f"local:{tiny_vit}", "options": options_for(method), "console": QUIET, "calibration": False}
    finelens.zero_shot(photos, names, tmp_path / "run", **given)
    np.testing.assert_allclose(answers(found, photos), answers(finelens.load(tmp_path / "run"), photos), atol=1e-6)


@pytest.mark.parametrize("method", ["consensus", "carprt", "tda"])
def test_the_text_speaks_for_new_classes_and_the_solver_among_the_others(run_of, photos, method):
    classifier = finelens.load(run_of(method))
    before, found = answers(classifier, photos), answers(classifier.with_classes(OTHER), photos)
    said = classifier.with_classes(OTHER).predictions(photos).zero_shot["descriptions"]
    text = softmax(said.numpy())[[record.index for record in classifier.predictions(photos).records]]
    np.testing.assert_allclose(found[:, 1], text[:, 1], atol=2e-5)
    np.testing.assert_allclose(found[:, 0] / found[:, 2], before[:, 1] / before[:, 0], rtol=2e-3)
    np.testing.assert_allclose(found.sum(1), 1, atol=1e-5)


def test_gda_can_make_a_gaussian_of_a_new_class(run_of, photos):
    classifier = finelens.load(run_of("gda", base_to_new="gaussian"))
    before, after = classifier.task, classifier.with_classes(OTHER).task
    # Kept classes keep their scores to the bit.
    assert torch.equal(after.coef_[[0, 2]], before.coef_[[1, 0]])
    assert torch.equal(after.intercept_[[0, 2]], before.intercept_[[1, 0]])
    assert after.coef_.shape == (3, classifier.backbone.dim)
    # By default the model does not keep the covariance, and the text speaks; so it does after the return rule.
    plain = finelens.load(run_of("gda"))
    assert "shared_factor_" not in plain.task.prediction_state()
    assert type(plain.with_classes(OTHER).task).__name__ == "OtherClassesTask"
    returned = finelens.load(run_of("gda", base_to_new="gaussian", return_rule=1.0))
    assert type(returned.with_classes(OTHER).task).__name__ == "OtherClassesTask"


@pytest.mark.parametrize("method", ["dpa", "consensus-tuned"])
def test_what_was_trained_refuses_new_names_and_says_why(run_of, method):
    with pytest.raises(UserError, match=rf"method {method} was trained for the classes of its run.*names may be taken away"):
        finelens.load(run_of(method)).with_classes(OTHER)


def test_predict_takes_another_list(run_of, photos, tmp_path):
    run, names = run_of("consensus"), tmp_path / "names.txt"
    names.write_text("\n".join(OTHER))
    finelens.predict(run, photos, tmp_path / "rows.csv", classes=names, console=QUIET)
    rows = list(csv.DictReader((tmp_path / "rows.csv").open()))
    assert len(rows) == 24
    assert {row["class"] for row in rows} | {row["second_class"] for row in rows} <= set(OTHER)
    assert {row["zero_shot_class"] for row in rows} <= set(OTHER)
    with pytest.raises(UserError, match="about the names of --classes"):
        finelens.predict(run, photos, tmp_path / "other.csv", descriptions=names, console=QUIET)
    with pytest.raises(UserError, match="--prototypes stand for texts"):
        finelens.predict(run, photos, tmp_path / "other.csv", classes=names, prototypes=names, console=QUIET)


def test_such_a_classifier_does_not_travel(run_of):
    with pytest.raises(UserError, match="does not travel"):
        pickle.dumps(finelens.load(run_of("consensus")).with_classes(OTHER))


def test_the_page_says_of_every_method_what_it_does():
    page = (Path(__file__).parents[2] / "docs/new_classes.md").read_text(encoding="utf-8")
    listed = {}
    for kind in NEW_CLASSES:
        row = re.search(rf"^\| `{kind}` \|[^|]*\| ([^|]*) \|$", page, re.MULTILINE)
        assert row is not None, kind
        listed |= dict.fromkeys(re.findall(r"`([a-z-]+)`", row[1]), kind)
    assert listed == {method.name: method.new_classes for method in METHODS}
    assert len(CLASSES) == 4

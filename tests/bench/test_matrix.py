"""Rows of the benchmark against what a user's own run says."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from finelens import api
from finelens.bench.rows.context import Context
from finelens.bench.rows.matrix import Plan, choose_methods, compute, mixed, run
from finelens.bench.rows.measures import ELEVATER, NUMBERS, SHARES, measure_several
from finelens.bench.rows.origin import versions
from finelens.bench.rows.protocols import make_split, parse_protocol
from finelens.bench.rows.results import ResultsFile, unpack
from finelens.bench.sets.data import Part, read_folder
from finelens.bench.sets.find import find_data
from finelens.bench.sets.sealed import Labels
from finelens.errors import UserError
from finelens.methods.registry import METHODS, find_method
from finelens.solvers import TDA, OnlineGda, OnZeta
from tests.bench.world import make_context, row, without_times, write_set
from tests.toy import ALL, QUIET, TRAINING, WITH_SUPPORT

SET_UP = (*(method.name for method in METHODS if method.trains or method.few_shot), *WITH_SUPPORT)
FREE = tuple(name for name in ALL if name not in SET_UP)
FAST = ("training.epochs=1", "training.batch_size=8")


def user_result(toy_set, backbone, method, out, calibration):
    """What adapt and evaluate say of the same data."""
    options = {"training": {"precision": "float32", **({"epochs": 1, "batch_size": 8} if method in TRAINING else {})}}
    given = {"backbone": f"local:{backbone}", "method": method, "descriptions": toy_set / "descriptions.json", "options": options, "console": QUIET}
    api.adapt(toy_set / "train", toy_set / "classes.txt", out, calibration=calibration, **given)
    return api.evaluate(out, toy_set / "test", console=QUIET)


@pytest.mark.parametrize("method", [*FREE, *(name for name in TRAINING if not find_method(name).few_shot)])
def test_a_row_says_what_a_run_of_the_user_says(context, toy_set, tiny_vit, method, tmp_path):
    found = row(context, method, options=FAST if method in TRAINING else ())
    assert found.status == "ok", found.reason
    # Methods that ask many views of an image are not asked twice.
    calibrated = find_method(method).family != "views"
    assert ("temperature" in found.measures) == calibrated
    expected = user_result(toy_set, tiny_vit, method, tmp_path / "run", calibrated)
    for name in ("accuracy", "class_mean_accuracy", "zero_shot_accuracy", "description_ensemble_accuracy", "macro_f1", "n"):
        assert found.measures[name] == pytest.approx(expected[name]), name
    for name in ("nll", "ece"):
        own = f"calibrated_{name}" if calibrated else name
        assert found.measures[own] == pytest.approx(expected[name], abs=1e-4), name
    if calibrated:
        said = {"estimated_accuracy": "confidence", "estimate_threshold": "threshold", "estimate_agreement": "agreement"}
        for own, name in said.items():
            assert found.measures.get(own) == (value if (value := expected["estimates"][name]) is None else pytest.approx(value, abs=1e-4)), name


def test_a_row_with_unknown_classes_says_what_evaluate_unknown_says(context, toy_set, tiny_vit, tmp_path):
    found = row(context, "cupl", "unknown-half")
    assert found.status == "ok", found.reason
    assert (found.split["classes"], found.split["fit"], found.split["test"], found.split["unknown"]) == (2, 24, 6, 6)
    train, test = context.train.truth(), context.test.truth()
    names = make_split(parse_protocol("unknown-half"), train, test, context.data.class_names, 0, None).names
    (tmp_path / "names.txt").write_text("\n".join(names))
    options = {"training": {"precision": "float32"}}
    given = {"backbone": f"local:{tiny_vit}", "descriptions": toy_set / "descriptions.json", "options": options, "console": QUIET}
    api.adapt(toy_set / "train", tmp_path / "names.txt", tmp_path / "run", method="cupl", **given)
    table = {own["dir"]: own["name"] for own in json.loads((toy_set / "classes.json").read_text())["classes"]}
    lines = [f"{path.relative_to(toy_set / 'test')},{table[path.parent.name]}" for path in sorted((toy_set / "test").glob("*/*"))]
    (tmp_path / "labels.csv").write_text("path,label\n" + "\n".join(lines))
    said = api.evaluate(tmp_path / "run", toy_set / "test", tmp_path / "labels.csv", unknown=True, console=QUIET)
    assert found.measures["accuracy"] == pytest.approx(said["accuracy"])
    expected = {"none_known": "said_known", "none_unknown": "said_unknown", "none_text_auroc": "auroc", "none_text_fpr95": "fpr95"}
    for measure, name in expected.items():
        assert found.measures[measure] == pytest.approx(said["unknown"][name]), measure


def test_images_of_another_set_are_mixed_in_as_features(context, toy_set, tiny_vit, tmp_path):
    other = write_set(tmp_path / "other", train=4, test=2)
    plan = Plan(
        (parse_protocol("unknown-with-other"),), ("zero-shot", "fair"), (0,), context.start.spec, others={"other": lambda: read_folder(other)}
    )
    results = {}
    for key, protocol in plan.keys(context.data.name):
        results[key.method] = compute(mixed(context, protocol, plan), key, protocol, plan)
    found = results["zero-shot"]
    assert found.status == "ok", found.reason
    # Half of 24 and of 12, and no more than there are.
    assert (found.split["fit"], found.split["test"], found.split["unknown"]) == (24 + 12, 12, 6)
    assert found.measures["none_true"] == pytest.approx(1 / 3)
    assert found.source["other"] == "other"
    assert found.source["checksum"] != context.source["checksum"]
    assert found.measures["accuracy"] == row(context, "zero-shot").measures["accuracy"]
    assert (results["fair"].status, "needs pixels" in results["fair"].reason) == ("skipped", True)
    key, protocol = next(replace(plan, protocols=(parse_protocol("unknown-with-toy"),), others={"toy": lambda: read_folder(toy_set)}).keys("toy"))
    assert compute(context, key, protocol, plan).reason == "the set is mixed in with itself"


def test_every_measure_is_a_share_or_a_number(context):
    """Tables print shares in per cent: a measure of neither kind would be one that somebody forgot."""
    found = row(context, "gda-em", "unknown-half").measures | row(context, "consensus", "fewshot-2").measures
    found |= measure_several(np.eye(2, dtype=bool), {"logits": np.eye(2)}, {name: np.eye(2) for name in ("templates", "descriptions")})
    assert {name for name, value in found.items() if isinstance(value, int | float)} | {ELEVATER} == SHARES | NUMBERS
    assert not SHARES & NUMBERS


def test_methods_that_need_pixels_get_them(context):
    found = row(context, "dpa", options=FAST)
    assert found.timing["features"] == "own"
    assert found.cost["no_grad_forwards"] > 24 + 12


def test_views_are_encoded_once_for_all_methods_that_look_at_them(context, monkeypatch):
    given = ("method.views=5",)
    first = row(context, "zero", options=given)
    assert first.timing["features"] == "shared"
    # The fit images as every row counts them, and five views of each test image.
    assert first.cost["no_grad_forwards"] == 24 + 5 * 12
    engine = type(context.start.engine)
    monkeypatch.setattr(engine, "_chunked", None)
    again = row(context, "mta", options=given)
    assert again.status == "ok", again.reason
    assert again.cost == {**first.cost}
    monkeypatch.undo()
    monkeypatch.setenv("FINELENS_CACHE_GB", "0")
    own = row(context, "zero", options=given)
    assert own.timing["features"] == "own"
    assert (own.measures, own.correct, own.cost) == (first.measures, first.correct, first.cost)


@pytest.mark.parametrize("method", FREE)
def test_rows_do_not_depend_on_rows_before_them(context, method):
    first = row(context, method, "transductive")
    row(context, "gda-em", "few-1")
    row(context, "ot", "partial-2")
    assert without_times(row(context, method, "transductive")) == without_times(first)


def test_features_are_computed_once(context, monkeypatch):
    row(context, "gda-em")
    monkeypatch.setattr(type(context.start.engine), "_chunked", None)
    counted = row(context, "stata", "longtail-3", seed=5)
    assert counted.status == "ok", counted.reason
    assert counted.cost["no_grad_forwards"] == counted.split["fit"] + counted.split["test"]
    assert counted.cost["tower_flops"] == counted.cost["no_grad_forwards"] * context.start.flops
    assert counted.timing["features"] == "shared"


def test_training_pays_for_its_own_forwards_whatever_is_cached(context):
    found = row(context, "dpa", options=FAST)
    assert found.timing["features"] == "own"
    cost = found.cost
    # The pass over the images before training, one pass of an epoch, and the test images.
    assert (cost["no_grad_forwards"], cost["grad_forwards"]) == (24 + 24 + 12, 24)
    assert cost["tower_flops"] == 60 * cost["flops_per_forward"] + 24 * cost["flops_with_gradient"]
    assert cost["flops_with_gradient"] > cost["flops_per_forward"] == context.start.flops
    assert without_times(row(context, "dpa", options=FAST)) == without_times(found)
    assert not found.default


def test_hits_are_those_of_the_test_images(context):
    found = row(context, "zero-shot")
    hits = unpack(found.correct, found.measures["n"])
    assert hits.mean() == pytest.approx(found.measures["accuracy"])
    stream = row(context, "zero-shot", "online", seed=3)
    assert stream.correct == found.correct


def test_online_takes_what_needs_no_look_ahead(context):
    assert row(context, "cupl", "online").status == "ok"
    skipped = row(context, "gda-em", "online")
    assert (skipped.status, skipped.measures) == ("skipped", {})
    assert "sees all images before it answers" in skipped.reason


def test_a_stream_has_no_temperature_and_an_answer_to_known_images_has(context):
    for method in ("onzeta", "tda", "online-gda"):
        assert "temperature" not in row(context, method, "online").measures
        assert "temperature" in row(context, method, "transductive").measures
    # What does not adapt answers a stream as it answers anything.
    assert row(context, "cupl", "online").measures["temperature"] == row(context, "cupl", "transductive").measures["temperature"]


STREAMS = {"onzeta": OnZeta, "tda": TDA, "online-gda": OnlineGda}


@pytest.mark.parametrize("method", STREAMS)
def test_online_rows_hold_the_answers_at_arrival(context, method):
    """Against the solver alone: it is shown the images one by one, in the seeded order, uncentred."""
    names = context.data.class_names
    found = row(context, method, "online", seed=3)
    assert found.status == "ok", found.reason
    split = make_split(parse_protocol("online"), context.train.truth(), context.test.truth(), names, 3, None)
    solver = STREAMS[method]().begin(prototypes=context.heads(names).descriptions, logit_scale=context.start.backbone.logit_scale)
    order = torch.as_tensor(split.test)
    answers = torch.stack(list(solver.stream(context.test.features.global_[order])))
    hits = (answers.argmax(1).numpy() == context.test.truth().labels[split.test])[np.argsort(split.test)]
    assert unpack(found.correct, found.measures["n"]).tolist() == hits.tolist()
    assert found.measures["nll"] == pytest.approx(-answers[range(len(order)), context.test.truth().labels[split.test]].log().mean().item(), rel=1e-4)
    assert found.cost["no_grad_forwards"] == found.split["test"]
    assert without_times(row(context, method, "online", seed=3)) == without_times(found)
    assert row(context, method, "online", seed=4).split["checksum"] != found.split["checksum"]


def test_a_stream_is_shown_one_image_at_a_time(context, monkeypatch):
    seen = []
    whole = OnZeta.stream
    monkeypatch.setattr(OnZeta, "stream", lambda self, rows: seen.append(len(rows)) or whole(self, rows))
    assert row(context, "onzeta", "online").status == "ok"
    assert seen == [1] * 12


def test_a_set_without_a_training_part(context):
    """Training images are not touched where nothing is adapted to them, and what needs them says that there are none."""
    bare = Context(replace(context.data, train=Part([], Labels(np.zeros(0)))), context.start, QUIET)
    for protocol in ("transductive", "online"):
        found = row(bare, "onzeta", protocol)
        assert found.status == "ok", found.reason
        assert found.measures["accuracy"] == row(context, "onzeta", protocol).measures["accuracy"]
    assert found.source["train"] == 0
    skipped = row(bare, "gda-em", "longtail-2")
    assert (skipped.status, "no training part" in skipped.reason) == ("skipped", True)


def test_hints_reach_methods_that_adapt_in_few_shot_protocols_only(context):
    found = row(context, "gda-em", "fewshot-6")
    assert found.split["labelled"] == 24
    assert found.measures["accuracy"] > row(context, "gda-em").measures["accuracy"]
    assert row(context, "cupl", "fewshot-6").measures["accuracy"] == row(context, "cupl").measures["accuracy"]
    for name in [method.name for method in METHODS if method.few_shot]:
        assert row(context, name).reason == "the method learns from labelled images, and the protocol gives none"


def test_a_set_that_does_not_allow_a_protocol_is_a_row_that_says_so(context):
    skipped = row(context, "gda-em", "partial-10")
    assert skipped.status == "skipped"
    assert skipped.reason == "the set has only 4 classes"


def test_partial_classes_and_noise(context):
    found = row(context, "stata", "partial-2")
    assert found.split["occurring"] == 2
    assert found.measures["absent_classes"] == 2
    assert found.split["fit"] == 12
    noisy = row(context, "cupl", "noise-10")
    assert noisy.split["classes"] == 14
    assert noisy.measures["absent_classes"] == 10


def test_all_methods_get_the_same_split(context):
    for protocol in ("longtail-3", "few-2", "transductive+partial-2"):
        assert len({row(context, method, protocol, seed=1).split["checksum"] for method in ("cupl", "ot", "stata")}) == 1
        assert row(context, "cupl", protocol, seed=1).split["checksum"] != row(context, "cupl", protocol, seed=2).split["checksum"]


def test_a_row_has_everything_that_makes_it_again(context):
    found = row(context, "gda-em", options=("method.max_iter=3",))
    assert found.config["method_options"]["max_iter"] == 3
    assert not found.default
    assert found.command.startswith("finelens bench --data toy --protocols inductive --methods gda-em --seeds 0")
    assert "--set method.max_iter=3" in found.command
    assert found.source["train"] == 24
    assert len(found.source["checksum"]) == 64
    assert found.versions == versions(found.key.method)
    elsewhere = Plan((parse_protocol("inductive"),), ("cupl",), backbone=context.start.spec, device="cuda")
    assert "--device cuda --out" in compute(context, *next(elsewhere.keys("toy")), elsewhere).command


def test_the_checksum_knows_every_image_label_and_text(toy_set, tiny_vit, context, tmp_path):
    import shutil

    def checksum(change) -> str:
        copy = tmp_path / change.__name__ / "toy"
        shutil.copytree(toy_set, copy)
        change(copy)
        other = make_context(copy, tiny_vit)
        return other.source["checksum"]

    def nothing(copy):
        (copy / "test/A/50.png").rename(copy / "test/A/renamed.png")

    def label(copy):
        (copy / "test/A/50.png").rename(copy / "test/B/moved.png")

    def image(copy):
        (copy / "train/A/0.png").unlink()

    def text(copy):
        (copy / "descriptions.json").write_text("{}")

    assert checksum(nothing) == context.source["checksum"]
    assert len({checksum(change) for change in (label, image, text)} | {context.source["checksum"]}) == 4


def plan(backbone, **changes) -> Plan:
    protocols = tuple(map(parse_protocol, ("inductive", "transductive", "longtail-3")))
    return Plan(**{"protocols": protocols, "methods": ("cupl", "gda-em", "ot"), "seeds": (0, 1), "backbone": f"local:{backbone}", **changes})


def lines(path) -> list[dict]:
    return sorted((without_times(json.loads(line)) for line in path.read_text().splitlines()), key=json.dumps)


def test_what_is_done_is_not_done_again(toy_set, tiny_vit, tmp_path, monkeypatch):
    name, read = find_data("toy", toy_set.parent)
    whole, broken = ResultsFile(tmp_path / "whole.jsonl"), ResultsFile(tmp_path / "broken.jsonl")
    run(plan(tiny_vit), [read], [name], whole, QUIET)
    assert len(whole.read()) == 18
    assert not whole.claims.exists()
    before = whole.path.read_bytes()
    run(plan(tiny_vit), [read], [name], whole, QUIET)
    assert whole.path.read_bytes() == before
    broken.path.write_bytes(before[: len(before) // 2])
    run(plan(tiny_vit), [read], [name], broken, QUIET)
    assert lines(broken.path) == lines(whole.path)


def test_a_method_that_fails_is_a_row_and_the_rest_goes_on(context, monkeypatch):
    from finelens.solvers.sinkhorn import SinkhornOt

    def fail(*given, **named):
        raise RuntimeError("boom\nbang")

    monkeypatch.setattr(SinkhornOt, "_fit", fail)
    failed = row(context, "ot")
    assert (failed.status, failed.reason) == ("failed", "RuntimeError: boom bang")
    assert row(context, "cupl").status == "ok"


def test_groups_of_methods():
    assert choose_methods(["all"]) == tuple(method.name for method in METHODS)
    assert choose_methods(["ot", "training"]) == tuple(name for name in ALL if name in ("ot", *TRAINING))
    assert set(choose_methods(["features"])) == {method.name for method in METHODS if not method.needs_pixels}
    assert set(choose_methods(["training-free"])) == {method.name for method in METHODS if not method.trains}
    with pytest.raises(UserError, match="did you mean gda-em"):
        choose_methods(["gda_em"])


def test_seeds_change_draws_and_nothing_else(context):
    same = [without_times(row(context, "gda-em", seed=seed))["measures"] for seed in (0, 1)]
    assert same[0] == same[1]
    drawn = [row(context, "gda-em", "few-2", seed=seed).measures["nll"] for seed in range(3)]
    assert len(set(np.round(drawn, 8))) == 3


def test_texts_of_methods_are_encoded_once_and_training_methods_get_a_tower_without_memory(context, monkeypatch):
    row(context, "waffle")
    memory = vars(context.start.backbone)["encode_text"]
    encoded = []
    monkeypatch.setattr(memory, "_encode", lambda texts: encoded.extend(texts))
    assert row(context, "waffle", "transductive").status == "ok"
    assert encoded == []
    assert "encode_text" not in vars(context.start.fresh_engine().backbone)
    assert vars(context.start.backbone)["encode_text"] is memory


def test_stored_features_are_made_again_when_towers_compute_otherwise(toy_set, tiny_vit, monkeypatch):
    def encoded() -> int:
        fresh = make_context(toy_set, tiny_vit)
        assert len(fresh.test.features.global_)
        return fresh.start.engine.no_grad_forwards

    encoded()
    assert encoded() == 0
    monkeypatch.setattr("finelens.feature_store.encoder.VIEWS_SCHEMA", -1)
    assert encoded() > 0


def test_texts_are_those_of_the_data_set():
    with pytest.raises(UserError, match="takes the texts of each data set"):
        Plan((parse_protocol("inductive"),), ("cupl",), assignments=("text.templates=mine.txt",))

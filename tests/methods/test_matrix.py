"""What every method owes, whatever it learns. A new method passes by being registered."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from operator import attrgetter

import pytest
import torch
import torch.nn.functional as F

from finelens import api
from finelens.backbones.low_rank import plain_state
from finelens.core.options import from_mapping
from finelens.feature_store.store import feature_rows
from finelens.images.batches import batches, centre_batches
from finelens.images.load import decode_limits, load
from finelens.methods.registry import METHODS, all_methods, find_method  # noqa: F401 - the tests run for each of METHODS
from finelens.protocol import Hints
from finelens.runs.fit import fit
from finelens.runs.model import load_model, save_model
from finelens.runs.prepare import with_method
from finelens.training import loop
from finelens.training.loop import Hooks, Interrupted
from tests.methods.every import every
from tests.toy import (
    CLASSES,
    QUIET,
    Log,
    digest,
    events,
    fit_toy,
    hints_file,
    hints_for,
    options_for,
    picture,
    pictures,
    prepare_toy,
    quick,
    stop_after,
)

TRAINS = attrgetter("trains")
EDGE_CASES = {
    "one class": (pictures(1), CLASSES[:1]),
    "two classes": (pictures(2), CLASSES[:2]),
    "duplicates": ([picture(0, 0)] * 7 + [picture(1, 0)] * 3, CLASSES),
    "single image": ([picture(2, 0)], CLASSES),
    "last batch of one": (pictures(3)[:9], CLASSES),
    "fewer images than classes": (pictures(1)[:3], CLASSES),
}


def backbone_state(prepared) -> dict[str, torch.Tensor]:
    engine_backbone = prepared.engine.backbone
    return {name: tensor.clone() for name, tensor in {**plain_state(engine_backbone), **engine_backbone.fitted_state()}.items()}


def changed(before, after) -> set[str]:
    assert before.keys() == after.keys()
    return {name for name in before if not torch.equal(before[name], after[name])}


def learned(model) -> dict[str, torch.Tensor]:
    return {**model.engine.backbone.image_state(), **model.task.prediction_state()}


@every()
def test_names_are_lower_case_hyphenated_and_unique(method):
    entry = find_method(method)
    assert [other.name for other in all_methods()].count(method) == 1
    assert method.replace("-", "").isalnum()
    assert method == method.lower()
    assert entry.summary.endswith(".")
    assert entry.summary.count(".") == 1 or "et al." in entry.summary


def with_useful_heads(prepared, config, store, names):
    """The same run with text heads that lie near the class means of the pictures, as a trained model's would; a random tower has no such heads."""
    engine = prepared.engine
    features = torch.cat([engine.encode_frozen(views).global_ for _, views in centre_batches(store, engine.backbone.preprocess, 64)])
    target = torch.tensor([names[sample_id] for sample_id in store.ids])
    common = F.normalize(features.mean(0), dim=0)
    means = torch.stack([features[target == c].mean(0) for c in range(len(CLASSES))]) - features.mean(0)
    noise = torch.randn(means.shape, generator=torch.Generator().manual_seed(0))
    head = F.normalize(means, dim=-1) + F.normalize(noise, dim=-1)
    head = F.normalize(head - (head @ common)[:, None] * common, dim=-1)
    # Features of a random tower hardly differ; a trained model's scale makes posteriors of such differences, and so must this one.
    cosines = features @ head.T
    engine.backbone.logit_scale = 2 / (cosines - cosines.mean(0)).std().item()
    heads = replace(prepared.heads, templates=head, descriptions=head, weighted=head, texts=tuple(head[:, None]))
    return with_method(replace(prepared, heads=heads, name_texts=None), config)


@every(TRAINS)
def test_loss_falls_on_separable_pictures(tiny_vit, method):
    options = {**quick(epochs=8, batch_size=24), "views": {"rand_layers": 0, "strong_scale_low": 0.7}}
    config, prepared = prepare_toy(tiny_vit, method, options=options)
    loaded = load(pictures(), decode_limits(config.views, prepared.engine.backbone.preprocess), QUIET)
    kinds = {record.sample_id: i // 6 for i, record in enumerate(loaded.records)}
    log = Log()
    hints = None
    if prepared.method.few_shot:
        hints = Hints(torch.arange(24), torch.tensor([kinds[sample_id] for sample_id in loaded.store.ids]))
    fit(with_useful_heads(prepared, config, loaded.store, kinds), loaded.store, config, QUIET, Hooks(run=log), hints=hints)
    assert len(log.losses) == 8
    assert all(math.isfinite(loss) for loss in log.losses)
    # Most of a loss is the floor of its marginal term, and new views every epoch make it uneven.
    assert sum(log.losses[-3:]) / 3 < 0.995 * log.losses[0]


@every()
def test_only_declared_parameters_change(backbone, method):
    config, prepared = prepare_toy(backbone, method)
    store = load(pictures(), decode_limits(config.views, prepared.engine.backbone.preprocess), QUIET).store
    tower, task = backbone_state(prepared), {name: p.detach().clone() for name, p in prepared.task.named_parameters()}
    declared = {id(p) for group in prepared.task.parameter_groups() for _, p in group["params"]}
    scope = config.training.scope
    in_scope = prepared.engine.backbone.tunable(scope)
    # A scope that puts matrices into another form names parameters of that form; those that move are the matrices.
    own_form = dict(zip(in_scope, in_scope if scope != "svd" else prepared.engine.backbone.adapted(scope), strict=True))
    fit(prepared, store, config, QUIET, hints=hints_for(method, len(store), len(CLASSES)))
    allowed = {own_form[name] for name, p in in_scope.items() if id(p) in declared} | set(prepared.engine.backbone.fitted_state())
    moved = changed(tower, backbone_state(prepared))
    assert moved <= allowed
    own = dict(prepared.task.named_parameters())
    moved_own = changed(task, {name: p.detach() for name, p in own.items()})
    assert {id(own[name]) for name in moved_own} <= declared
    assert all(not p.requires_grad for name, p in prepared.engine.backbone.named_parameters() if id(p) not in declared)
    if find_method(method).trains:
        assert moved | moved_own
    else:
        assert not declared


@every()
def test_saved_model_gives_the_same_bits(backbone, method, tmp_path):
    config, untouched = prepare_toy(backbone, method)
    store = load(pictures(), decode_limits(config.views, untouched.engine.backbone.preprocess), QUIET).store
    prepared, fitted, _ = fit_toy(backbone, method, pictures())
    save_model(tmp_path, fitted.model)
    again = load_model(tmp_path)
    (_, views), *_ = centre_batches(store, prepared.engine.backbone.preprocess, 64)
    expected, zero_shot = fitted.model.logits(views), fitted.model.zero_shot_logits(views)
    assert changed(expected, again.logits(views)) == set()
    assert changed(zero_shot, again.zero_shot_logits(views)) == set()
    # Asking the unadapted model leaves the adapted one as it was, and equals a model that was never adapted.
    assert changed(expected, fitted.model.logits(views)) == set()
    with torch.no_grad():
        features = untouched.engine.encode_frozen(views).global_
    assert torch.equal(zero_shot["templates"], untouched.engine.backbone.logit_scale * features @ untouched.heads.templates.T)
    # The run encodes in full chunks, so only the features themselves give the same bits.
    torch.testing.assert_close(zero_shot["templates"], fitted.zero_shot_logits)
    if fitted.features is not None:
        (rows,) = feature_rows(fitted.features, 64)
        assert torch.equal(again.zero_shot_logits(rows)["templates"], fitted.zero_shot_logits)


@every(TRAINS)
def test_interrupted_and_resumed_run_ends_in_the_same_bits(backbone, method, photos, classes, tmp_path):
    given = {"backbone": f"local:{backbone}", "method": method, "options": quick(batch_size=4), "console": QUIET}
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    given |= hints_file(method, whole, photos)
    api.adapt(photos, classes, whole, **given)
    with pytest.raises(Interrupted):
        api.adapt(photos, classes, broken, **given, should_stop=stop_after(2))
    assert not (broken / "model").exists()
    # Both epochs, of six steps (four for a method that leaves images out), are broken off: after the second step of the run and after the seventh.
    with pytest.raises(Interrupted):
        api.resume(broken, console=QUIET, should_stop=stop_after(5))
    assert api.resume(broken, console=QUIET) is not None
    for file in ("model/model.safetensors", "model/zero_shot.safetensors", "predictions.csv"):
        assert digest(whole / file) == digest(broken / file), file
    assert events(whole) == events(broken)


@pytest.mark.parametrize("case", EDGE_CASES)
@every()
def test_unusual_numbers_of_images_and_classes(backbone, method, case):
    images, names = EDGE_CASES[case]
    prepared, fitted, log = fit_toy(backbone, method, images, names, options_for(method, epochs=1))
    assert fitted.zero_shot_logits.shape == (len(images), len(names))
    assert all(math.isfinite(loss) for loss in log.losses)
    assert all(torch.isfinite(tensor).all() for tensor in learned(fitted.model).values())
    size = prepared.engine.backbone.preprocess.image_size
    logits = fitted.model.logits(torch.zeros(1, 3, size, size, dtype=torch.uint8))["logits"]
    assert logits.shape == (1, len(names))
    assert torch.isfinite(logits).all()


@every(TRAINS)
def test_number_of_view_threads_does_not_change_a_bit(backbone, method, monkeypatch):
    models = []
    for workers in (1, 4):
        monkeypatch.setattr(loop, "batches", partial(batches, workers=workers))
        _, fitted, _ = fit_toy(backbone, method, pictures(), options=quick(epochs=1))
        models.append(learned(fitted.model))
    assert changed(*models) == set()


@every(TRAINS)
def test_seed_decides_and_nothing_else_does(tiny_vit, method):
    first, again, other = (learned(fit_toy(tiny_vit, method, pictures(), options=quick(epochs=1), seed=seed)[1].model) for seed in (0, 0, 1))
    assert changed(first, again) == set()
    assert changed(first, other) != set()


@every(TRAINS)
def test_cost_declares_the_forwards_that_a_step_makes(tiny_vit, method):
    config, prepared = prepare_toy(tiny_vit, method, options=quick(epochs=3))
    store = load(pictures(), decode_limits(config.views, prepared.engine.backbone.preprocess), QUIET).store
    cost = prepared.task.cost()
    fit(prepared, store, config, QUIET, hints=hints_for(method, len(store), len(CLASSES)))
    engine, n = prepared.engine, len(store)
    subset = prepared.task.subset()
    visited = n if subset is None else len(subset)
    assert engine.grad_forwards == 3 * visited * cost.grad_forwards
    assert engine.no_grad_forwards - n == visited * (3 * cost.no_grad_forwards + cost.after)


@every(attrgetter("adapts"))
def test_hints_are_not_ignored(tiny_vit, method):
    _, first, _ = fit_toy(tiny_vit, method, pictures(3), options=options_for(method, epochs=1))
    config, prepared = prepare_toy(tiny_vit, method, options=options_for(method, epochs=1))
    store = load(pictures(3), decode_limits(config.views, prepared.engine.backbone.preprocess), QUIET).store
    # None of the images keeps the class that the model, or for a few-shot method the first run's hints, gave it.
    given = hints_for(method, len(store), len(CLASSES))
    before = first.zero_shot_logits.argmax(1)[:8] if given is None else given.label
    hints = Hints(torch.arange(len(before)), (before + 1) % len(CLASSES))
    second = fit(prepared, store, config, QUIET, hints=hints)
    assert changed(learned(first.model), learned(second.model)) != set()


@every()
def test_a_method_that_answers_from_further_views_says_that_it_needs_pixels(tiny_vit, method):
    task = prepare_toy(tiny_vit, method)[1].task
    assert task.inference is None or find_method(method).needs_pixels


@every()
def test_options_of_every_method_have_defaults(method):
    assert from_mapping(find_method(method).config_class, {}, "method") is not None

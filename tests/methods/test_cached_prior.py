"""microCLIP with ``prior_views=cached``: the same prior as long as the encoder has not moved, one pass, exact on resume."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from finelens.core.console import Console
from finelens.images.batches import batches
from finelens.images.load import decode_limits, load
from finelens.images.view_config import ViewConfig
from finelens.methods.microclip.config import MicroClipConfig
from finelens.methods.microclip.task import MicroClip
from finelens.protocol import Cost, Hints, ViewPlan
from finelens.runs.fit import fit
from finelens.runs.model import load_model, save_model
from finelens.training.config import TrainingConfig
from finelens.training.estimate import estimate
from tests.methods.tiny import Pictures, random_heads, target_features, tiny_engine, whole_and_resumed
from tests.toy import CLASSES, pictures, prepare_toy, quick

C, M = 3, 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("tiny") / "vit"


def build(folder, **options) -> MicroClip:
    return MicroClip(tiny_engine(folder), random_heads(C), MicroClipConfig(**{"crops": M, "prior_views": "cached", **options}))


@pytest.mark.parametrize("teacher", ["aggregated", "multi-view", "multi-view-fixed"])
def test_the_first_step_is_that_of_fresh_views(folder, teacher):
    store, order = Pictures(10), np.array([7, 2, 9, 0])
    cached, fresh = build(folder, teacher=teacher), build(folder, teacher=teacher, prior_views="fresh")
    for task in (cached, fresh):
        task.prepare(target_features(task.engine, store))
    preprocess = cached.engine.backbone.preprocess
    batch = next(batches(store, preprocess, fresh.views, ViewConfig(), 0, 0, 4, order))
    lean = next(batches(store, preprocess, cached.views, ViewConfig(), 0, 0, 4, order))
    assert lean.crops is None
    ours, published = cached.step(lean, 0, 0), fresh.step(batch, 0, 0)
    torch.testing.assert_close(ours.loss, published.loss, atol=1e-5, rtol=1e-5)
    assert torch.equal(ours.pseudo_labels, published.pseudo_labels)


def test_forwards_are_those_of_the_formula(folder):
    store, task = Pictures(9), build(folder)
    assert task.cost() == Cost(1, 1, once=1 + M)
    features = target_features(task.engine, store)
    task.engine.no_grad_forwards = 0
    task.prepare(features)
    assert task.engine.no_grad_forwards == 9 * task.cost().once
    task.step(next(batches(store, task.engine.backbone.preprocess, task.views, ViewConfig(), 0, 0, 5)), 0, 0)
    assert (task.engine.no_grad_forwards, task.engine.grad_forwards) == (9 * (1 + M) + 5, 5)
    # Where no crops are used there is nothing to cache.
    assert build(folder, gamma=0.0).cost() == Cost(1, 1)
    assert build(folder, prior_views="fresh").cost() == Cost(1 + M, 1)


def test_the_estimate_counts_the_pass_until_it_is_done(folder):
    task = build(folder)
    before, after = (estimate(task, task.engine, images=10, epochs=1, prepared=done) for done in (False, True))
    assert before.flops == after.flops == before.tower.forward + before.tower.with_gradient
    assert (before.flops_once, after.flops_once) == ((1 + M) * before.tower.forward, 0)


def test_hints_go_before_the_prior(folder):
    store, task = Pictures(6), build(folder)
    hints = Hints(torch.tensor([1, 4]), torch.tensor([2, 0]))
    task.prepare(replace(target_features(task.engine, store), hints=hints))
    batch = next(batches(store, task.engine.backbone.preprocess, task.views, ViewConfig(), 0, 0, 6, np.array([4, 3, 1, 0, 2, 5])))
    assert task.step(batch, 0, 0).pseudo_labels[[2, 0]].tolist() == [2, 0]


def test_an_interrupted_run_ends_as_if_it_had_not_been(folder, tmp_path):
    store, config = Pictures(7), TrainingConfig(epochs=2, batch_size=4, lr=1e-3)
    task, second = whole_and_resumed(lambda: build(folder), store, config, tmp_path)
    assert task.cached_prior.composite.shape == (7, 48)
    for name, tensor in task.state_dict().items():
        assert torch.equal(second.state_dict()[name], tensor), name
    for name, parameter in task.tuned.items():
        assert torch.equal(second.tuned[name], parameter), name
    # The pass came from the checkpoint: it was not made again.
    assert second.engine.no_grad_forwards == task.engine.no_grad_forwards


def test_the_prior_is_that_of_the_start_encoder(folder):
    store, task = Pictures(5), build(folder)
    task.prepare(target_features(task.engine, store))
    kept = task.cached_prior.composite.clone()
    with torch.no_grad():
        for parameter in task.tuned.values():
            parameter.add_(0.5)
    assert torch.equal(task.cached_prior.composite, kept)
    moved = build(folder)
    with torch.no_grad():
        for parameter in moved.tuned.values():
            parameter.add_(0.5)
    moved.prepare(target_features(moved.engine, store))
    assert not torch.allclose(moved.cached_prior.composite, kept, atol=1e-3)


def test_a_whole_run_says_what_it_does_and_saves_no_cache(backbone, tmp_path, capsys):
    options = {**quick(epochs=1), "method": {"prior_views": "cached", "crops": M}}
    config, prepared = prepare_toy(backbone, "microclip", CLASSES, options)
    store = load(pictures(), decode_limits(config.views, prepared.engine.backbone.preprocess), Console(enabled=False)).store
    fitted = fit(prepared, store, config, Console(verbose=True))
    said = capsys.readouterr().err
    assert f"and once {1 + M} forwards of each" in said
    save_model(tmp_path / "model", fitted.model)
    assert not any("cached_prior" in name for name in fitted.model.task.prediction_state())
    images = torch.randint(0, 256, (3, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    if prepared.engine.backbone.preprocess.image_size == 64:
        again = load_model(tmp_path / "model").logits(images)
        torch.testing.assert_close(again["logits"], fitted.model.logits(images)["logits"])


def test_first_views_are_the_same_however_many_are_built_at_a_time(folder):
    store, engine = Pictures(6), tiny_engine(folder)
    plan = ViewPlan(strong=False, crops=2)
    one, many = (
        [b.crops for b in batches(store, engine.backbone.preprocess, plan, ViewConfig(), 0, 0, size, np.arange(6), workers=workers)]
        for size, workers in ((1, 1), (6, 3))
    )
    assert torch.equal(torch.cat(one), torch.cat(many))

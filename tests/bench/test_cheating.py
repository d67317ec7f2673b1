"""Methods that do what the benchmark forbids end up as rows without a number."""

from __future__ import annotations

import gc
import sys
from types import ModuleType

import pytest
import torch

from finelens.bench import guard
from finelens.bench.guard import Labels, RuleBroken, UnlabelledFeatures, UnlabelledImages, method_runs
from finelens.methods import registry
from finelens.methods.head_task import HeadTask, NoOptions
from finelens.methods.registry import Method
from tests.bench.world import row


class Honest(HeadTask):
    """The zero-shot head; the others differ in one way each."""


class FindsLabels(HeadTask):
    """Looks through the memory of the process for labels."""

    def prepare(self, features):
        for found in gc.get_objects():
            if type(found) is Labels:
                found.read()


class ReadsLabelsWhilePredicting(HeadTask):
    """Behaves until it is asked about test images."""

    def predict_logits(self, images):
        for found in gc.get_objects():
            if type(found) is Labels:
                list(found)
        return super().predict_logits(images)


class AsksImages(HeadTask):
    """Asks the images that it is given for their labels."""

    def prepare(self, features):
        for found in gc.get_objects():
            if type(found) is UnlabelledFeatures:
                _ = found.labels


class TunesOnTest(HeadTask):
    """Moves its head to the mean of the test images it has seen."""

    seen = 0

    def predict_logits(self, images):
        tokens = self.engine.encode_frozen(images)
        self.seen += len(images)
        self.head = self.head + 0.5 * self.seen * (tokens.global_.mean(0) - self.head)
        return {"logits": self.engine.backbone.logit_scale * tokens.global_ @ self.head.T + torch.arange(4) * self.seen / 3}


class AnswersByBatch(HeadTask):
    """Transductive in disguise: every answer depends on the images of its batch."""

    def predict_logits(self, images):
        logits = super().predict_logits(images)["logits"]
        return {"logits": 5 * (logits - logits.mean(0))}


class ChangesTheBackbone(HeadTask):
    """Would spoil the rows after its own."""

    def prepare(self, features):
        with torch.no_grad():
            next(self.engine.backbone.parameters()).add_(0.1)


@pytest.fixture
def register(monkeypatch):
    def add(task, adapts: bool = True) -> str:
        module = ModuleType("cheat")
        module.CONFIG = NoOptions
        module.build = lambda engine, heads, config, training, seed: task(engine, heads.templates)
        monkeypatch.setitem(sys.modules, "cheat", module)
        method = Method("cheat", "text", "A cheat.", "cheat", trains=False, adapts=adapts)
        monkeypatch.setattr(registry, "METHODS", (*registry.METHODS, method))
        return "cheat"

    return add


def test_an_honest_method_passes(context, register):
    name = register(Honest)
    found = row(context, name)
    assert found.status == "ok", found.reason
    assert found.measures["difference"] == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(
    ("task", "reason"),
    [
        (FindsLabels, "labels were read"),
        (ReadsLabelsWhilePredicting, "labels were read"),
        (AsksImages, "asked its images for 'labels'"),
        (TunesOnTest, "changed with the other test images"),
        (AnswersByBatch, "changed with the other test images"),
    ],
)
def test_a_cheat_is_a_row_without_a_number(context, register, task, reason):
    found = row(context, register(task))
    assert found.status == "broke_a_rule"
    assert reason in found.reason
    assert found.measures == {}
    assert found.correct == ""
    # The rows after it are as they always were.
    assert row(context, "cupl").status == "ok"


def test_spoiling_the_shared_backbone_is_noticed(toy_set, tiny_vit, register):
    from tests.bench.world import make_context

    found = row(make_context(toy_set, tiny_vit), register(ChangesTheBackbone))
    assert found.status == "broke_a_rule"
    assert "changed the backbone" in found.reason


def test_what_may_depend_on_the_batch_may_do_so_where_the_protocol_allows_it(context, register):
    assert row(context, register(AnswersByBatch), "transductive").status == "ok"


def test_labels_are_sealed_while_a_method_runs_and_cannot_be_copied():
    import copy
    import pickle

    import numpy as np

    labels = Labels([0, 1, 2])
    assert labels.read().tolist() == [0, 1, 2]
    labels.read()[0] = 5
    assert labels[0] == 0
    for look in (labels.read, lambda: labels[0], lambda: list(labels), lambda: np.asarray(labels)):
        with method_runs(), method_runs(), pytest.raises(RuleBroken):
            look()
        look()
    for take_away in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(RuleBroken):
            take_away(labels)
    assert "0" not in repr(labels)


@pytest.mark.parametrize("images", [UnlabelledImages(None, [0, 1]), UnlabelledFeatures([], None)], ids=["pixels", "features"])
@pytest.mark.parametrize("name", sorted(guard.LABEL_NAMES))
def test_images_for_methods_raise_when_asked_for_labels(name, images):
    with pytest.raises(RuleBroken, match=name):
        getattr(images, name)
    with pytest.raises(RuleBroken):
        hasattr(images, name)
    assert not hasattr(images, "colour")

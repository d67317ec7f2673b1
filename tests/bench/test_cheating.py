"""Methods that do what the benchmark forbids end up as rows without a number, on shared features as on pixels of their own."""

from __future__ import annotations

import gc
import sys
from contextlib import nullcontext
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import nn

from finelens.bench.rows.runner import TOLERANCE, TOLERANCE_ROUNDED, compare_alone, tolerance_of
from finelens.bench.sets import sealed as guard
from finelens.bench.sets.sealed import Labels, RuleBroken, UnlabelledFeatures, UnlabelledImages, method_runs
from finelens.engine.device import choose_precision
from finelens.methods import registry
from finelens.methods.parts.frozen import HeadTask, NoOptions
from finelens.methods.registry import Method
from finelens.protocol import Cost, StepOutput, ViewPlan
from finelens.training.pseudo_labels import split_by_decay
from tests.bench.world import row

PATHS = ("features", "pixels")
FAST = ("training.epochs=1", "training.batch_size=8")


class Honest(HeadTask):
    """The zero-shot head; the others differ in one way each."""


class Trained(HeadTask):
    """A head that takes steps on views: what trains gets pixels and an engine of its own. Cheats stand before it in the order of their classes."""

    views = ViewPlan(weak=True, strong=False)

    def __init__(self, engine, head):
        super().__init__(engine, head)
        self.shift = nn.Parameter(torch.zeros_like(head))

    def parameter_groups(self):
        return split_by_decay([("shift", self.shift)], 0.0, lambda name, parameter: True)

    def step(self, batch, epoch, step_in_epoch):
        return StepOutput((self.engine.encode(batch.weak).global_ @ (self.head + self.shift).T).square().mean())

    def cost(self):
        return Cost(0, 1)


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


class ReadsLabelsInAStep(HeadTask):
    """Behaves until it trains."""

    def step(self, batch, epoch, step_in_epoch):
        for found in gc.get_objects():
            if type(found) is Labels:
                found[batch.index.numpy()]
        return super().step(batch, epoch, step_in_epoch)


class AsksImages(HeadTask):
    """Asks the images that it is given for their labels."""

    def prepare(self, features):
        for found in gc.get_objects():
            if type(found) in (UnlabelledFeatures, UnlabelledImages):
                _ = found.labels


class LooksAhead(HeadTask):
    """Adapts to every image that lies about, test images too."""

    def prepare(self, features):
        for found in gc.get_objects():
            if type(found) is UnlabelledImages and found._store is not None:
                self.head = self.head + 1e-6 * sum(float(found[i].float().mean()) for i in range(len(found)))


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


class WhispersByBatch(HeadTask):
    """The same with logits so close together that no probability moves by a thousandth."""

    def predict_logits(self, images):
        logits = super().predict_logits(images)["logits"]
        return {"logits": 1e-3 * (logits - logits.mean(0)).softmax(-1)}


class ChangesTheBackbone(HeadTask):
    """Would spoil the rows after its own."""

    def prepare(self, features):
        with torch.no_grad():
            next(self.engine.backbone.parameters()).add_(0.1)


@pytest.fixture
def register(monkeypatch):
    def add(task, adapts: bool = True, trains: bool = False) -> str:
        if trains:
            task = type(task.__name__, (task, Trained), {})
        module = ModuleType("cheat")
        module.CONFIG = NoOptions
        module.build = lambda engine, heads, config, training, seed: task(engine, heads.templates)
        monkeypatch.setitem(sys.modules, "cheat", module)
        method = Method("cheat", "self-training" if trains else "solver" if adapts else "text", "A cheat.", "cheat")
        monkeypatch.setattr(registry, "METHODS", (*registry.METHODS, method))
        return "cheat"

    return add


@pytest.mark.parametrize("trains", [False, True], ids=PATHS)
def test_an_honest_method_passes(context, register, trains):
    name = register(Honest, trains=trains)
    found = row(context, name, options=FAST if trains else ())
    assert found.status == "ok", found.reason
    assert found.timing["features"] == ("own" if trains else "shared")
    assert found.measures["difference"] == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(
    ("task", "path", "reason"),
    [
        *((task, path, "labels were read") for task in (FindsLabels, ReadsLabelsWhilePredicting) for path in PATHS),
        (ReadsLabelsInAStep, "pixels", "labels were read"),
        *((AsksImages, path, "asked its images for 'labels'") for path in PATHS),
        (LooksAhead, "pixels", "looked at before"),
        *((task, path, "changed with the other test images") for task in (TunesOnTest, AnswersByBatch, WhispersByBatch) for path in PATHS),
    ],
)
def test_a_cheat_is_a_row_without_a_number(context, register, task, path, reason):
    trains = path == "pixels"
    found = row(context, register(task, trains=trains), options=FAST if trains else ())
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


@pytest.mark.parametrize("trains", [False, True], ids=PATHS)
def test_what_may_depend_on_the_batch_may_do_so_where_the_protocol_allows_it(context, register, trains):
    for task in (AnswersByBatch, TunesOnTest):
        found = row(context, register(task, trains=trains), "transductive", options=FAST if trains else ())
        assert found.status == "ok", found.reason


def test_rounding_is_no_cheat_and_a_class_that_changes_is():
    """Two answers that are nearly even may change places by rounding; what is twice the tolerance apart may not, however close the logits are."""
    answer = np.array([[8.0, 7.9, 1.0, 0.0]])
    for scale in (1.0, 0.1, 0.01):
        for tolerance, harmless, harm in ((TOLERANCE, 1e-4, 0.02), (TOLERANCE_ROUNDED, 0.02, 1.0)):
            for step, caught in ((harmless, False), (harm, True)):
                other = answer + step * np.array([[-1.0, 1.0, 0, 0]])
                with pytest.raises(RuleBroken) if caught else nullcontext():
                    compare_alone({0: scale * other[0]}, scale * answer, tolerance)


@pytest.mark.parametrize(
    ("device", "precision", "tolerance"),
    [("cpu", "float32", TOLERANCE), ("cpu", "bfloat16", TOLERANCE_ROUNDED), ("cuda", "float32", TOLERANCE_ROUNDED)],
)
def test_only_what_rounds_alike_is_held_to_the_last_digits(device, precision, tolerance):
    assert tolerance_of(torch.device(device), choose_precision(precision, torch.device(device))) == tolerance


def test_labels_are_sealed_while_a_method_runs_and_cannot_be_copied():
    import copy
    import pickle

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


def test_sealed_images_show_nothing_until_they_are_asked_about():
    images = UnlabelledImages([torch.zeros(3, 2, 2), torch.ones(3, 2, 2)], [0, 1], sealed=True)
    for look in (lambda: images[0], lambda: images.only(1)[0], lambda: list(images)):
        with pytest.raises(RuleBroken, match="looked at before"):
            look()
    images.open()
    assert images[1].sum() == images.only(1)[0].sum() == 12

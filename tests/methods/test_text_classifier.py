"""The classifier trained on texts: its loss, its training against a plain reference, what it starts from and what it can do."""

from __future__ import annotations

import csv
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck

from finelens import api, demo
from finelens.backbones.embedded import EmbeddedBackbone
from finelens.backbones.open_clip_loader import OpenClipBackbone
from finelens.classes.class_set import build_class_set
from finelens.classes.heads import build_heads
from finelens.classes.names import read_class_file
from finelens.core.console import Console
from finelens.engine.engine import Engine
from finelens.errors import UserError
from finelens.images.batches import centre_batches
from finelens.images.randomness import seed_for
from finelens.images.store import load_images
from finelens.methods.text_classifier import TextClassifier, TextClassifierConfig, text_loss, train_text_head
from finelens.protocol import ClassSet, TargetFeatures
from tests.methods.tiny import DIM, FLOAT32, random_batch, random_heads, unit_rows
from tests.toy import QUIET, options_for

C = 4
NO_IMAGES = TargetFeatures(torch.empty(0, DIM), torch.empty(0, 64))


def test_gradient_by_finite_differences():
    features = unit_rows(7, DIM, seed=0, dtype=torch.float64)
    weight = unit_rows(C, DIM, seed=1, dtype=torch.float64).requires_grad_()
    assert gradcheck(lambda w: text_loss(w, features, torch.tensor([0, 0, 1, 2, 3, 3, 3]), 0.1), (weight,))


def reference(texts: list[np.ndarray], steps: int, lr: float, noise: float, decay: float, smoothing: float, seed: int) -> np.ndarray:
    """Stage 1 written out: softmax regression with label smoothing by AdamW, in float64."""
    x, classes, width = np.concatenate(texts), len(texts), texts[0].shape[1]
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    target = np.concatenate([np.eye(classes)[[c] * len(own)] for c, own in enumerate(texts)]) * (1 - smoothing) + smoothing / classes
    rng = torch.Generator().manual_seed(seed_for(seed, "text classifier"))
    w = ((2 * torch.rand(classes, width, generator=rng) - 1) / math.sqrt(width)).double().numpy()
    m = v = np.zeros_like(w)
    for t in range(1, steps + 1):
        noisy = x + noise * torch.randn(x.shape, generator=rng).double().numpy()
        z = noisy @ w.T
        p = np.exp(z - z.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        g = (p - target).T @ noisy / len(x)
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        w = w * (1 - lr * decay) - lr * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
    return w


@pytest.mark.parametrize("steps", [1, 25])
def test_training_is_the_plain_reference(steps):
    texts = [3 * unit_rows(c + 1, DIM, seed=c, dtype=torch.float64) for c in range(C)]
    config = TextClassifierConfig(text_steps=steps, text_lr=0.01, text_noise=0.2, text_weight_decay=0.3, label_smoothing=0.15)
    head = train_text_head(texts, config, 5, QUIET)
    # Numbers are drawn in the order of the classes' first texts, by the eighth number, then the seventh and so on.
    order = sorted(range(C), key=lambda c: texts[c][0, :8].tolist()[::-1])
    expected = reference([texts[c].numpy() for c in order], steps, 0.01, 0.2, 0.3, 0.15, 5)
    np.testing.assert_allclose(head[order].numpy(), expected, rtol=1e-10, atol=1e-12)
    assert not head.requires_grad


def test_the_order_of_the_classes_decides_nothing():
    texts, config = [unit_rows(c + 1, DIM, seed=c) for c in range(C)], TextClassifierConfig(text_steps=5)
    head, order = train_text_head(texts, config, 0, QUIET), [2, 0, 3, 1]
    assert torch.equal(train_text_head([texts[c] for c in order], config, 0, QUIET), head[order])


def test_seed_decides_and_the_images_do_not(engine):
    heads, config = random_heads(C), TextClassifierConfig(text_steps=5)

    def head(seed: int, features: TargetFeatures) -> torch.Tensor:
        task = TextClassifier(engine, heads, config, seed=seed)
        task.prepare(features)
        return task.head

    other_images = TargetFeatures(unit_rows(3, DIM, seed=9), torch.ones(3, 64))
    assert torch.equal(head(0, NO_IMAGES), head(0, other_images))
    assert not torch.equal(head(0, NO_IMAGES), head(1, NO_IMAGES))


def test_texts_it_was_trained_on_are_told_apart():
    texts = random_heads(C).texts
    head = train_text_head(texts, TextClassifierConfig(), 0, QUIET)
    for c, own in enumerate(texts):
        assert (own @ head.T).argmax(1).eq(c).all()


def test_a_single_class_has_nothing_to_learn_but_runs():
    assert train_text_head([unit_rows(2, DIM, seed=0)], TextClassifierConfig(text_steps=3), 0, QUIET).isfinite().all()


def test_every_text_counts_once(tiny_vit):
    backbone = OpenClipBackbone.from_folder(tiny_vit)
    classes = ClassSet(("cat", "dog"), ("a photo of a {}.", "a {} outdoors."), (("It purrs.", "It has whiskers.", "It is small."), ()))
    heads = build_heads(backbone, classes)
    assert [len(own) for own in heads.texts] == [5, 2]
    torch.testing.assert_close(heads.texts[0][:3], heads.sentences[0])
    filled = backbone.encode_text(["a photo of a cat.", "a cat outdoors.", "a photo of a dog.", "a dog outdoors."])
    torch.testing.assert_close(torch.cat([heads.texts[0][3:], heads.texts[1]]), filled)


def test_prediction_is_the_head_on_the_unit_norm_feature(engine):
    task, images = TextClassifier(engine, random_heads(C), TextClassifierConfig(text_steps=2), seed=0), random_batch(3, 0).weak
    task.prepare(NO_IMAGES)
    features = F.normalize(engine.encode_frozen(images).cls @ engine.backbone.visual.proj, dim=-1)
    torch.testing.assert_close(task.predict_logits(images)["logits"], features @ task.head.T)
    engine.backbone.logit_scale *= 2
    torch.testing.assert_close(task.predict_logits(images)["logits"], features @ task.head.T)


def test_zero_shot_verb_runs_it_without_a_forward_for_training(tiny_vit, photos, classes, tmp_path):
    given = {"backbone": f"local:{tiny_vit}", "method": "text-classifier", "options": options_for("text-classifier"), "console": QUIET}
    result = api.zero_shot(photos, classes, tmp_path / "run", **given)
    assert len(result.rows) == 24
    model = api.load_run(tmp_path / "run").model
    assert model.task.texts == ()
    assert model.base == {}


def test_long_training_shows_its_progress(monkeypatch, capsys):
    monkeypatch.setattr("finelens.core.console.LOG_FIRST", 0.0)
    train_text_head([unit_rows(2, DIM, seed=c) for c in range(2)], TextClassifierConfig(text_steps=3), 0, Console())
    assert "train on texts: 1/3 steps, 33 %" in capsys.readouterr().err


def test_photographs_of_the_demonstration_are_classified_far_above_chance():
    backbone = EmbeddedBackbone()
    names = read_class_file(demo.classes_file())
    classes, _, _ = build_class_set(names, demo.descriptions_file(), None, count_tokens=backbone.count_tokens, context_length=backbone.context_length)
    engine = Engine(backbone, torch.device("cpu"), FLOAT32)
    task = TextClassifier(engine, build_heads(backbone, classes), TextClassifierConfig(), seed=0)
    task.prepare(NO_IMAGES)
    with demo.labels_file().open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))[::6]
    store = load_images([demo.photos_dir() / row["path"] for row in rows])
    truth = {record.sample_id: classes.names.index(row["label"]) for record, row in zip(store.records, rows, strict=True)}
    predicted = torch.cat([task.predict_logits(views)["logits"] for _, views in centre_batches(store.store, backbone.preprocess, 16)]).argmax(1)
    right = sum(truth[sample_id] == p for sample_id, p in zip(store.store.ids, predicted.tolist(), strict=True))
    assert len(rows) > 25
    assert right / len(rows) > 5 / len(names)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"text_steps": 0}, "method.text_steps"),
        ({"text_lr": 0.0}, "method.text_lr"),
        ({"text_noise": -0.1}, "method.text_noise"),
        ({"text_weight_decay": math.inf}, "method.text_weight_decay"),
        ({"label_smoothing": 1.0}, "method.label_smoothing"),
    ],
)
def test_impossible_options_are_refused_by_name(options, words):
    with pytest.raises(UserError, match=words):
        TextClassifierConfig(**options)

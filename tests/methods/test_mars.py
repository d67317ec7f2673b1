"""MARS: the balance of its second stage by hand, what each stage learns from, and what moves in it."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from finelens.errors import UserError
from finelens.methods.mars import Mars, MarsConfig, balance, balanced_loss, first_epochs, running_margins
from finelens.protocol import Hints
from finelens.solvers import JointGmm
from tests.methods.tiny import Pictures, random_batch, random_heads, step_gradient, target_features, tiny_engine, train_steps

CLASSES = 4


def make(engine, epochs: int = 4, **options) -> Mars:
    return Mars(engine, random_heads(CLASSES), MarsConfig(**options), scope="norm", weight_decay=5e-4, epochs=epochs)


def prepared(engine, hints: Hints | None = None, **options) -> Mars:
    task = make(engine, **options)
    task.prepare(replace(target_features(engine, Pictures(12)), hints=hints))
    return task


@pytest.mark.parametrize(
    ("share", "epochs", "first"), [(0.25, 40, 10), (0.25, 5, 1), (0.25, 2, 1), (0.25, 1, 1), (0.9, 2, 1), (0.0, 5, 0), (1.0, 5, 5)]
)
def test_epochs_of_the_first_stage(share, epochs, first):
    assert first_epochs(share, epochs) == first


def test_margins_of_a_class_run_on_and_absent_classes_keep_theirs():
    logits = torch.tensor([[3.0, 1.0, 0.0], [0.0, 2.0, 5.0], [4.0, 4.5, 0.0]])
    labels, before = torch.tensor([0, 1, 0]), torch.tensor([1.0, 1.0, 7.0])
    # Class 0: margins 2 and -0.5; class 1: -3.
    assert running_margins(before, logits, labels, 0.0).tolist() == pytest.approx([0.75, -3.0, 7.0])
    assert running_margins(before, logits, labels, 0.95).tolist() == pytest.approx([0.95 + 0.05 * 0.75, 0.95 - 0.15, 7.0])
    one = torch.tensor([2.0])
    assert torch.equal(running_margins(one, torch.zeros(2, 1), torch.zeros(2, dtype=torch.int64), 0.5), one)


def test_frequent_and_unsure_classes_listen_to_the_posterior_and_rare_and_sure_ones_to_the_label():
    posteriors = F.one_hot(torch.tensor([0, 0, 0, 0, 1, 1, 2])).float()
    margins = torch.tensor([1.0, 3.0, 2.0])
    assert balance(posteriors, margins, 1.0).tolist() == pytest.approx([1.0, 0.25, (0.25 + 0.5) / 2])
    assert balance(posteriors, margins, 0.0).tolist() == pytest.approx([1.0, 0.5, 0.75])
    # Equal margins say nothing: the frequencies decide alone.
    assert balance(posteriors, torch.ones(3), 1.0).tolist() == pytest.approx([1.0, 0.75, 0.625])


def test_the_loss_is_divergence_or_cross_entropy_at_the_ends():
    logits, teacher = torch.randn(5, 3, generator=torch.Generator().manual_seed(0)), torch.full((5, 3), 0.1)
    labels = torch.tensor([0, 2, 1, 1, 0])
    teacher[torch.arange(5), labels] = 0.8
    soft, _ = balanced_loss(logits, teacher, labels, torch.ones(5))
    entropy = -(teacher * teacher.log()).sum(1).mean()
    torch.testing.assert_close(soft, F.cross_entropy(logits, teacher) - entropy)
    hard, parts = balanced_loss(logits, teacher, labels, torch.zeros(5))
    torch.testing.assert_close(hard, F.cross_entropy(logits, labels))
    assert set(parts) == {"kl", "ce"}
    # Certain posteriors are labels: there is nothing to balance.
    certain = F.one_hot(labels).float()
    torch.testing.assert_close(balanced_loss(logits, certain, labels, torch.tensor([0.0, 0.3, 0.5, 0.9, 1.0]))[0], hard)
    # A student that says what its teacher says has no divergence left.
    assert balanced_loss(teacher.log(), teacher, labels, torch.ones(5))[0].abs() < 1e-6


def test_the_first_target_is_the_mixture_after_the_return_rule(engine):
    features = target_features(engine, Pictures(12))
    task = make(engine, return_rule=0.0)
    task.prepare(features)
    views = [features.global_, features.cls]
    mixture = JointGmm().fit_predict_proba(views, prototypes=task.text, logit_scale=engine.backbone.logit_scale)
    torch.testing.assert_close(task.target, mixture)
    returned = prepared(engine, return_rule=1.0).target
    torch.testing.assert_close(returned.sum(1), torch.ones(12))
    text = (engine.backbone.logit_scale * features.global_ @ task.text.T).softmax(1)
    named = text.argmax(1)
    # What goes back goes to the class that the text names.
    assert (returned.gather(1, named[:, None]) >= mixture.gather(1, named[:, None]) - 1e-6).all()
    torch.testing.assert_close(prepared(engine, first_stage=0.0).target, text)


def test_the_first_stage_moves_adapter_and_prompts_and_the_second_the_tower_too(engine):
    task, batch = prepared(engine, Hints(torch.tensor([3]), torch.tensor([2]))), random_batch(8, 0)
    norms = {name: p.detach().clone() for name, p in task.tuned.items()}
    prompts = task.prompts.detach().clone()
    losses = train_steps(task, batch, 4, lr=1e-3)
    assert losses[-1] < losses[0]
    assert all(torch.equal(task.tuned[name], before) for name, before in norms.items())
    assert task.adapter.abs().max() > 0
    assert not torch.equal(task.prompts, prompts)
    own = task.own.clone()
    task.end_epoch(0)
    torch.testing.assert_close(task.target, own.softmax(1))
    out = task.step(batch, 1, 0)
    assert out.pseudo_labels[3] == 2
    assert set(out.log) == {"kl", "ce", "share", "agreement"}
    out.loss.backward()
    assert all(p.grad is not None for p in task.tuned.values())


@pytest.mark.parametrize("epoch", [0, 1])
def test_gradient_of_the_adapter(folder, epoch):
    engine = tiny_engine(folder, torch.float64)
    task = Mars(engine, random_heads(CLASSES, torch.float64), MarsConfig(), scope="norm", weight_decay=0.0, epochs=4)
    task.prepare(target_features(engine, Pictures(8)))
    step = task.step
    task.step = lambda batch, *_: step(batch, epoch, 0)
    task.margins = torch.linspace(0, 1, CLASSES, dtype=torch.float64)
    task.config = replace(task.config, momentum=math.nextafter(1, 0))
    automatic, numeric = step_gradient(task, random_batch(8, 0), "adapter", 5)
    assert automatic == pytest.approx(numeric, rel=1e-4, abs=1e-8)


def test_options_that_cannot_be():
    for wrong in ({"first_stage": 1.5}, {"prompts": -1}, {"beta": math.inf}, {"momentum": 1.0}, {"return_rule": 2.0}):
        with pytest.raises(UserError, match=rf"method\.{next(iter(wrong))}"):
            MarsConfig(**wrong)

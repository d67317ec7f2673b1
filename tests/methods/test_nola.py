"""NoLA step by step: which images teach the labelling network, that network, head, labels and student."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from finelens.core.options import from_mapping, to_plain
from finelens.errors import UserError
from finelens.images.randomness import generator, permutation, seed_for
from finelens.methods import nola
from finelens.methods.nola.config import NolaConfig
from finelens.methods.nola.labelling import LabellingNetwork, select_confident
from finelens.methods.nola.task import Nola
from finelens.training.config import TrainingConfig
from tests.methods.nola_world import B, C, P, prepared
from tests.methods.tiny import (
    random_batch,
    random_heads,
    step_gradient,
    tiny_engine,
    train_steps,
    trainable_count,
    vit_b32_engine,
    without_texts,
)
from tests.toy import QUIET

# Step 2: which images teach the labelling network


def plain_selection(p: np.ndarray, keep: int) -> dict[int, list[int]]:
    """The rule, one image at a time."""
    classes, taken, served = p.shape[1], set(), {}
    ranked = [sorted(range(classes), key=lambda c: -row[c]) for row in p]
    for place in range(min(3, classes)):
        for c in range(classes):
            if c in served:
                continue
            candidates = [i for i in range(len(p)) if ranked[i][place] == c and i not in taken]
            candidates.sort(key=lambda i: (-p[i, c], i))
            if candidates:
                served[c] = candidates[:keep]
                taken |= set(candidates[:keep])
    return served


def selection(posteriors: torch.Tensor, keep: int) -> dict[int, list[int]]:
    found: dict[int, list[int]] = {}
    for i, c in zip(*(t.tolist() for t in select_confident(posteriors, keep)), strict=True):
        found.setdefault(c, []).append(i)
    return found


@pytest.mark.parametrize("seed", range(20))
def test_selection_is_the_plain_rule(seed):
    g = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(30, 8, generator=g, dtype=torch.float64)
    # Half of the classes are nobody's first choice, and some images are there several times.
    logits[:, 4:] -= 6
    posteriors = logits.softmax(-1)[torch.randint(0, 30, (40,), generator=g)]
    for keep in (1, 3, 40):
        assert selection(posteriors, keep) == plain_selection(posteriors.numpy(), keep)


def test_absent_classes_take_what_the_others_leave_and_may_end_without():
    p = torch.tensor([[0.60, 0.30, 0.07, 0.03], [0.80, 0.15, 0.03, 0.02], [0.70, 0.20, 0.06, 0.04]])
    # Class 0 keeps its best image; class 1 is second of the two left; class 2 gets the third place of what is left then, class 3 nothing.
    assert selection(p, 1) == {0: [1], 1: [0], 2: [2]}
    assert selection(p, 3) == {0: [1, 2, 0]}


def test_copies_of_an_image_are_kept_in_store_order_and_no_image_serves_twice():
    p = torch.tensor([[0.6, 0.3, 0.1]]).expand(5, 3)
    assert selection(p, 2) == {0: [0, 1], 1: [2, 3], 2: [4]}
    index, _ = select_confident(p, 2)
    assert len(index.unique()) == len(index)


def test_one_and_two_classes():
    assert selection(torch.ones(3, 1), 2) == {0: [0, 1]}
    assert selection(torch.tensor([[0.9, 0.1], [0.8, 0.2]]), 1) == {0: [0], 1: [1]}


@pytest.mark.parametrize(("images", "classes", "keep"), [(1000, 10, 20), (799, 10, 16), (30, 37, 16), (10**6, 100, 512), (5, 1, 16)])
def test_number_of_kept_images(images, classes, keep):
    assert NolaConfig().keep(images, classes) == keep == min(512, max(16, math.floor(0.2 * images / classes)))


# Step 3: the labelling network


def reference_network(x: np.ndarray, y: np.ndarray, classes: int, epochs: int, seed: int) -> list[np.ndarray]:
    """D2 - 256 - C with ReLU by Adam, batches of 32, written out in float64."""
    rng = torch.Generator().manual_seed(seed_for(seed, "labelling network"))

    def draw(rows, columns, fan_in):
        return ((2 * torch.rand(rows, columns, generator=rng) - 1) / math.sqrt(fan_in)).double().numpy()

    d = x.shape[1]
    theta = [draw(256, d, d), draw(256, d, d)[:, 0], draw(classes, 256, 256), draw(classes, 256, 256)[:, 0]]
    m, v, t = [np.zeros_like(w) for w in theta], [np.zeros_like(w) for w in theta], 0
    for epoch in range(epochs):
        order = permutation(generator(seed, epoch, "", "labelling network"), len(x))
        for start in range(0, len(x), 32):
            rows, t = order[start : start + 32], t + 1
            h = x[rows] @ theta[0].T + theta[1]
            z = np.maximum(h, 0) @ theta[2].T + theta[3]
            p = np.exp(z - z.max(1, keepdims=True))
            dz = (p / p.sum(1, keepdims=True) - np.eye(classes)[y[rows]]) / len(rows)
            dh = dz @ theta[2] * (h > 0)
            for i, g in enumerate((dh.T @ x[rows], dh.sum(0), dz.T @ np.maximum(h, 0), dz.sum(0))):
                m[i], v[i] = 0.9 * m[i] + 0.1 * g, 0.999 * v[i] + 0.001 * g**2
                theta[i] = theta[i] - 1e-3 * (m[i] / (1 - 0.9**t)) / (np.sqrt(v[i] / (1 - 0.999**t)) + 1e-8)
    return theta


def test_labelling_network_is_the_plain_reference():
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(40, 7, generator=g, dtype=torch.float64), torch.randint(0, 3, (40,), generator=g)
    network = LabellingNetwork(torch.float64)
    network.fit(x, y, 3, epochs=4, seed=3, console=QUIET)
    for name, expected in zip(network.names, reference_network(x.numpy(), y.numpy(), 3, 4, 3), strict=True):
        np.testing.assert_allclose(getattr(network, name).numpy(), expected, rtol=1e-7, atol=1e-10)
    assert not list(network.parameters())


def test_labelling_network_learns_what_it_is_taught():
    g = torch.Generator().manual_seed(0)
    y = torch.arange(60) % 3
    x = F.one_hot(y, 3).float() @ torch.randn(3, 20, generator=g) + 0.3 * torch.randn(60, 20, generator=g)
    network = LabellingNetwork(torch.float32)
    network.fit(x, y, 3, epochs=50, seed=0, console=QUIET)
    assert (network(x).argmax(1) == y).all()


# Steps 1, 4 and 5: head, labels and student


def test_head_starts_at_the_mean_of_descriptions_and_templates(engine):
    heads = random_heads(C)
    task = nola.build(engine, heads, NolaConfig(), TrainingConfig(), 0)
    expected = torch.stack([F.normalize(own.mean(0), dim=0) for own in heads.texts])
    torch.testing.assert_close(task.head.detach(), expected)


def test_labels_are_the_frozen_networks_and_never_move(engine):
    batch = random_batch(B, 0)
    task = prepared(engine, batch)
    cls = engine.encode_frozen(batch.centre).cls
    labels = task.labeller(cls).argmax(-1)
    assert torch.equal(task.pseudo_labels(batch.index).labels, labels)
    network = {name: t.clone() for name, t in task.labeller.state_dict().items()}
    train_steps(task, batch, 3)
    assert torch.equal(task.pseudo_labels(torch.tensor([4, 1])).labels, labels[[4, 1]])
    assert all(torch.equal(t, network[name]) for name, t in task.labeller.state_dict().items())


def test_labelling_network_is_taught_by_the_images_that_the_text_head_is_sure_of(engine):
    batch = random_batch(B, 0)
    task = prepared(engine, batch, keep_min=1)
    tokens = engine.encode_frozen(batch.centre)
    zero_shot = (engine.backbone.logit_scale * tokens.global_ @ task.head.T).softmax(-1)
    kept, labels = select_confident(zero_shot, 1)
    assert 1 < len(kept) < B
    network = LabellingNetwork(torch.float32)
    network.fit(tokens.cls[kept], labels, C, epochs=50, seed=0, console=QUIET)
    assert torch.equal(task.posteriors, network(tokens.cls).softmax(-1))


def test_a_step_is_the_plain_reference_and_costs_one_forward(engine):
    batch = random_batch(B, 0)
    task = prepared(engine, batch)
    labels = task.pseudo_labels(batch.index).labels
    backbone = engine.backbone
    with torch.no_grad():
        raw = backbone.visual.tokens(backbone.normalise(batch.strong), prompts=task.prompts).cls @ backbone.visual.proj
        z = raw @ task.head.T
    target = F.one_hot(labels, C) * 0.9 + 0.1 / C
    before = engine.no_grad_forwards, engine.grad_forwards
    torch.testing.assert_close(task.step(batch, 0, 0).loss.detach(), -(target * z.log_softmax(-1)).sum(-1).mean())
    assert (engine.no_grad_forwards - before[0], engine.grad_forwards - before[1]) == (0, B)
    assert (task.cost().no_grad_forwards, task.cost().grad_forwards) == (0, 1)


def test_gradient_of_a_step_by_finite_differences(folder):
    engine, batch = tiny_engine(folder, torch.float64), random_batch(B, 0)
    task = prepared(engine, batch, marginal="uniform")
    for name in ("head", "prompts", "visual.ln_post.weight", "visual.transformer.resblocks.0.ln_1.bias"):
        automatic, numeric = step_gradient(task, batch, name, 5)
        assert automatic == pytest.approx(numeric, rel=1e-5, abs=1e-9)
        assert automatic != 0


def test_trainable_count_of_vit_b32():
    task = Nola(vit_b32_engine(), torch.zeros(100, 512, device="meta"), NolaConfig())
    assert trainable_count(task) == 16 * 768 + 39_936 + 512 * 100


def test_estimated_prior_rests_on_the_labelling_network(engine):
    task = prepared(engine, random_batch(B, 0), marginal="prior")
    assert torch.equal(task.class_prior.posteriors, task.posteriors)
    assert (task.class_prior.prior - 1 / C).abs().max() > 0.01


def test_prediction_state_suffices_to_predict_alike(engine):
    batch, options = random_batch(B, 0), NolaConfig(prompts=P)
    task = prepared(engine, batch)
    train_steps(task, batch, 2)
    bare = without_texts(random_heads(C))
    rebuilt = nola.build(engine, bare, from_mapping(NolaConfig, to_plain(options), "method"), TrainingConfig(), 0)
    assert set(task.prediction_state()) == {"head", "prompts", "feature_scale"}
    assert not rebuilt.load_state_dict(task.prediction_state(), strict=False).unexpected_keys
    assert torch.equal(rebuilt.predict_logits(batch.centre)["logits"], task.predict_logits(batch.centre)["logits"])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"keep_share": 1.5}, "method.keep_share"),
        ({"keep_min": 0}, "method.keep_min"),
        ({"keep_max": 8}, "method.keep_max"),
        ({"labelling_epochs": 0}, "method.labelling_epochs"),
        ({"held_out": 1.0}, "method.held_out"),
        ({"patience": 0}, "method.patience"),
        ({"prompts": -1}, "method.prompts"),
        ({"second_encoder": "dino"}, "self, timm:NAME"),
        ({"second_encoder": "timm:"}, "self, timm:NAME"),
        ({"second_encoder": "timm:test_vit@b.safetensors", "second_checkpoint": "a.safetensors"}, "method.second_checkpoint"),
        ({"second_checkpoint": "a.safetensors"}, "method.second_checkpoint"),
    ],
)
def test_impossible_options_are_refused_by_name(options, words):
    with pytest.raises(UserError, match=words):
        NolaConfig(**options)

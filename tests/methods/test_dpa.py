"""DPA: limiting cases, options, gradients, state."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import get_args

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck

from finelens.core.options import from_mapping, to_plain
from finelens.errors import UserError
from finelens.methods import dpa
from finelens.methods.dpa.config import DpaConfig, PresetName
from finelens.methods.dpa.presets import PRESETS, PUBLISHED
from finelens.methods.dpa.prototypes import alignment_loss, image_prototypes
from finelens.methods.dpa.pseudo_labels import align_distribution, assign
from finelens.methods.dpa.task import Dpa
from finelens.protocol import Batch, TargetFeatures
from finelens.runs.resolve import make_config
from finelens.training.config import TrainingConfig
from finelens.training.losses import log_batch_marginal, marginal_loss
from finelens.training.pseudo_labels import PseudoLabels, ranking, weighted_cross_entropy
from finelens.training.schedule import learning_rate
from tests.methods.tiny import (
    DIM,
    Pictures,
    random_batch,
    random_heads,
    separating_rows,
    step_gradient,
    tiny_engine,
    train_steps,
    trainable_count,
    unit_rows,
    vit_b32_engine,
    whole_and_resumed,
)

B, C, E = 6, 4, 16
PAGE = Path(__file__).resolve().parents[2] / "docs" / "methods" / "dpa.md"


def prepared(engine, config: DpaConfig, batch, **options) -> Dpa:
    """A task whose memory holds the weak views of ``batch``."""
    task = Dpa(engine, separating_rows(engine, batch, C), config, **options)
    tokens = engine.encode_frozen(batch.weak)
    task.prepare(TargetFeatures(tokens.global_, tokens.cls))
    return task


# Image prototypes and memory


def test_first_image_prototypes_are_the_means_of_what_the_text_labels(engine):
    batch = random_batch(B, 0)
    task = prepared(engine, DpaConfig(), batch)
    features = engine.encode_frozen(batch.weak).global_
    labels = task.logits(features).argmax(-1)
    assert torch.equal(task.memory_labels, labels)
    assert torch.equal(task.memory_features, features)
    assert len(labels.unique()) > 1
    for c in labels.unique():
        torch.testing.assert_close(task.image_prototypes[c], F.normalize(features[labels == c].mean(0), dim=-1))


def test_class_without_image_takes_its_text_prototype():
    features, text = unit_rows(3, E, seed=0), unit_rows(C, E, seed=1)
    prototypes = image_prototypes(features, torch.tensor([0, 2, 2]), text)
    assert torch.equal(prototypes[[1, 3]], text[[1, 3]])
    torch.testing.assert_close(prototypes[2], F.normalize(features[1:].mean(0), dim=-1))


def test_a_step_writes_its_images_into_memory_and_only_the_end_of_the_epoch_renews_the_prototypes(engine):
    batch = random_batch(B, 0)
    task = prepared(engine, DpaConfig(image_share=0.0), batch)
    features, prototypes = task.memory_features.clone(), task.image_prototypes.clone()
    half = random_batch(3, 0, seed=1)
    task.memory_labels.fill_(C - 1)
    weak = engine.encode_frozen(half.weak).global_
    # With text alone and a queue that is still empty, the label is the batch-balanced one.
    text = task.logits(weak).softmax(-1)
    task.step(Batch(torch.tensor([4, 1, 5]), weak=half.weak, strong=half.strong), 0, 0)
    assert torch.equal(task.memory_labels[[0, 2, 3]], torch.full((3,), C - 1))
    assert torch.equal(task.memory_labels[[4, 1, 5]], (text / text.mean(0)).argmax(-1))
    assert torch.equal(task.memory_features[[0, 2, 3]], features[[0, 2, 3]])
    assert torch.equal(task.memory_features[[4, 1, 5]], weak)
    assert torch.equal(task.image_prototypes, prototypes)
    task.end_epoch(0)
    assert not torch.equal(task.image_prototypes, prototypes)
    torch.testing.assert_close(
        task.image_prototypes, image_prototypes(task.memory_features, task.memory_labels, F.normalize(task.prototypes.detach(), dim=-1))
    )


# Pseudo-labels


def test_images_alone_without_the_other_losses_is_prototype_self_training(engine):
    batch = random_batch(B, 0)
    config = DpaConfig(image_share=1.0, weighting=False, marginal="none", align_weight=0.0)
    task = prepared(engine, config, batch)
    weak, strong = engine.encode_frozen(batch.weak).global_, engine.encode_frozen(batch.strong).global_
    labels = (weak @ task.image_prototypes.T).argmax(-1)
    assert len(labels.unique()) > 1
    pseudo = task.pseudo_labels(weak)
    assert torch.equal(pseudo.labels, labels)
    expected = F.cross_entropy(engine.backbone.logit_scale * strong @ F.normalize(task.prototypes, dim=-1).T, labels)
    torch.testing.assert_close(task.loss(strong, pseudo)[0], expected)


def test_text_alone_with_a_queue_of_one_is_the_batch_balanced_posterior(engine):
    batch = random_batch(B, 0)
    task = prepared(engine, DpaConfig(image_share=0.0, queue=1), batch)
    task.log_means = torch.zeros(1, C)
    weak = engine.encode_frozen(batch.weak).global_
    text = task.logits(weak).softmax(-1)
    balanced = text / text.mean(0)
    torch.testing.assert_close(task.pseudo_labels(weak).posterior, balanced / balanced.sum(1, keepdim=True))
    torch.testing.assert_close(task.log_means.exp(), text.mean(0, keepdim=True))


def test_queue_keeps_the_last_batches_and_zero_leaves_alignment_out(engine):
    task = Dpa(engine, random_heads(C).templates, DpaConfig(queue=3, image_share=0.0))
    batches = [unit_rows(5, DIM, seed=seed) for seed in range(5)]
    for weak in batches:
        pseudo = task.pseudo_labels(weak)
    means = torch.stack([task.logits(weak).softmax(-1).mean(0) for weak in batches[-3:]])
    torch.testing.assert_close(task.log_means.exp(), means)
    text = task.logits(batches[-1]).softmax(-1)
    balanced = text / means.mean(0)
    torch.testing.assert_close(pseudo.posterior, balanced / balanced.sum(1, keepdim=True))
    plain = Dpa(engine, random_heads(C).templates, DpaConfig(queue=0, image_share=0.0))
    torch.testing.assert_close(plain.pseudo_labels(batches[-1]).posterior, text)
    assert len(plain.log_means) == 0


def test_a_class_that_no_recent_batch_named_does_not_divide_by_zero():
    log_posterior = torch.tensor([[0.0, -500.0], [-0.1, -200.0]]).log_softmax(-1)
    assert log_posterior.exp()[:, 1].max() == 0
    aligned = align_distribution(log_posterior, log_batch_marginal(log_posterior)[None])
    assert aligned.isfinite().all()
    assert aligned.argmax(-1).tolist() == [0, 1]


def test_weights_are_small_where_text_and_images_disagree():
    text, image = torch.tensor([[0.8, 0.2], [0.9, 0.1]]), torch.tensor([[0.6, 0.4], [0.05, 0.95]])
    pseudo = assign(text, text, image, image_share=0.5, weighting=True)
    assert pseudo.labels.tolist() == [0, 1]
    torch.testing.assert_close(pseudo.weights, torch.tensor([1.0, 0.1 / 0.9]))
    assert assign(text, text, image, image_share=0.5, weighting=False).weights.tolist() == [1, 1]


def test_ranking_asks_the_text_before_its_alignment(engine):
    task = Dpa(engine, random_heads(C).templates, DpaConfig())
    weak = unit_rows(20, DIM, seed=0)
    pseudo = task.pseudo_labels(weak)
    image = (engine.backbone.logit_scale * weak @ task.image_prototypes.T).softmax(-1)
    text = task.logits(weak).softmax(-1)
    torch.testing.assert_close(pseudo.weights, ranking(image, pseudo.labels) * ranking(text, pseudo.labels))
    assert not torch.equal(text.argmax(-1), pseudo.labels)


# Losses


def test_each_label_counts_by_its_weight(engine):
    task = Dpa(engine, random_heads(C).templates, DpaConfig(marginal="none", align_weight=0.0))
    strong, labels, weights = unit_rows(B, DIM, seed=0), torch.tensor([0, 1, 2, 3, 0, 1]), torch.linspace(0, 1, B)
    loss, log = task.loss(strong, PseudoLabels(labels, weights, torch.full((B, C), 1 / C)))
    log_p = (engine.backbone.logit_scale * strong @ task.prototypes.T).log_softmax(-1)
    torch.testing.assert_close(loss, -(weights * log_p[torch.arange(B), labels]).sum() / B)
    assert log["pseudo_weight"] == pytest.approx(0.5)


def test_gradients_of_each_loss_by_finite_differences():
    features = unit_rows(B, E, seed=0, dtype=torch.float64).requires_grad_()
    text = unit_rows(C, E, seed=1, dtype=torch.float64).requires_grad_()
    image = unit_rows(C, E, seed=2, dtype=torch.float64)
    labels, weights = torch.tensor([0, 1, 2, 3, 0, 1]), torch.linspace(0.1, 1, B, dtype=torch.float64)
    prior = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)

    def logits(f, z):
        return 10 * f @ F.normalize(z, dim=-1).T

    assert gradcheck(lambda f, z: weighted_cross_entropy(logits(f, z), labels, weights), (features, text))
    assert gradcheck(lambda f, z: marginal_loss(log_batch_marginal(logits(f, z)), prior), (features, text))
    assert gradcheck(lambda z: alignment_loss(image, F.normalize(z, dim=-1), 10.0), (text,))


def test_gradient_of_a_step_reaches_norms_and_prototypes(folder):
    engine = tiny_engine(folder, torch.float64)
    batch = random_batch(B, 0)
    task = prepared(engine, DpaConfig(), batch)
    # The weights carry no gradient but move with the parameters, and the queue moves with each call; hold the labels fixed, as the loss does.
    fixed = task.pseudo_labels(engine.encode_frozen(batch.weak).global_)
    task.pseudo_labels = lambda weak: fixed
    for name in ("prototypes", "visual.ln_post.weight", "visual.transformer.resblocks.0.ln_1.bias"):
        automatic, numeric = step_gradient(task, batch, name, 5)
        assert automatic == pytest.approx(numeric, rel=1e-6, abs=1e-9)
        assert automatic != 0


def test_alignment_moves_the_text_prototypes_only(engine):
    image, text = unit_rows(C, E, seed=0).requires_grad_(), unit_rows(C, E, seed=1).requires_grad_()
    alignment_loss(image, text, 10.0).backward()
    assert image.grad is None
    assert text.grad is not None
    with torch.no_grad():
        nearer = F.normalize(text - 0.1 * text.grad, dim=-1)
        assert ((image * nearer).sum(1) - (image * text).sum(1)).mean() > 0


def test_options_scale_their_terms(engine):
    batch = random_batch(B, 0)
    strong = engine.encode_frozen(batch.strong).global_
    pseudo = PseudoLabels(torch.tensor([0, 1, 2, 3, 0, 1]), torch.ones(B), torch.full((B, C), 1 / C))

    def loss(**options):
        return prepared(engine, DpaConfig(**options), batch).loss(strong, pseudo)

    alone, _ = loss(marginal="none", align_weight=0.0)
    total, log = loss(marginal_weight=3.0, align_weight=0.5, align_scale=0.25)
    torch.testing.assert_close(total, alone + 3 * log["marginal"] + 0.5 * log["align"])
    task = prepared(engine, DpaConfig(), batch)
    scale = 0.25 * engine.backbone.logit_scale
    assert log["align"].item() == pytest.approx(alignment_loss(task.image_prototypes, F.normalize(task.prototypes, dim=-1), scale).item())
    estimated = prepared(engine, DpaConfig(marginal="prior", align_weight=0.0), batch)
    term = marginal_loss(log_batch_marginal(estimated.logits(strong)), estimated.class_prior.prior)
    torch.testing.assert_close(estimated.loss(strong, pseudo)[0], alone + term)
    assert (estimated.class_prior.prior - 1 / C).abs().max() > 0.01


def test_alignment_draws_to_the_estimated_prior(engine):
    batch = random_batch(B, 0)
    weak = engine.encode_frozen(batch.weak).global_
    task, uniform = (prepared(engine, DpaConfig(marginal=kind, image_share=0.0), batch) for kind in ("prior", "uniform"))
    prior = torch.tensor([0.7, 0.1, 0.1, 0.1])
    task.class_prior.prior = prior
    text = task.logits(weak).softmax(-1)
    aligned = prior * text / text.mean(0)
    torch.testing.assert_close(task.pseudo_labels(weak).posterior, aligned / aligned.sum(1, keepdim=True))
    assert (task.pseudo_labels(weak).labels == 0).sum() > (uniform.pseudo_labels(weak).labels == 0).sum()


def test_alignment_to_a_uniform_prior_is_the_published_one():
    text, means = unit_rows(5, C, seed=1).log_softmax(-1), unit_rows(3, C, seed=2).log_softmax(-1)
    torch.testing.assert_close(align_distribution(text, means, torch.full((C,), 1 / C)), align_distribution(text, means))


def test_estimated_prior_follows_the_posteriors_before_alignment(engine):
    batch = random_batch(B, 0)
    task = prepared(engine, DpaConfig(marginal="prior"), batch)
    before = task.class_prior.prior.clone()
    weak = engine.encode_frozen(batch.weak).global_
    text = task.logits(weak).softmax(-1)
    image = (engine.backbone.logit_scale * weak @ task.image_prototypes.T).softmax(-1)
    task.step(batch, 0, 0)
    torch.testing.assert_close(task.class_prior.posteriors, (image + text) / 2)
    assert torch.equal(task.class_prior.prior, before)
    assert task.end_epoch(0)["prior_largest"] == task.class_prior.prior.max().item()
    assert not torch.equal(task.class_prior.prior, before)


# What is trained, saved and predicted


def test_trainable_count_of_vit_b32_on_flowers():
    assert trainable_count(Dpa(vit_b32_engine(), torch.zeros(102, 512, device="meta"), DpaConfig())) == 92_160


def test_everything_but_biases_decays(engine):
    plain, decayed = Dpa(engine, random_heads(C).templates, DpaConfig(), weight_decay=0.3).parameter_groups()
    assert (plain["weight_decay"], decayed["weight_decay"]) == (0.0, 0.3)
    assert plain["params"]
    assert all(name.endswith("bias") for name, _ in plain["params"])
    assert {"prototypes", "visual.ln_post.weight"} <= {name for name, _ in decayed["params"]}


def test_cost_is_what_a_step_encodes(engine):
    batch = random_batch(B, 0)
    task = prepared(engine, DpaConfig(), batch)
    before = engine.no_grad_forwards, engine.grad_forwards
    task.step(batch, 0, 0)
    assert engine.no_grad_forwards - before[0] == B * task.cost().no_grad_forwards == B
    assert engine.grad_forwards - before[1] == B * task.cost().grad_forwards == B


def test_logit_scale_is_the_models(engine):
    batch = random_batch(B, 0)
    task = prepared(engine, DpaConfig(queue=0), batch)
    weak = engine.encode_frozen(batch.weak).global_
    base = task.predict_logits(batch.weak)["logits"]
    engine.backbone.logit_scale *= 2
    torch.testing.assert_close(task.predict_logits(batch.weak)["logits"], 2 * base)
    image = (engine.backbone.logit_scale * weak @ task.image_prototypes.T).softmax(-1)
    torch.testing.assert_close(task.pseudo_labels(weak).posterior, (image + (2 * base).softmax(-1)) / 2)


def test_prediction_state_suffices_to_predict_alike(engine):
    heads, batch = random_heads(C), random_batch(B, 0)
    options = DpaConfig(preset="pets", marginal="prior")
    task = prepared(engine, options, batch)
    train_steps(task, batch, 2)
    rebuilt = dpa.build(engine, heads, from_mapping(DpaConfig, to_plain(options), "method"), TrainingConfig(), 0)
    result = rebuilt.load_state_dict(task.prediction_state(), strict=False)
    assert not result.unexpected_keys
    assert torch.equal(rebuilt.predict_logits(batch.weak)["logits"], task.predict_logits(batch.weak)["logits"])


def test_an_interrupted_run_ends_as_if_it_had_not_been(folder, tmp_path):
    pictures, config = Pictures(7), TrainingConfig(epochs=3, batch_size=4, lr=1e-3)

    def build() -> Dpa:
        engine = tiny_engine(folder)
        return Dpa(engine, separating_rows(engine, random_batch(4, 0), C), DpaConfig(marginal="prior"))

    # Step 3 is inside the second epoch: memory, queue and image prototypes are all in use.
    task, second = whole_and_resumed(build, pictures, config, tmp_path)
    assert len(task.log_means) == 6
    for name, tensor in task.state_dict().items():
        assert torch.equal(second.state_dict()[name], tensor), name
    for name, parameter in task.tuned.items():
        assert torch.equal(second.tuned[name], parameter), name


def test_a_few_steps_lower_the_loss(engine):
    batch = random_batch(B, 0)
    losses = train_steps(prepared(engine, DpaConfig(), batch), batch, 6)
    assert losses[-1] < losses[0]


# Options


def test_default_is_the_median_of_the_published_settings():
    default = DpaConfig()
    assert (default.image_share, default.align_scale, default.marginal_weight, default.align_weight) == (0.5, 1.0, 1.0, 1.0)
    assert (PRESETS["default"].lr, PRESETS["default"].epochs) == (1e-5, 15)
    # The rule, not a choice: no more than half of the sets lie on either side.
    for name in ("image_share", "align_scale", "marginal_weight", "align_weight"):
        values = [getattr(preset, name) for preset in PUBLISHED.values()]
        chosen = getattr(default, name)
        assert max(sum(v < chosen for v in values), sum(v > chosen for v in values)) <= len(values) // 2


def test_presets_fill_what_is_not_given():
    assert get_args(PresetName) == tuple(PRESETS)
    config = DpaConfig(preset="eurosat", image_share=0.3)
    assert (config.image_share, config.align_scale, config.marginal_weight, config.align_weight) == (0.3, 0.01, 1.0, 0.01)
    assert from_mapping(DpaConfig, to_plain(config), "method") == config


def test_a_preset_sets_learning_rate_and_epochs_below_what_is_given():
    def training(**assignments):
        return make_config("adapt", "photos", "dpa", assignments, backbone="embedded").training

    common = TrainingConfig()
    assert (training().lr, training().epochs) == (common.lr, common.epochs) == (1e-4, 15)
    eurosat = training(method={"preset": "eurosat"})
    assert (eurosat.lr, eurosat.min_lr, eurosat.epochs) == (3e-5, 2e-6, 10)
    assert training(method={"preset": "eurosat"}, training={"epochs": 2, "lr": 1e-3}).epochs == 2
    assert training(method={"preset": "eurosat"}, training={"epochs": 2, "lr": 1e-3}).lr == 1e-3
    for preset in PUBLISHED:
        found = training(method={"preset": preset})
        rates = [learning_rate(step, 3, found) for step in range(3 * found.epochs)]
        assert rates[0] == pytest.approx(PUBLISHED[preset].lr)
        assert rates == sorted(rates, reverse=True), preset


def test_documented_presets_are_those_of_the_code():
    rows = re.findall(r"^\| `(\w+)` \|(.+)\|$", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    documented = {name: tuple(float(cell) for cell in cells.split("|")) for name, cells in rows if name in PRESETS}
    expected = {name: (p.image_share, p.align_scale, p.marginal_weight, p.align_weight, p.lr, float(p.epochs)) for name, p in PRESETS.items()}
    assert documented == expected


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"image_share": 1.5}, "method.image_share"),
        ({"queue": -1}, "method.queue"),
        ({"preset": "nope"}, "method.preset"),
        ({"align_weight": math.nan}, "method.align_weight"),
    ],
)
def test_impossible_options_are_refused_by_name(options, words):
    with pytest.raises(UserError, match=words):
        DpaConfig(**options)

"""LaFTer and the student it shares with NoLA: equations, frozen teacher, prompts, state."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from finelens.backbones.open_clip_loader import OpenClipBackbone
from finelens.core.options import from_mapping, to_plain
from finelens.engine.engine import Engine
from finelens.errors import UserError
from finelens.methods import lafter
from finelens.methods.lafter.config import LafterConfig
from finelens.methods.lafter.task import Lafter
from finelens.methods.parts.student import StudentConfig, start_prompts
from finelens.methods.text_classifier import train_text_head
from finelens.protocol import NotAvailableError, TargetFeatures
from finelens.training.config import TrainingConfig
from finelens.training.losses import log_batch_marginal, marginal_loss
from finelens.training.pseudo_labels import PseudoLabels
from tests.methods.tiny import (
    FLOAT32,
    Pictures,
    random_batch,
    random_heads,
    step_gradient,
    target_features,
    tiny_engine,
    train_steps,
    trainable_count,
    vit_b32_engine,
    whole_and_resumed,
    without_texts,
)
from tests.toy import QUIET

B, C, P = 6, 4, 5
QUICK = {"text_steps": 20, "prompts": P}


@pytest.fixture
def conv_engine(tiny_resnet):
    return Engine(OpenClipBackbone.from_folder(tiny_resnet), torch.device("cpu"), FLOAT32)


def prepared(engine, batch=None, dtype=torch.float32, **options) -> Lafter:
    """A task whose unlabelled images are the centre views of ``batch``."""
    batch = batch or random_batch(B, 0)
    task = Lafter(engine, random_heads(C, dtype), LafterConfig(**{**QUICK, **options}))
    tokens = engine.encode_frozen(batch.centre)
    task.prepare(TargetFeatures(tokens.global_, tokens.cls))
    return task


def smoothed_cross_entropy(logits, labels, smoothing):
    target = F.one_hot(labels, logits.shape[1]) * (1 - smoothing) + smoothing / logits.shape[1]
    return -(target * logits.log_softmax(-1)).sum(-1).mean()


# Stage 1 and the teacher


def test_stage_one_is_the_text_classifier_of_the_same_seed(engine):
    task = prepared(engine)
    head = train_text_head(random_heads(C).texts, task.config, 0, QUIET)
    assert torch.equal(task.teacher, head)
    assert torch.equal(task.head, head)


def test_teacher_is_frozen_while_its_copy_learns(engine):
    batch = random_batch(B, 0)
    task = prepared(engine, batch)
    before = task.teacher.clone()
    train_steps(task, batch, 3)
    assert torch.equal(task.teacher, before)
    assert not torch.equal(task.head, before)
    trained = [p for group in task.parameter_groups() for _, p in group["params"]]
    assert all(p.data_ptr() != task.teacher.data_ptr() for p in trained)


def test_teacher_sees_the_centre_view_through_the_current_tower_without_prompts(engine):
    batch = random_batch(B, 0)
    task = prepared(engine, batch)
    seen = []
    answer = task.pseudo_labels
    task.pseudo_labels = lambda features: seen.append(features) or answer(features)

    def labelling_features():
        seen.clear()
        task.step(batch, 0, 0)
        return seen[0]

    with torch.no_grad():
        assert torch.equal(labelling_features(), engine.encode_frozen(batch.centre).global_)
        task.prompts += 1
        assert torch.equal(labelling_features(), engine.encode_frozen(batch.centre).global_)
        before = labelling_features()
        engine.backbone.visual.ln_post.weight *= torch.linspace(0.5, 2, 64)
        assert torch.equal(labelling_features(), engine.encode_frozen(batch.centre).global_)
    assert not torch.equal(seen[0], before)


# The student


def test_a_step_is_the_plain_reference(engine):
    batch = random_batch(B, 0)
    task = prepared(engine, batch, label_smoothing=0.2)
    backbone = engine.backbone
    with torch.no_grad():
        centre = backbone.visual.tokens(backbone.normalise(batch.centre))
        labels = (F.normalize(centre.cls @ backbone.visual.proj, dim=-1) @ task.teacher.T).argmax(-1)
        strong = backbone.visual.tokens(backbone.normalise(batch.strong), prompts=task.prompts)
        raw = strong.cls @ backbone.visual.proj
        expected = smoothed_cross_entropy(raw @ task.head.T, labels, 0.2)
        output = task.step(batch, 0, 0)
    assert (raw.norm(dim=-1) - 1).abs().min() > 0.1
    torch.testing.assert_close(output.loss, expected)
    assert output.log["agreement"] == pytest.approx(((raw @ task.head.T).argmax(-1) == labels).float().mean().item())
    assert "marginal" not in output.log


def test_gradient_of_a_step_reaches_head_prompts_and_norms(folder):
    engine, batch = tiny_engine(folder, torch.float64), random_batch(B, 0)
    task = prepared(engine, batch, dtype=torch.float64)
    # The labels rest on the norms too, and are constant as the loss takes them.
    fixed = task.pseudo_labels(engine.encode_frozen(batch.centre).global_)
    task.pseudo_labels = lambda features: fixed
    for name in ("head", "prompts", "visual.ln_post.weight", "visual.transformer.resblocks.0.ln_1.bias"):
        automatic, numeric = step_gradient(task, batch, name, 5)
        assert automatic == pytest.approx(numeric, rel=1e-5, abs=1e-9)
        assert automatic != 0


def test_prompts_change_answers_and_learn_on_a_vit(engine):
    batch = random_batch(B, 0)
    task = prepared(engine, batch)
    before, without = task.prompts.detach().clone(), engine.encode_frozen(batch.centre).cls
    assert not torch.equal(engine.encode_frozen(batch.centre, prompts=task.prompts).cls, without)
    train_steps(task, batch, 2)
    assert (task.prompts != before).any(dim=1).all()
    assert prepared(engine, prompts=0).prompts is None


def test_a_convolutional_tower_is_told_once_and_the_rest_learns(conv_engine, capsys):
    batch = random_batch(B, 0)
    task = prepared(conv_engine, batch)
    assert task.prompts is None
    losses = train_steps(task, batch, 6)
    assert losses[-1] < losses[0]
    warnings = capsys.readouterr().err.splitlines()
    assert len(warnings) == 1
    assert "no token sequence" in warnings[0]
    assert "visual prompts are not available" in warnings[0]
    with pytest.raises(NotAvailableError, match="takes no visual prompts"):
        conv_engine.encode(batch.strong, prompts=torch.zeros(P, conv_engine.backbone.width))
    prepared(conv_engine, batch, prompts=0)
    assert capsys.readouterr().err == ""


def test_a_tower_with_a_pool_of_its_own_keeps_the_direction_of_the_global_feature(conv_engine):
    task, images = prepared(conv_engine), random_batch(B, 0).centre
    tokens = conv_engine.encode_frozen(images)
    length = conv_engine.backbone.project(tokens.cls).norm(dim=-1, keepdim=True)
    torch.testing.assert_close(task.predict_logits(images)["logits"], length * tokens.global_ @ task.head.T)


def test_a_projection_without_a_norm_gets_a_tenth_of_the_logit_scale(engine):
    assert prepared(engine).feature_scale == 1
    project = engine.backbone.project
    engine.backbone.project = lambda tokens: F.normalize(project(tokens), dim=-1)
    task, images = prepared(engine), random_batch(B, 0).centre
    assert task.feature_scale == pytest.approx(engine.backbone.logit_scale / 10)
    features = engine.encode_frozen(images, prompts=task.prompts).global_
    torch.testing.assert_close(task.predict_logits(images)["logits"], engine.backbone.logit_scale / 10 * features @ task.head.T)


def test_prompts_start_within_the_range_of_a_patch_embedding(engine):
    prompts = start_prompts(engine.backbone, 200, 0)
    assert prompts.shape == (200, 64)
    bound = math.sqrt(6 / (3 * 16 * 16 + 64))
    assert 0.99 * bound < prompts.abs().max() <= bound
    assert abs(prompts.mean()) < 0.02 * bound
    assert torch.equal(prompts, start_prompts(engine.backbone, 200, 0))
    assert not torch.equal(prompts, start_prompts(engine.backbone, 200, 1))


# Class prior


def test_marginal_term_is_added_where_it_is_asked_for(engine):
    batch = random_batch(B, 0)
    pseudo = PseudoLabels(torch.tensor([0, 1, 2, 3, 0, 1]), torch.ones(B), torch.full((B, C), 1 / C))
    with torch.no_grad():
        plain = prepared(engine, batch)
        logits = plain.logits(batch.strong)
        alone = plain.loss(logits, pseudo)[0]
        uniform = prepared(engine, batch, marginal="uniform", marginal_weight=3.0)
        term = marginal_loss(log_batch_marginal(logits), torch.full((C,), 1 / C))
        torch.testing.assert_close(uniform.loss(logits, pseudo)[0], alone + 3 * term)
        estimated = prepared(engine, batch, marginal="prior")
        term = marginal_loss(log_batch_marginal(logits), estimated.class_prior.prior)
        torch.testing.assert_close(estimated.loss(logits, pseudo)[0], alone + term)


def test_estimated_prior_counts_the_labels_of_the_teacher(engine):
    batch = random_batch(B, 0)
    task = prepared(engine, batch, marginal="prior")
    labels = task.pseudo_labels(engine.encode_frozen(batch.centre).global_).labels
    counts = torch.bincount(labels, minlength=C) / B
    # The estimator adds as many pseudo-images as there are images, evenly.
    torch.testing.assert_close(task.class_prior.prior, (counts + 1 / C) / 2)
    task.class_prior.posteriors.zero_()
    task.step(batch, 0, 0)
    assert torch.equal(task.class_prior.posteriors.argmax(-1), labels)
    assert torch.equal(task.class_prior.posteriors.sum(-1), torch.ones(B))


# What is trained, counted and saved


def test_trainable_count_of_vit_b32():
    heads = random_heads(C)
    meta = type(heads)(*(torch.zeros(100, 512, device="meta") for _ in range(3)))
    assert trainable_count(Lafter(vit_b32_engine(), meta, LafterConfig())) == 38_400 + 39_936 + 512 * 100


def test_everything_that_learns_decays(engine):
    groups = [group for group in prepared(engine).parameter_groups() if group["params"]]
    assert [group["weight_decay"] for group in groups] == [0.1]
    assert {"head", "prompts", "visual.ln_post.bias"} <= {name for name, _ in groups[0]["params"]}


def test_cost_is_what_a_step_encodes(engine):
    batch = random_batch(B, 0)
    task = prepared(engine, batch)
    before = engine.no_grad_forwards, engine.grad_forwards
    task.step(batch, 0, 0)
    assert engine.no_grad_forwards - before[0] == B * task.cost().no_grad_forwards == B
    assert engine.grad_forwards - before[1] == B * task.cost().grad_forwards == B
    task.predict_logits(batch.centre)
    assert engine.no_grad_forwards - before[0] == 2 * B
    assert engine.grad_forwards - before[1] == B


def test_prediction_state_suffices_to_predict_alike(engine):
    batch, options = random_batch(B, 0), LafterConfig(**QUICK, marginal="prior")
    task = prepared(engine, batch, marginal="prior")
    train_steps(task, batch, 2)
    bare = without_texts(random_heads(C))
    rebuilt = lafter.build(engine, bare, from_mapping(LafterConfig, to_plain(options), "method"), TrainingConfig(), 0)
    assert set(task.prediction_state()) == {"head", "prompts", "feature_scale"}
    assert not rebuilt.load_state_dict(task.prediction_state(), strict=False).unexpected_keys
    assert torch.equal(rebuilt.predict_logits(batch.centre)["logits"], task.predict_logits(batch.centre)["logits"])


def test_an_interrupted_run_ends_as_if_it_had_not_been(folder, tmp_path):
    pictures, config = Pictures(7), TrainingConfig(epochs=3, batch_size=4, lr=1e-3)
    task, second = whole_and_resumed(
        lambda: Lafter(tiny_engine(folder), random_heads(C), LafterConfig(**QUICK, marginal="prior")), pictures, config, tmp_path
    )
    for name, tensor in {**task.state_dict(), **task.tuned}.items():
        assert torch.equal({**second.state_dict(), **second.tuned}[name], tensor), name


def test_fit_sees_every_image_once_before_the_loop(folder):
    engine = tiny_engine(folder)
    task = Lafter(engine, random_heads(C), LafterConfig(**QUICK))
    task.prepare(target_features(engine, Pictures(7)))
    assert (engine.no_grad_forwards, engine.grad_forwards) == (7, 0)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"prompts": -1}, "method.prompts"),
        ({"label_smoothing": 1.0}, "method.label_smoothing"),
        ({"marginal_weight": math.nan}, "method.marginal_weight"),
        ({"text_steps": 0}, "method.text_steps"),
    ],
)
def test_impossible_options_are_refused_by_name(options, words):
    with pytest.raises(UserError, match=words):
        LafterConfig(**options)


def test_defaults_are_those_of_the_sources():
    assert (LafterConfig().prompts, StudentConfig().label_smoothing, LafterConfig().marginal) == (50, 0.1, "none")

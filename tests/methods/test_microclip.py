"""microCLIP: every option changes what it names; the step does what it says."""

from __future__ import annotations

import dataclasses
import json
import math
import threading
from contextlib import nullcontext
from typing import Literal, get_args, get_origin, get_type_hints

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from finelens.backbones.open_clip_loader import OpenClipBackbone
from finelens.backbones.registry import load_backbone
from finelens.backbones.vit import VisionTransformer, ViTConfig
from finelens.classes.heads import ClassHeads
from finelens.core.options import to_plain
from finelens.engine.device import Precision
from finelens.engine.engine import Engine
from finelens.errors import UserError
from finelens.methods.microclip import task as task_module
from finelens.methods.microclip.config import MicroClipConfig
from finelens.methods.microclip.ncut import ncut_saliency
from finelens.methods.microclip.pseudo_labels import multi_view_feature
from finelens.methods.microclip.task import MicroClip
from finelens.methods.registry import find_method
from finelens.protocol import Batch, Preprocess, TargetFeatures
from finelens.runs.config import from_json, to_json
from finelens.runs.model import load_model, save_model
from finelens.runs.resolve import make_config
from finelens.solvers.prior import estimate_prior
from finelens.training.schedule import build_optimizer
from tests.methods.tiny import unit_rows
from tests.toy import fit_toy, pictures, quick

C = 4
FLOAT32 = Precision(torch.float32, "test")


def make_task(folder, dtype: torch.dtype = torch.float32, **options) -> MicroClip:
    engine = Engine(load_backbone(f"local:{folder}").to(dtype), torch.device("cpu"), FLOAT32)
    return MicroClip(engine, make_heads(engine), MicroClipConfig(**options)).to(dtype)


def make_heads(engine: Engine) -> ClassHeads:
    """Random heads without the direction that all images share, so that images differ in their class."""
    features = engine.encode_frozen(make_batch().weak).global_
    common = F.normalize(features.mean(0), dim=0)
    plain = [unit_rows(C, engine.backbone.dim, seed=seed).to(features) for seed in (1, 2, 3)]
    return ClassHeads(*(F.normalize(head - (head @ common)[:, None] * common, dim=-1) for head in plain))


def make_batch(crops: int = 8, count: int = 6) -> Batch:
    views = torch.randint(0, 256, (count, 2 + crops, 3, 64, 64), generator=torch.Generator().manual_seed(5), dtype=torch.uint8)
    # Flat halves give the patches of each view two kinds, so that the cut decides something.
    views[..., :32] //= 8
    return Batch(torch.arange(count), weak=views[:, 0], strong=views[:, 1], crops=views[:, 2:] if crops else None)


@torch.no_grad()
def weak_tokens(task: MicroClip):
    return task.engine.encode_frozen(make_batch().weak, patches=True)


@torch.no_grad()
def crop_features(task: MicroClip) -> Tensor:
    crops = make_batch().crops
    return task.engine.encode_frozen(crops.flatten(0, 1)).global_.unflatten(0, crops.shape[:2])


def composite(task: MicroClip) -> Tensor:
    return multi_view_feature(crop_features(task), weak_tokens(task).global_)[0]


def trained(task: MicroClip) -> dict[str, Tensor]:
    return {name: p for group in task.parameter_groups() for name, p in group["params"]}


# Options. What each one is compared with is written out, not taken from the task.


@torch.no_grad()
def pooled_by_identity_soap(task: MicroClip, query: Tensor, patches: Tensor) -> Tensor:
    """SOAP before any training: softmax(q . v / sqrt(W)) with one empty token of logit 0."""
    logits = torch.cat([torch.einsum("bw,bnw->bn", query, patches) / math.sqrt(patches.shape[-1]), torch.zeros(len(query), 1)], 1)
    pooled = torch.einsum("bn,bnw->bw", logits.softmax(1)[:, :-1], patches)
    return F.normalize(task.engine.backbone.project(pooled), dim=-1)


def test_default_pools_by_saliency(tiny_vit):
    task = make_task(tiny_vit)
    tokens = weak_tokens(task)
    features = task.features(tokens)
    mask = features.saliency.mask
    assert 0 < mask.sum() < mask.numel()
    query = torch.stack([patches[chosen].mean(0) for patches, chosen in zip(tokens.patches, mask, strict=True)])
    torch.testing.assert_close(features.fine, pooled_by_identity_soap(task, query, tokens.patches), atol=1e-5, rtol=0)
    torch.testing.assert_close(features.attention.sum(1), torch.ones(6))
    assert features.attention.shape == (6, 17)


@pytest.mark.parametrize("query", ["token-mean", "cls", "random-token"])
def test_query(tiny_vit, query):
    task = make_task(tiny_vit, query=query)
    tokens = weak_tokens(task)
    draw = torch.tensor([0.0, 0.2, 0.4, 0.6, 0.8, 0.999])
    picked = tokens.patches[torch.arange(6), [0, 3, 6, 9, 12, 15]]
    expected = {"token-mean": tokens.patches.mean(1), "cls": tokens.cls, "random-token": picked}[query]
    features = task.features(tokens, draw=draw)
    torch.testing.assert_close(features.fine, pooled_by_identity_soap(task, expected, tokens.patches), atol=1e-5, rtol=0)
    assert features.saliency is None
    assert not torch.allclose(features.fine, make_task(tiny_vit).features(tokens).fine, atol=1e-4)


def test_random_token_draws_anew_each_step_and_again_the_same(tiny_vit):
    task = make_task(tiny_vit, query="random-token")
    assert not torch.equal(task._draw(0, 0, 8), task._draw(0, 1, 8))
    assert not torch.equal(task._draw(0, 0, 8), task._draw(1, 0, 8))
    assert torch.equal(task._draw(1, 2, 8), task._draw(1, 2, 8))


@pytest.mark.parametrize("pooling", ["saliency-mean", "token-mean"])
def test_pooling(tiny_vit, pooling):
    task, default = make_task(tiny_vit, pooling=pooling), make_task(tiny_vit)
    tokens = weak_tokens(task)
    features = task.features(tokens)
    mask = ncut_saliency(tokens.patches).mask if pooling == "saliency-mean" else torch.ones(6, 16, dtype=torch.bool)
    mean = torch.stack([patches[chosen].mean(0) for patches, chosen in zip(tokens.patches, mask, strict=True)])
    torch.testing.assert_close(features.fine, F.normalize(task.engine.backbone.project(mean), dim=-1), atol=1e-6, rtol=0)
    assert features.attention is None
    assert not torch.allclose(features.fine, default.features(tokens).fine, atol=1e-4)


def test_learnable_empty_token_is_one_more_trained_vector(tiny_vit):
    default, task = make_task(tiny_vit), make_task(tiny_vit, empty_token="learnable")
    assert set(trained(task)) - set(trained(default)) == {"soap.empty"}
    tokens = weak_tokens(task)
    assert torch.equal(task.features(tokens).fine, default.features(tokens).fine)
    with torch.no_grad():
        task.soap.empty.fill_(1.0)
    assert not torch.allclose(task.features(tokens).fine, default.features(tokens).fine, atol=1e-4)


def test_global_branch_alone(tiny_vit):
    task = make_task(tiny_vit, branches="global")
    tokens = weak_tokens(task)
    logits = task.branch_logits(task.features(tokens))
    assert set(logits) == {"logits", "global"}
    assert torch.equal(logits["logits"], task.engine.backbone.logit_scale * tokens.global_ @ F.normalize(task.head.detach(), dim=-1).T)
    assert not any(name.startswith("soap") for name in trained(task))
    assert {"logits", "global", "fine"} == set(make_task(tiny_vit).predict_logits(make_batch().weak))


@pytest.mark.parametrize("teacher", ["aggregated", "head", "multi-view", "multi-view-fixed"])
def test_teacher(tiny_vit, teacher):
    task = make_task(tiny_vit, teacher=teacher, gamma=0.3)
    tokens, crops = weak_tokens(task), crop_features(task)
    weak = task.features(tokens)
    head, frozen = F.normalize(task.head.detach(), dim=-1), make_heads(task.engine).weighted
    weights = torch.einsum("bme,be->bm", crops, tokens.global_).softmax(1)
    composite = F.normalize((weights[..., None] * crops).sum(1), dim=-1)
    own = F.normalize(0.5 * tokens.global_ + 0.5 * weak.fine, dim=-1) @ head.T
    expected = {
        "aggregated": 0.3 * composite @ frozen.T + 0.7 * own,
        "head": own,
        "multi-view": composite @ head.T,
        "multi-view-fixed": composite @ frozen.T,
    }
    torch.testing.assert_close(task.pseudo_logits(weak, None if teacher == "head" else composite), expected[teacher], atol=1e-6, rtol=0)
    assert task.views.crops == (0 if teacher == "head" else 8)


@pytest.mark.parametrize("gamma", [0.0, 1.0])
def test_gamma_at_its_ends_is_one_teacher_alone(tiny_vit, gamma):
    task = make_task(tiny_vit, gamma=gamma)
    alone = make_task(tiny_vit, teacher="head" if gamma == 0 else "multi-view-fixed")
    weak = task.features(weak_tokens(task))
    ours = task.pseudo_logits(weak, None if gamma == 0 else composite(task))
    torch.testing.assert_close(ours, alone.pseudo_logits(weak, composite(task)), atol=1e-7, rtol=0)
    assert task.views.crops == (0 if gamma == 0 else 8)


@pytest.mark.parametrize(("fusion", "branch"), [(0.0, "fine"), (1.0, "global")])
def test_fusion_at_its_ends_is_one_branch(tiny_vit, fusion, branch):
    task = make_task(tiny_vit, fusion=fusion, gamma=0.0)
    weak = task.features(weak_tokens(task))
    logits = task.branch_logits(weak)
    assert torch.equal(logits["logits"], logits[branch])
    torch.testing.assert_close(task.engine.backbone.logit_scale * task.pseudo_logits(weak, None), logits[branch], atol=1e-4, rtol=0)


def test_crops_are_as_many_as_asked_and_counted(tiny_vit):
    task = make_task(tiny_vit, crops=3)
    assert (task.views.crops, task.cost().no_grad_forwards, task.cost().grad_forwards) == (3, 4, 1)
    assert make_task(tiny_vit, teacher="head").cost().no_grad_forwards == 1


@pytest.mark.parametrize("start", ["descriptions", "templates"])
def test_head_init(tiny_vit, start):
    task = make_task(tiny_vit, head_init=start)
    assert torch.equal(task.head, getattr(make_heads(task.engine), start))


def test_untrained_head(tiny_vit):
    task = make_task(tiny_vit, train_head=False)
    assert set(trained(make_task(tiny_vit))) - set(trained(task)) == {"head"}
    before = task.head.detach().clone()
    take_steps(task, 2)
    assert torch.equal(task.head, before)
    assert not torch.equal(task.soap.query, torch.eye(64))


def take_steps(task: MicroClip, count: int, lr: float = 1e-3) -> None:
    optimizer = build_optimizer(task, lr)
    for step in range(count):
        optimizer.zero_grad()
        task.step(make_batch(task.views.crops), 0, step).loss.backward()
        optimizer.step()


@pytest.mark.parametrize("marginal", ["uniform", "prior", "none"])
@pytest.mark.parametrize(("ce_weight", "marginal_weight"), [(1.0, 1.0), (0.5, 3.0)])
def test_loss_is_the_weighted_sum_it_says(tiny_vit, marginal, ce_weight, marginal_weight):
    task = make_task(tiny_vit, marginal=marginal, ce_weight=ce_weight, marginal_weight=marginal_weight)
    tokens = weak_tokens(task)
    task.prepare(TargetFeatures(tokens.global_, tokens.cls))
    weak = task.features(tokens)
    pseudo = task.pseudo_logits(weak, composite(task))
    logits = task.branch_logits(weak)["logits"]
    p = logits.softmax(1)
    prior = {"uniform": torch.full((C,), 1 / C), "prior": task.class_prior.prior, "none": torch.zeros(C)}[marginal]
    assert marginal != "prior" or (prior - 1 / C).abs().max() > 1e-3
    expected = ce_weight * F.cross_entropy(logits, pseudo.argmax(1)) - 2 * marginal_weight * (prior * p.mean(0).log()).sum()
    loss, log = task.loss(weak, pseudo, first=True)
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-5)
    assert ("marginal" in log) == (marginal != "none")
    # The second step averages with the first, through which no gradient flows.
    if marginal == "uniform":
        second, _ = task.loss(weak, pseudo, first=False)
        torch.testing.assert_close(second, loss, atol=1e-5, rtol=1e-5)
        task.log_marginal = torch.full((C,), 1 / C).log()
        _, log = task.loss(weak, pseudo, first=False)
        assert log["marginal"].item() == pytest.approx(-2 * (0.5 * (1 / C + p.mean(0))).log().mean().item(), rel=1e-5)


def test_uniform_prior_is_the_published_term(tiny_vit):
    published, estimated = make_task(tiny_vit, marginal="uniform"), make_task(tiny_vit, marginal="prior")
    weak = published.features(weak_tokens(published))
    pseudo = published.pseudo_logits(weak, composite(published))
    assert torch.equal(published.loss(weak, pseudo, first=True)[0], estimated.loss(weak, pseudo, first=True)[0])


def test_estimated_prior_is_renewed_after_each_epoch(tiny_vit):
    task = make_task(tiny_vit, marginal="prior")
    task.prepare(TargetFeatures(unit_rows(6, 48, seed=8), torch.zeros(6, 64)))
    before = task.class_prior.prior.clone()
    take_steps(task, 1)
    assert torch.equal(task.class_prior.prior, before)
    task.end_epoch(0)
    assert not torch.equal(task.class_prior.prior, before)
    assert task.class_prior.prior.sum().item() == pytest.approx(1)
    assert torch.equal(task.class_prior.prior, estimate_prior(task.class_prior.posteriors).float())


def test_released_code_decays_everything_and_cuts_by_its_own_rule(tiny_vit):
    default, task = make_task(tiny_vit), make_task(tiny_vit, released_code=True)

    def decay_of_norms(task):
        return {group["weight_decay"] for group in task.parameter_groups() for name, p in group["params"] if "ln_" in name}

    assert (decay_of_norms(default), decay_of_norms(task)) == ({0.0}, {0.1})
    assert {group["weight_decay"] for group in task.parameter_groups() if group["params"]} == {0.1}
    tokens = weak_tokens(task)
    ours, released = default.features(tokens).saliency, task.features(tokens).saliency
    assert torch.equal(released.mask, ncut_saliency(tokens.patches, released_code=True).mask)
    assert not torch.equal(ours.mask, released.mask)


def test_a_convolutional_tower_takes_the_mean_like_side_and_a_transformer_the_decided(tiny_vit, tiny_resnet):
    for folder, side in ((tiny_vit, "decided"), (tiny_resnet, "mean-like")):
        patches = torch.randn(24, 16, 32, generator=torch.Generator().manual_seed(0)) + 0.3
        usual, other = (make_task(folder, salient_side=value)._cut(patches).mask for value in (None, side))
        assert torch.equal(usual, other)
        assert torch.equal(usual, ncut_saliency(patches, side=side).mask)
    assert not torch.equal(ncut_saliency(patches, side="decided").mask, usual)


def test_files_without_the_salient_side_mean_the_rule_of_their_time():
    method, document = find_method("microclip"), to_plain(MicroClipConfig())
    assert method.options_of_file(document) == MicroClipConfig()
    assert method.options_of_file({**document, "salient_side": "mean-like"}).salient_side == "mean-like"
    del document["salient_side"]
    assert method.options_of_file(document) == MicroClipConfig(salient_side="as-solved")
    config = to_json(make_config("adapt", "photos", "microclip", {}))
    assert from_json(config, "config.json").method_options == MicroClipConfig()
    del config["method_options"]["salient_side"]
    assert from_json(config, "config.json").method_options == MicroClipConfig(salient_side="as-solved")


def test_a_saved_model_without_the_salient_side_predicts_by_the_rule_of_its_time(tiny_resnet, tmp_path):
    model = fit_toy(tiny_resnet, "microclip", pictures(2), options=quick(epochs=1))[1].model
    views = make_batch().weak
    tokens = torch.rand(6, 49, model.engine.backbone.width, generator=torch.Generator().manual_seed(1))
    save_model(tmp_path, model)
    new = load_model(tmp_path)
    assert torch.equal(new.task._cut(tokens).mask, ncut_saliency(tokens, side="mean-like").mask)
    assert torch.equal(new.logits(views)["logits"], model.logits(views)["logits"])
    path = tmp_path / "model.json"
    document = json.loads(path.read_text())
    del document["method_options"]["salient_side"]
    path.write_text(json.dumps(document))
    old = load_model(tmp_path)
    assert torch.equal(old.task._cut(tokens).mask, ncut_saliency(tokens, side="as-solved").mask)


# One test at least compares each value with the default; this list fails when an option gets a value that no test knows.
COMPARED = {
    "marginal": {"uniform", "prior", "none"},
    "prior_views": {"fresh", "cached"},
    "branches": {"fused", "global"},
    "teacher": {"aggregated", "head", "multi-view", "multi-view-fixed"},
    "pooling": {"soap", "saliency-mean", "token-mean"},
    "query": {"saliency", "token-mean", "cls", "random-token"},
    "empty_token": {"zero", "learnable"},
    "head_init": {"descriptions", "templates"},
}
VALUES = [
    *((option, value) for option, values in COMPARED.items() for value in sorted(values)),
    *[
        ("gamma", 0.0),
        ("fusion", 0.2),
        ("crops", 3),
        ("ce_weight", 0.5),
        ("marginal_weight", 0.5),
        ("train_head", False),
        ("projection_lr_scale", 0.5),
        ("salient_side", "mean-like"),
        ("released_code", True),
    ],
]


def test_every_option_and_value_is_compared():
    hints = get_type_hints(MicroClipConfig)
    assert {name: set(get_args(hint)) for name, hint in hints.items() if get_origin(hint) is Literal} == COMPARED
    assert {option for option, _ in VALUES} == {field.name for field in dataclasses.fields(MicroClipConfig)}


@pytest.fixture(scope="module")
def default_head(tiny_vit):
    return two_epochs(tiny_vit)


def two_epochs(folder, **options) -> dict[str, Tensor]:
    """All that two epochs of two steps learn."""
    task = make_task(folder, **options)
    tokens = weak_tokens(task)
    task.prepare(TargetFeatures(tokens.global_, tokens.cls, first_views=lambda plan: iter([make_batch(plan.crops)])))
    optimizer = build_optimizer(task, 1e-3)
    for epoch in range(2):
        for step in range(2):
            optimizer.zero_grad()
            task.step(make_batch(task.views.crops), epoch, step).loss.backward()
            optimizer.step()
        task.end_epoch(epoch)
    return {name: p.detach().clone() for name, p in [*task.tuned.items(), *task.named_parameters()]}


@pytest.mark.parametrize(("option", "value"), VALUES)
def test_option_changes_what_is_learned(tiny_vit, default_head, option, value):
    learned = two_epochs(tiny_vit, **{option: value})
    same = learned.keys() == default_head.keys() and all(torch.equal(learned[name], default_head[name]) for name in learned)
    assert same == (getattr(MicroClipConfig(), option) == value)


@pytest.mark.parametrize("option", [{"gamma": 1.5}, {"fusion": -0.1}, {"crops": 0}, {"ce_weight": -1.0}, {"marginal_weight": -1.0}])
def test_impossible_options(option):
    with pytest.raises(UserError, match=rf"method\.{next(iter(option))} must"):
        MicroClipConfig(**option)


# What is trained.


@pytest.mark.parametrize("classes", [10, 102])
def test_trained_parameters_of_a_real_vit_b_32(classes):
    config = ViTConfig(image_size=224, patch_size=32, width=768, layers=12, heads=12, output_dim=512)
    with torch.device("meta"):
        backbone = OpenClipBackbone(
            "ViT-B-32",
            Preprocess(224, 224, (0.5,) * 3, (0.5,) * 3),
            VisionTransformer(config),
            None,
            logit_scale=100.0,
            logit_bias=0.0,
            context_length=77,
        )
        heads = ClassHeads(*(torch.empty(classes, 512) for _ in range(3)))
        task = MicroClip(Engine(backbone, torch.device("meta"), FLOAT32), heads, MicroClipConfig())
    sizes = {name: p.numel() for name, p in trained(task).items()}
    assert sum(sizes.values()) == 1_809_408 + 512 * classes
    assert classes != 102 or sum(sizes.values()) == 1_861_632
    assert sum(n for name, n in sizes.items() if "ln_" in name) == 39_936
    assert sum(n for name, n in sizes.items() if name.startswith("soap")) == 1_769_472


def test_norms_are_not_decayed_and_matrices_are(tiny_vit):
    for group in make_task(tiny_vit).parameter_groups():
        assert {p.ndim for _, p in group["params"]} == ({1} if group["weight_decay"] == 0 else {2})


def test_frozen_head_never_changes(backbone):
    prepared, fitted, _ = fit_toy(backbone, "microclip", pictures(), options=quick(lr=1e-2))
    assert torch.equal(fitted.model.task.frozen_head, prepared.heads.weighted)
    assert not torch.equal(fitted.model.task.head, prepared.heads.descriptions)


def test_zero_images_of_a_batch_train_without_nan(tiny_vit):
    task, batch = make_task(tiny_vit), make_batch()
    black = Batch(batch.index, *(torch.zeros_like(view) for view in (batch.weak, batch.strong, batch.crops)))
    output = task.step(black, 0, 0)
    output.loss.backward()
    assert torch.isfinite(output.loss)
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in trained(task).values())


# Pseudo-labels, losses, prior.


def test_composite_weights_crops_by_likeness():
    crops, reference = unit_rows(2, 5, 16), unit_rows(2, 16, seed=3)
    composite, relevance = multi_view_feature(crops, reference)
    by_hand = sum(math.exp(r) * crop for r, crop in zip(relevance[1].tolist(), crops[1], strict=True))
    torch.testing.assert_close(composite[1], F.normalize(by_hand, dim=0), atol=1e-6, rtol=0)
    torch.testing.assert_close(relevance[1], crops[1] @ reference[1])


def test_gradient_equals_finite_differences(tiny_vit):
    task = make_task(tiny_vit, torch.float64, empty_token="learnable")
    tokens = weak_tokens(task)
    assert tokens.patches.dtype is torch.float64
    pseudo = task.pseudo_logits(task.features(tokens), composite(task))
    parameters = {"head": task.head, **dict(task.soap.named_parameters())}

    def loss() -> Tensor:
        return task.loss(task.features(tokens), pseudo, first=True)[0]

    for parameter in parameters.values():
        parameter.requires_grad_(True)
    gradients = torch.autograd.grad(loss(), list(parameters.values()))
    for (name, parameter), gradient in zip(parameters.items(), gradients, strict=True):
        assert gradient.abs().max() > 0, name
        for seed in range(3):
            direction = unit_rows(parameter.numel(), seed=seed, dtype=torch.float64).view_as(parameter)
            step = 1e-5
            with torch.no_grad():
                parameter += step * direction
                above = loss()
                parameter -= 2 * step * direction
                below = loss()
                parameter += step * direction
            slope = (above - below).item() / (2 * step)
            assert slope == pytest.approx((gradient * direction).sum().item(), rel=1e-5, abs=1e-9), name


def test_step_uses_the_weak_view_as_teacher_and_the_strong_view_as_pupil(tiny_vit, monkeypatch):
    task, batch, seen = make_task(tiny_vit), make_batch(), []
    frozen, graded = task.engine.encode_frozen, task.engine.encode
    monkeypatch.setattr(task.engine, "encode_frozen", lambda images, **given: seen.append(("frozen", images)) or frozen(images, **given))
    monkeypatch.setattr(task.engine, "encode", lambda images, **given: seen.append(("graded", images)) or graded(images, **given))
    output = task.step(batch, 0, 0)
    assert [kind for kind, _ in seen] == ["frozen", "frozen", "graded"]
    assert torch.equal(seen[0][1], batch.weak)
    assert torch.equal(seen[1][1], batch.crops.flatten(0, 1))
    assert torch.equal(seen[2][1], batch.strong)
    assert output.log.keys() >= {"ce", "marginal", "agreement", "saliency_share", "edge_density", "ncut_fallback"}


def test_the_weak_view_is_cut_beside_the_crops_and_the_step_stays_the_same(tiny_vit, monkeypatch):
    where, cut = [], task_module.ncut_saliency

    def recorded(patches, **given):
        where.append(threading.current_thread().name.split("_")[0])
        return cut(patches, **given)

    monkeypatch.setattr(task_module, "ncut_saliency", recorded)
    beside, after = make_task(tiny_vit), make_task(tiny_vit)
    monkeypatch.setattr(after, "_cut_ahead", lambda tokens, batch: nullcontext())
    ours, plain = (task.step(make_batch(), 0, 0) for task in (beside, after))
    main = threading.current_thread().name
    assert where == ["finelens-prefetch", main, main, main]
    assert torch.equal(ours.loss, plain.loss)
    assert ours.log == plain.log
    assert beside.engine.stopwatch.seconds["eigen"] > 0


def test_a_cut_that_fails_beside_the_crops_fails_the_step(tiny_vit, monkeypatch):
    def fails(patches, **given):
        raise RuntimeError("the cut failed")

    monkeypatch.setattr(task_module, "ncut_saliency", fails)
    with pytest.raises(RuntimeError, match="the cut failed"):
        make_task(tiny_vit).step(make_batch(), 0, 0)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("finelens-prefetch")]


def test_labels_come_from_no_gradient(tiny_vit, monkeypatch):
    """The pseudo-label must not carry gradient even when the tower's parameters ask for it."""
    task = make_task(tiny_vit)
    build_optimizer(task, 1e-3)
    kept = []
    original = task_module.MicroClip.pseudo_logits
    monkeypatch.setattr(task_module.MicroClip, "pseudo_logits", lambda *given: kept.append(original(*given)) or kept[-1])
    task.step(make_batch(), 0, 0)
    assert not kept[0].requires_grad

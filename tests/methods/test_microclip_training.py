"""How microCLIP trains: loss, prior, what is trained and what never moves, which view is teacher and which is pupil."""

from __future__ import annotations

import threading
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from finelens.backbones.open_clip_loader import OpenClipBackbone
from finelens.backbones.vit import VisionTransformer, ViTConfig
from finelens.classes.heads import ClassHeads
from finelens.engine.engine import Engine
from finelens.methods.microclip import task as task_module
from finelens.methods.microclip.config import MicroClipConfig
from finelens.methods.microclip.task import MicroClip
from finelens.protocol import Batch, Preprocess, TargetFeatures
from finelens.solvers.prior import estimate_prior
from finelens.training.schedule import build_optimizer
from tests.methods.microclip_world import FLOAT32, C, composite, make_batch, make_task, take_steps, trained, weak_tokens
from tests.methods.tiny import unit_rows
from tests.toy import fit_toy, pictures, quick


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

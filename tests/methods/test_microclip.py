"""microCLIP: its branches, and every option; what each one is compared with is written out, not taken from the task."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Literal, get_args, get_origin, get_type_hints

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from finelens.core.options import to_plain
from finelens.errors import UserError
from finelens.methods.microclip.config import MicroClipConfig
from finelens.methods.microclip.ncut import ncut_saliency
from finelens.methods.microclip.pseudo_labels import multi_view_feature
from finelens.methods.microclip.task import MicroClip
from finelens.methods.registry import find_method
from finelens.protocol import TargetFeatures
from finelens.runs.config import from_json, to_json
from finelens.runs.model import load_model, save_model
from finelens.runs.resolve import make_config
from finelens.training.schedule import build_optimizer
from tests.methods.microclip_world import composite, crop_features, make_batch, make_heads, make_task, take_steps, trained, weak_tokens
from tests.methods.tiny import unit_rows
from tests.toy import fit_toy, pictures, quick


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


def test_composite_weights_crops_by_likeness():
    crops, reference = unit_rows(2, 5, 16), unit_rows(2, 16, seed=3)
    composite, relevance = multi_view_feature(crops, reference)
    by_hand = sum(math.exp(r) * crop for r, crop in zip(relevance[1].tolist(), crops[1], strict=True))
    torch.testing.assert_close(composite[1], F.normalize(by_hand, dim=0), atol=1e-6, rtol=0)
    torch.testing.assert_close(relevance[1], crops[1] @ reference[1])

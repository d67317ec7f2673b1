"""microCLIP against the released code, group by group, through the public modules."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from finelens.backbones.open_clip_loader import OpenClipBackbone
from finelens.classes import heads as text_heads
from finelens.classes.heads import ClassHeads
from finelens.engine.device import Precision
from finelens.engine.engine import Engine
from finelens.methods.microclip import task as task_module
from finelens.methods.microclip.config import MicroClipConfig
from finelens.methods.microclip.ncut import Saliency, ncut_saliency, released_sign_rule
from finelens.methods.microclip.pseudo_labels import multi_view_feature
from finelens.methods.microclip.soap import Soap, masked_mean
from finelens.methods.microclip.task import MicroClip
from finelens.protocol import Batch
from finelens.training.schedule import build_optimizer, cosine_lr, set_lr

pytestmark = pytest.mark.golden

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
PROJECTIONS = {"W_q": "query", "W_k": "key", "W_v": "value"}


def assert_close(actual: Tensor, expected: Tensor, atol: float) -> None:
    torch.testing.assert_close(actual, expected, atol=atol, rtol=0)


def sketches(tensor: Tensor, r: Tensor) -> dict[str, Tensor]:
    x, r = tensor.detach().double(), r.double()
    return {"frob": x.norm()[None], "slice_0_8": x[:8, :8], "slice_300": x[300:304, 500:504], "matR": x @ r, "matTR": x.T @ r}


@pytest.fixture
def backbone(golden) -> OpenClipBackbone:
    entry = dict(golden.group("model")["config"])
    del entry["grid"], entry["n_patches"]
    preprocess = {"image_size": 80, "resize_size": 80, "mean": MEAN, "std": STD, "interpolation": "bicubic", "resize_mode": "shortest"}
    saved = {"kind": "open_clip_vit", "name": "golden", "tower": entry, "preprocess": preprocess}
    visual = {name: tensor for name, tensor in golden.model().items() if name.startswith("visual.")}
    return OpenClipBackbone.image_only({**saved, "logit_scale": 100.0, "logit_bias": 0.0, "context_length": 77}, visual)


@pytest.fixture
def stored_heads(golden) -> ClassHeads:
    g = golden.tensors("05_heads")
    return ClassHeads(templates=g["classname_embeddings"], descriptions=g["head_init_param"], weighted=g["W_LLM"])


def make_task(backbone: OpenClipBackbone, golden, dtype: torch.dtype = torch.float32, **options) -> MicroClip:
    g = golden.tensors("05_heads")
    weighted = text_heads.weighted_description_head(g["all_desc_embeddings"].to(dtype), g["all_desc_weights"].to(dtype))
    heads = ClassHeads(templates=g["classname_embeddings"].to(dtype), descriptions=g["head_init_param"].to(dtype), weighted=weighted)
    engine = Engine(backbone.to(dtype), torch.device("cpu"), Precision(torch.float32, "test"))
    task = MicroClip(engine, heads, MicroClipConfig(crops=4, released_code=True, **options))
    task.to(dtype)
    return task


def set_projections(task: MicroClip, golden) -> None:
    model = golden.model()
    assert task.soap is not None
    with torch.no_grad():
        for stored, own in PROJECTIONS.items():
            getattr(task.soap, own).copy_(model[f"soap_{stored}"])


def supply_masks(monkeypatch, *masks: Tensor) -> None:
    queue = [mask.flatten(1) for mask in masks]

    def supplied(tokens: Tensor, *, side: str, released_code: bool) -> Saliency:
        mask = queue.pop(0)
        return Saliency(mask, mask.double(), torch.zeros(len(mask), dtype=torch.bool), torch.zeros(len(mask)))

    monkeypatch.setattr(task_module, "ncut_saliency", supplied)


def make_batch(views: Tensor) -> Batch:
    return Batch(index=torch.arange(len(views)), weak=views[:, 0], strong=views[:, 1], crops=views[:, 2:])


# 02


NCUT_CASES = [f"{kind}_N{n}" for kind in ("random", "two_noisy") for n in (9, 25, 49, 196)] + ["two_clean", "two_clean_nobite", "from_model"]


@pytest.mark.parametrize("case", NCUT_CASES)
def test_ncut_released_rule(golden, case):
    g = {k.removeprefix(f"{case}."): v for k, v in golden.tensors("02_ncut").items() if k.startswith(f"{case}.")}
    tokens = g["v"] if "v" in g else golden.tensors("01_encoder")["v"]
    mask, _ = released_sign_rule(g["z_raw"])
    assert torch.equal(mask, g["mask"].flatten(1))
    ours = ncut_saliency(tokens, released_code=True)
    n = tokens.shape[1]
    assert_close(ours.density.float(), g["density"], atol=2 / n**2 + 1e-7 if case == "random_N196" or case == "two_noisy_N196" else 1e-7)
    positive, negative = g["mask_if_seed_positive"], g["mask_if_seed_negative"]
    assert ((ours.mask == positive).all(1) | (ours.mask == negative).all(1)).all()
    if case.startswith("two_clean"):
        return  # the second eigenvalue is 1e-6: float32 z mixes with the null vector
    cosine = F.cosine_similarity(ours.vector, g["z"].double(), dim=1).abs()
    values = g["lambda_f64"]
    separated = torch.minimum(values[:, 2] - values[:, 1], values[:, 1] - values[:, 0]) > 0.02
    assert (cosine[separated] > 1 - 1e-4).all()
    assert (cosine > 1 - 1e-3).all()


def test_ncut_complete_graph_falls_back_to_all_tokens():
    tokens = torch.ones(2, 9, 4) + 0.01 * torch.randn(2, 9, 4, generator=torch.Generator().manual_seed(0))
    result = ncut_saliency(tokens)
    assert result.fallback.all()
    assert result.mask.all()
    assert (result.density == 1).all()


# 03


@pytest.mark.parametrize("case", ["identity", "random"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_soap(golden, backbone, case, dtype):
    g = golden.tensors("03_soap")
    soap, backbone = Soap(768).to(dtype), backbone.to(dtype)
    if case == "random":
        with torch.no_grad():
            for stored, own in PROJECTIONS.items():
                getattr(soap, own).copy_(golden.model()[f"soap_{stored}"])
    q, v = g["q"].to(dtype).requires_grad_(), g["v"].to(dtype).requires_grad_()
    pooled, attention = soap(q, v)
    fine = F.normalize(backbone.project(pooled), dim=-1)
    suffix, atol = ("", 2e-6) if dtype is torch.float32 else ("_f64", 1e-10)
    assert_close(attention, g[f"{case}.a{suffix}"], atol)
    assert_close(fine, g[f"{case}.f_fg{suffix}"], atol)
    if dtype is torch.float64:
        return
    (fine * g["g_out"]).sum().backward()
    for name, tensor in (("q", q), ("v", v)):
        expected = g[f"{case}.grad_{name}"]
        assert_close(tensor.grad, expected, 1e-4 * expected.abs().max().item())
    for stored, own in PROJECTIONS.items():
        for key, value in sketches(getattr(soap, own).grad, g["R"]).items():
            expected = g[f"{case}.grad_{stored}.{key}"]
            assert_close(value, expected, 1e-4 * expected.abs().max().item() + 1e-12)


def test_soap_masked_soft_and_learnable_empty_token(golden, backbone):
    g = golden.tensors("03_soap")
    soap = Soap(768, learnable_empty=True)
    pooled, attention = soap(g["q"], g["v"] * g["mask"][..., None])
    assert_close(attention, g["identity.masked_tokens.a"], 2e-6)
    assert_close(F.normalize(backbone.project(pooled), dim=-1), g["identity.masked_tokens.f_fg"], 2e-6)
    with torch.no_grad():
        for stored, own in PROJECTIONS.items():
            getattr(soap, own).copy_(golden.model()[f"soap_{stored}"])
    for case, token in (("soft", torch.zeros(1, 768)), ("unr", g["unr.token"])):
        with torch.no_grad():
            soap.empty.copy_(token)
        pooled, attention = soap(g["soft.q"], g["soft.v"])
        assert_close(attention, g[f"{case}.a"], 2e-6)
        assert_close(F.normalize(backbone.project(pooled), dim=-1), g[f"{case}.f_fg"], 2e-6)


def test_query_is_the_mean_of_salient_patches_and_zero_for_an_empty_mask():
    patches = torch.arange(12.0).view(1, 4, 3)
    assert torch.equal(masked_mean(patches, torch.tensor([[True, False, True, False]])), patches[:, [0, 2]].mean(1))
    assert torch.equal(masked_mean(patches, torch.zeros(1, 4, dtype=torch.bool)), torch.zeros(1, 3))


# 04


@pytest.mark.parametrize("prefix", ["", "model_"])
def test_composite(golden, prefix):
    g = golden.tensors("04_composite")
    composite, relevance = multi_view_feature(g[f"{prefix}f_crops"], g[f"{prefix}f_cls"])
    assert_close(relevance, g[f"{prefix}s"], 2e-6)
    assert_close(composite, g[f"{prefix}f_mv"], 2e-6)


# 05


def test_heads(golden):
    g = golden.tensors("05_heads")
    names = text_heads.template_head(g["raw_prompt_emb"], norm="frobenius")
    assert_close(names, g["classname_embeddings"], 1e-6)
    features = list(g["raw_desc_emb"].split(g["desc_counts"].tolist()))
    padded = text_heads.pad_descriptions(features)
    weights = text_heads.description_weights(padded, names)
    assert_close(padded, g["all_desc_embeddings"], 1e-6)
    assert_close(weights, g["all_desc_weights"], 1e-6)
    assert_close(text_heads.weighted_description_head(padded, weights), g["W_LLM"], 1e-6)
    assert_close(text_heads.mean_description_head(features), g["head_init"], 1e-6)
    assert_close(F.normalize(names, dim=-1), g["hand_head_init"], 1e-6)
    single = text_heads.template_head(g["raw_single_emb"][:, None])
    assert_close(single, g["single_classname_embeddings"], 1e-6)
    single_weights = text_heads.description_weights(padded, single)
    assert_close(single_weights, g["single_all_desc_weights"], 1e-6)
    assert_close(text_heads.weighted_description_head(padded, single_weights), g["single_W_LLM"], 1e-6)


# 06


@pytest.mark.parametrize("projections", ["identity", "randomW"])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 0.8, 1.0])
def test_pseudo_labels(golden, backbone, monkeypatch, projections, gamma):
    g = golden.tensors("06_pseudo")
    task = make_task(backbone, golden, gamma=gamma)
    if projections == "randomW":
        set_projections(task, golden)
    supply_masks(monkeypatch, g["mask_weak"], g["mask_strong"])
    batch = make_batch(g["batch_u8"])
    with torch.no_grad():
        weak = task.features(task.engine.encode_frozen(batch.weak, patches=True))
        crops = task.engine.encode_frozen(batch.crops.flatten(0, 1)).global_.unflatten(0, batch.crops.shape[:2])
        strong = task.features(task.engine.encode_frozen(batch.strong, patches=True))
        pseudo = task.pseudo_logits(weak, multi_view_feature(crops, weak.global_)[0])
        logits = task.branch_logits(strong)["logits"]
    assert_close(weak.attention, g[f"{projections}.a"], 2e-6)
    assert_close(weak.fine, g[f"{projections}.f_fg"], 2e-6)
    assert_close(pseudo, g[f"{projections}.gamma{gamma}.pseudo_logits"], 2e-6)
    assert torch.equal(pseudo.argmax(1), g[f"{projections}.gamma{gamma}.y_hat"])
    assert_close(logits, g[f"{projections}.strong.logits"], 2e-4)
    loss, _ = task.loss(strong, pseudo, first=True)
    expected = golden.group("06_pseudo")["cases"][f"{projections}.gamma{gamma}"]["loss"][0]
    assert loss.item() == pytest.approx(expected, rel=1e-5)


# 07 and 08: three steps with the released optimiser


def run_steps(task: MicroClip, golden, dtype: torch.dtype):
    """Yields (step, loss, task) before each update; masks must have been supplied or recomputed by the task."""
    g = golden.tensors("07_losses")
    optimizer = build_optimizer(task, 1e-4)
    for step in range(3):
        lr = cosine_lr(step, 45, 1e-4, 2e-6)
        assert lr == pytest.approx(g["lr_schedule"][step].item(), rel=1e-12)
        set_lr(optimizer, lr)
        optimizer.zero_grad()
        output = task.step(make_batch(g[f"batch{step}_u8"]), 0, step)
        output.loss.backward()
        yield step, output
        optimizer.step()


def stored_masks(golden) -> list[Tensor]:
    g = golden.tensors("07_losses")
    return [g[f"step{step}.mask_{view}"] for step in range(3) for view in ("weak", "strong")]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_trajectory_of_losses(golden, backbone, monkeypatch, dtype):
    double = dtype is torch.float64
    g = golden.tensors("07_losses_f64" if double else "07_losses")
    task = make_task(backbone, golden, dtype)
    supply_masks(monkeypatch, *stored_masks(golden))
    for step, output in run_steps(task, golden, dtype):
        rel = (1e-9, 1e-7, 1e-7)[step] if double else (1e-5, 1e-4, 1e-4)[step]
        assert output.loss.item() == pytest.approx(g["loss"][step].item(), rel=rel)
        assert output.log["ce"].item() == pytest.approx(g[f"step{step}.ce"].item(), rel=rel)
        assert output.log["marginal"].item() == pytest.approx(g[f"step{step}.loss_fair"].item(), rel=rel)
        atol = (1e-9, 1e-7, 1e-7)[step] if double else (1e-6, 1e-5, 1e-5)[step]
        assert_close(task.log_marginal.exp(), g[f"step{step}.pbar"], atol)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_trajectory_of_gradients_and_parameters(golden, backbone, monkeypatch, dtype):
    double = dtype is torch.float64
    g = golden.tensors("08_grads_params_f64" if double else "08_grads_params")
    task = make_task(backbone, golden, dtype)
    assert task.soap is not None
    supply_masks(monkeypatch, *stored_masks(golden))
    named = {"head": task.head, **task.tuned}
    projections = {stored: getattr(task.soap, own) for stored, own in PROJECTIONS.items()}
    total = sum(p.numel() for group in task.parameter_groups() for _, p in group["params"])
    assert total == golden.group("model")["n_trainable"]
    for step, _ in run_steps(task, golden, dtype):
        if double and step > 0:
            continue
        rel = 1e-8 if double else (1e-4, 1e-3, 1e-3)[step]
        for name, parameter in named.items():
            expected = g[f"step{step}.grad.{name}"]
            assert_close(parameter.grad, expected, rel * expected.abs().max().item())
        for stored, parameter in projections.items():
            for key, value in sketches(parameter.grad, g["R"]).items():
                expected = g[f"step{step}.grad.{stored}.{key}"]
                assert_close(value, expected, rel * expected.abs().max().item() + 1e-12)
    for name, parameter in named.items():
        difference = (parameter.detach() - g[f"final.param.{name}"]).abs()
        if double:
            assert (difference < 1e-8).double().mean() > 0.998
        else:
            assert difference.max() < 3e-6
    for stored, parameter in projections.items():
        delta = sketches(parameter.detach() - torch.eye(768, dtype=dtype), g["R"])
        for key in ("matR", "matTR"):
            assert_close(delta[key], g[f"final.delta.{stored}.{key}"], 1e-6 if double else 1e-3)


ABLATIONS = {
    "token_avg_query": {"query": "token-mean"},
    "cls_query": {"query": "cls"},
    "ncut_token_avg": {"pooling": "saliency-mean"},
    "baseline": {"branches": "global", "teacher": "head"},
    "wca_baseline": {"branches": "global", "teacher": "multi-view"},
    "wca_baseline_fixed": {"branches": "global", "teacher": "multi-view-fixed"},
    "gamma0.8": {"gamma": 0.8},
    "unr_token": {"empty_token": "learnable"},
}


@pytest.mark.parametrize("case", ABLATIONS)
def test_ablations(golden, backbone, monkeypatch, case):
    g = golden.tensors("08b_ablations_f64")
    task = make_task(backbone, golden, torch.float64, **ABLATIONS[case])
    supply_masks(monkeypatch, *stored_masks(golden))
    losses, labels = [], []
    original = task.pseudo_logits

    def recording(*args):
        pseudo = original(*args)
        labels.append(pseudo.argmax(1))
        return pseudo

    monkeypatch.setattr(task, "pseudo_logits", recording)
    losses = [output.loss.item() for _, output in run_steps(task, golden, torch.float64)]
    assert losses == pytest.approx(g[f"{case}.loss"].tolist(), rel=1e-8)
    assert torch.equal(torch.cat(labels), g[f"{case}.y_hat"])
    assert_close(task.head.detach(), g[f"{case}.head_final"], 1e-7)
    assert_close(task.tuned["visual.ln_post.weight"].detach(), g[f"{case}.ln_post_weight_final"], 1e-7)
    if case == "unr_token":
        assert task.soap is not None
        assert_close(task.soap.empty.detach(), g["unr_token.unr_token_final"], 1e-7)


# 09


@pytest.mark.parametrize("case", ["identity", "randomW", "randomW_f64"])
def test_evaluation(golden, backbone, monkeypatch, case):
    g = golden.tensors("09_eval")
    dtype = torch.float64 if case.endswith("f64") else torch.float32
    task = make_task(backbone, golden, dtype)
    if case != "identity":
        set_projections(task, golden)
    mask, logits = g[f"{case}.mask"], []
    supply_masks(monkeypatch, mask[:5], mask[5:])
    for images in g["images_u8"].split([5, 3]):
        logits.append(task.predict_logits(images)["logits"])
    logits = torch.cat(logits)
    assert_close(logits, g[f"{case}.logits"], 1e-8 if dtype is torch.float64 else 3e-4)
    assert torch.equal(logits.argmax(1), g[f"{case}.pred"])


def test_masks_of_our_solver_are_the_stored_ones_up_to_the_solver_sign(golden, backbone):
    g = golden.tensors("09_eval")
    with torch.no_grad():
        patches = backbone.encode_image(backbone.normalise(g["images_u8"]), patches=True).patches
    ours = ncut_saliency(patches, released_code=True)
    vector = ours.vector * (ours.vector * g["identity.z_raw"]).sum(1, keepdim=True).sign()
    mask, _ = released_sign_rule(vector)
    assert torch.equal(mask, g["identity.mask"].flatten(1))


def test_schedule_is_monotone():
    rates = [cosine_lr(step, 45, 1e-4, 2e-6) for step in range(45)]
    assert rates[0] == pytest.approx(1e-4)
    assert all(a > b for a, b in pairwise(rates))

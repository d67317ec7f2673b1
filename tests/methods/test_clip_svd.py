"""CLIP-SVD: what learns, from where it starts, and what is left of it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from finelens.backbones.embedded import EmbeddedBackbone
from finelens.backbones.registry import load_backbone
from finelens.classes.heads import build_heads
from finelens.engine.engine import Engine
from finelens.errors import UserError
from finelens.methods.clip_svd import ClipSvd, ClipSvdConfig
from finelens.methods.registry import find_method
from finelens.protocol import ClassSet, Hints, TargetFeatures
from finelens.runs.resolve import make_config
from tests.methods.tiny import FLOAT32, random_batch, step_gradient, tiny_engine, train_steps, unit_rows, without_texts
from tests.toy import CLASSES, fit_toy, pictures, prepare_toy, quick

NAMES = ("cat", "a very long-haired dog", "red_panda")
CLASS_SET = ClassSet(NAMES, ("a photo of a {}.",), ((),) * 3)
LABELS = torch.tensor([2, 0, 1, 1])


def make(engine: Engine, config: ClipSvdConfig | None = None) -> ClipSvd:
    heads = build_heads(engine.backbone, CLASS_SET)
    dtype = next(engine.backbone.parameters()).dtype
    heads = replace(heads, templates=heads.templates.to(dtype), descriptions=heads.descriptions.to(dtype))
    task = ClipSvd(engine, heads, config or ClipSvdConfig())
    task.prepare(TargetFeatures(unit_rows(4, 48), torch.zeros(4, 64), Hints(torch.arange(4), LABELS)))
    return task


def learned(backbone, texts: bool) -> dict[str, torch.Tensor]:
    """Weights that a scope computes, by name of the module that owns them."""
    root = backbone.text if texts else backbone.visual
    return {
        f"{name}.{own}": getattr(module, own).detach().clone()
        for name, module in root.named_modules()
        for own in getattr(module, "parametrizations", ())
    }


def parts(name: str, weight: torch.Tensor) -> list[torch.Tensor]:
    """The matrices of a weight: a fused projection holds three."""
    fused = name.endswith(("in_proj_weight", "qkv.weight"))
    return list(weight.flatten(1).double().chunk(3 if fused else 1))


@pytest.mark.parametrize("tower", ["tiny_vit", "tiny_resnet"])
def test_nothing_but_singular_values_moves_in_both_towers(request, tower):
    engine = Engine(load_backbone(f"local:{request.getfixturevalue(tower)}"), torch.device("cpu"), FLOAT32)
    plain = {name: p.detach().clone() for name, p in engine.backbone.named_parameters()}
    task = make(engine)
    before = {texts: learned(engine.backbone, texts) for texts in (False, True)}
    losses = train_steps(task, random_batch(4, 0), 6, lr=1e-2)
    assert losses[-1] < losses[0]
    for texts in (False, True):
        after = learned(engine.backbone, texts)
        assert after.keys() == before[texts].keys()
        assert len(after) > 1
        moved = 0
        for name, weight in before[texts].items():
            for old, new in zip(parts(name, weight), parts(name, after[name]), strict=True):
                u, s, vt = torch.linalg.svd(old, full_matrices=False)
                inside = u.T @ new @ vt.T
                # The same singular vectors: the change is diagonal between them, and nothing of it lies elsewhere.
                off = inside - torch.diag(inside.diagonal())
                assert off.abs().max() < 1e-4 * s[0]
                assert (new - u @ inside @ vt).abs().max() < 1e-4 * s[0]
                moved += int((inside.diagonal() - s).abs().max() > 1e-3 * s[0])
        assert moved
    visual = {name for name in plain if name.startswith("visual.")}
    adapted = set(engine.backbone.adapted("svd"))
    engine.backbone.merge()
    now = dict(engine.backbone.named_parameters())
    assert now.keys() == plain.keys()
    # The image tower keeps what it has learnt, in its matrices only; the text tower is the one that was loaded, to the bit.
    assert {name for name in plain if not torch.equal(now[name], plain[name])} <= adapted <= visual
    assert not torch.equal(now[next(iter(adapted))], plain[next(iter(adapted))])


def test_training_starts_at_zero_shot_with_the_prompt(engine):
    task, batch = make(engine), random_batch(4, 0)
    with torch.no_grad():
        texts = task.text_features()
        loss = task.step(batch, 0, 0).loss
    expected = engine.backbone.encode_text([f"a photo of a {name.replace('_', ' ')}." for name in NAMES])
    torch.testing.assert_close(texts, expected, atol=2e-6, rtol=0)
    images = engine.encode_frozen(batch.weak).global_
    torch.testing.assert_close(loss, F.cross_entropy(engine.backbone.logit_scale * images @ expected.T, LABELS), atol=1e-4, rtol=1e-5)


def test_gradients_reach_a_singular_value_of_either_tower(folder):
    task = make(tiny_engine(folder, torch.float64))
    for named in (task.tuned, task.tuned_text):
        name = list(named)[-1]
        assert name.endswith(".shift")
        automatic, numeric = step_gradient(task, random_batch(4, 0), name, 0)
        assert automatic != 0
        assert automatic == pytest.approx(numeric, rel=1e-4, abs=1e-7)


@pytest.mark.parametrize("text", ["templates", "descriptions"])
def test_a_text_head_can_stay_as_it_is(engine, text):
    task = make(engine, ClipSvdConfig(text=text))
    before = task.prototypes.clone()
    assert not task.needs_text
    assert all(name.startswith("visual.") for group in task.parameter_groups() for name, _ in group["params"])
    train_steps(task, random_batch(4, 0), 1)
    task.end_epoch(0)
    assert torch.equal(task.prototypes, before)


def test_prompts_in_parts_give_the_same_gradient(folder):
    found = []
    for size in (64, 2):
        task = make(tiny_engine(folder), ClipSvdConfig(text_batch=size))
        for parameter in task.tuned_text.values():
            parameter.requires_grad_(True)
        (task.text_features() * unit_rows(3, 48, seed=4)).sum().backward()
        found.append(torch.cat([parameter.grad for parameter in task.tuned_text.values()]))
    torch.testing.assert_close(*found, atol=1e-6, rtol=1e-4)


def test_the_sentence_encoder_of_the_embedded_tower_learns_and_is_put_back():
    # Without its image weights, and with one of six layers: the rest only costs time here.
    backbone = EmbeddedBackbone(text=False)
    backbone.text_tower.model.encoder.layer = backbone.text_tower.model.encoder.layer[:1]
    encoder, texts = backbone.text_tower, ["a photo of a cat.", "a photo of a dog."]
    before, cached = encoder._encode(texts), encoder.encode(texts)
    ids = backbone.tokenize(texts)
    tuned = backbone.tunable_text("svd")
    assert all(name.startswith("text.encoder.layer.0.") for name in tuned)
    assert len(tuned) == 6
    with torch.no_grad():
        torch.testing.assert_close(backbone.encode_token_embeddings(backbone.embed_tokens(ids), ids), backbone._project_text(before))
        next(iter(tuned.values())).add_(1.0)
        moved = backbone.encode_token_embeddings(backbone.embed_tokens(ids), ids)
    # A text that is encoded meanwhile does not come from the cache, and does not get there.
    torch.testing.assert_close(backbone.encode_text(texts), moved)
    rounded = encoder.encode(texts, torch.bfloat16)
    torch.testing.assert_close(rounded, encoder.encode(texts), atol=3e-3, rtol=0)
    assert (rounded - before).abs().max() > 0.01
    assert (moved - backbone._project_text(before)).abs().max() > 1e-3
    backbone.merge()
    assert torch.equal(encoder._encode(texts), before)
    assert torch.equal(encoder.encode(texts), cached)


def test_only_labelled_images_are_visited_and_nothing_of_the_text_tower_is_kept(tiny_vit):
    prepared, fitted, _ = fit_toy(tiny_vit, "clip-svd", pictures(2), options=quick(epochs=1))
    assert prepared.task.subset().tolist() == [0, 1, 2, 3]
    assert set(fitted.model.task.prediction_state()) == {"prototypes"}
    assert prepared.engine.grad_forwards == 4


def test_defaults_are_those_of_the_paper_and_what_cannot_work_is_said(tiny_vit, engine):
    training = make_config("adapt", "(toy)", "clip-svd", {}, backbone="embedded", seed=0, device="cpu").training
    assert (training.lr, training.weight_decay, training.min_lr, training.batch_size, training.scope) == (5e-4, 0.01, 1e-6, 32, "svd")
    _, prepared = prepare_toy(tiny_vit, "clip-svd")
    none = TargetFeatures(unit_rows(4, 48), torch.zeros(4, 64), Hints(torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64)))
    with pytest.raises(UserError, match="no image belongs to a class"):
        prepared.task.prepare(none)
    with pytest.raises(UserError, match=r"method\.template.*exactly once"):
        ClipSvdConfig(template="a photo")
    heads = build_heads(engine.backbone, CLASS_SET)
    engine.backbone.release_text()
    with pytest.raises(UserError, match=r"method\.text=templates"):
        ClipSvd(engine, heads, ClipSvdConfig())
    assert not ClipSvd(engine, without_texts(heads), ClipSvdConfig()).tuned_text
    assert find_method("clip-svd").few_shot
    assert len(CLASSES) == len(prepared.task.prototypes)

"""The stage clip-refine: its losses against formulas and differences, and what learns."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from finelens.backbones.registry import load_backbone
from finelens.core.options import from_mapping
from finelens.engine.engine import Engine
from finelens.errors import UserError
from finelens.images.store import load_images
from finelens.training import refine as module
from finelens.training.refine import Gap, Pairs, encode_pairs, hybrid_distillation, random_feature_alignment, references, refine, soft_targets
from finelens.training.stage_config import StageConfig
from tests.methods.tiny import FLOAT32, unit_rows
from tests.toy import CLASSES, QUIET, pictures


def logits(seed: int) -> torch.Tensor:
    return 3 * torch.randn(4, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_pairs_alone_are_the_contrastive_loss():
    own, match = logits(0), torch.eye(4, dtype=torch.bool)
    expected = (F.cross_entropy(own, torch.arange(4)) + F.cross_entropy(own.T, torch.arange(4))) / 2
    torch.testing.assert_close(hybrid_distillation(own, logits(1), match, 1.0), expected)


def test_the_teacher_alone_costs_nothing_where_the_student_answers_like_it():
    own, match = logits(0), torch.eye(4, dtype=torch.bool)
    assert abs(hybrid_distillation(own, own, match, 0.0).item()) < 1e-12
    assert hybrid_distillation(logits(1), own, match, 0.0) > 0.1


def test_targets_are_half_the_pairs_and_half_the_teacher():
    theirs = torch.tensor([[2.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, 1.0, 0.0]])
    match = torch.tensor([[True, False, False], [False, True, True], [False, True, True]])
    expected = 0.5 * torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.5, 0.5], [0.0, 0.5, 0.5]]) + 0.5 * theirs.softmax(1)
    torch.testing.assert_close(soft_targets(theirs, match, 0.5), expected)


def test_alignment_is_the_mean_square_to_one_reference():
    images, texts, reference = (torch.tensor([row]) for row in ([1.0, 0.0], [0.0, 1.0], [3.0, 1.0]))
    assert random_feature_alignment(images, texts, reference).item() == pytest.approx((4 + 1) / 2 + (9 + 0) / 2)


def test_gradients_are_the_differences_of_the_loss():
    images, texts = (unit_rows(3, 5, seed=seed).double().requires_grad_() for seed in (0, 1))
    reference, match = references(["a", "b", "c"], 5, 0, 0).double(), torch.eye(3, dtype=torch.bool)
    theirs = logits(2)[:3, :3]

    def loss(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return hybrid_distillation(4 * x @ y.T, theirs, match, 0.5) + 0.7 * random_feature_alignment(x, y, reference)

    assert torch.autograd.gradcheck(loss, (images, texts))


def test_references_are_standard_normal_and_a_function_of_the_pair():
    drawn = references([str(i) for i in range(200)], 50, 3, 0)
    assert abs(drawn.mean().item()) < 0.03
    assert abs(drawn.std().item() - 1) < 0.03
    assert torch.equal(references(["7", "3"], 50, 3, 0), drawn[[7, 3]])
    assert not torch.equal(references(["7"], 50, 3, 1), drawn[[7]])
    assert not torch.equal(references(["7"], 50, 4, 0), drawn[[7]])


def test_the_gap_is_between_means_and_within_pairs():
    images, texts = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    found = Gap.of(images, texts)
    assert (found.gap, found.pair_distance) == pytest.approx((0.0, 2**0.5))


@pytest.fixture
def engine(tiny_vit) -> Engine:
    return Engine(load_backbone(f"local:{tiny_vit}"), torch.device("cpu"), FLOAT32)


def pairs() -> Pairs:
    store = load_images(pictures(2)).store
    return Pairs(store, np.arange(len(store)), tuple(f"a photo of a {CLASSES[i % 4]}" for i in range(len(store))), torch.arange(len(store)) % 4)


def run(engine: Engine, **options) -> module.Refined:
    config = StageConfig(name="clip-refine", batch_size=4, **options)
    made = pairs()
    return refine(engine, made, encode_pairs(engine, made, QUIET), config, 0, QUIET)


def weights(engine: Engine) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in engine.backbone.image_state().items()}


def test_no_rate_leaves_every_bit(engine):
    texts = [f"a photo of a {name}" for name in CLASSES]
    before, prompts = weights(engine), engine.backbone.encode_text(texts)
    found = run(engine, lr=0.0)
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights(engine).items())
    assert torch.equal(engine.backbone.encode_text(texts), prompts)
    assert found.before == found.after
    assert found.steps == 2
    assert found.text_trained
    assert not any(p.requires_grad for p in engine.backbone.parameters())


def test_both_towers_learn_and_pairs_come_nearer(engine):
    texts = [f"a photo of a {name}" for name in CLASSES]
    before, prompts = weights(engine), engine.backbone.encode_text(texts)
    found = run(engine, lr=1e-3, epochs=8)
    assert any(not torch.equal(tensor, before[name]) for name, tensor in weights(engine).items())
    assert not torch.equal(engine.backbone.encode_text(texts), prompts)
    assert found.after.pair_distance < found.before.pair_distance - 0.02


def test_a_frozen_text_tower_stays(engine):
    texts = [f"a photo of a {name}" for name in CLASSES]
    prompts = engine.backbone.encode_text(texts)
    assert not run(engine, lr=1e-3, text="frozen").text_trained
    assert torch.equal(engine.backbone.encode_text(texts), prompts)


def test_no_weight_of_the_references_leaves_them_without_effect(engine, tiny_vit, monkeypatch):
    run(engine, lr=1e-3, reference_weight=0.0)
    other = Engine(load_backbone(f"local:{tiny_vit}"), torch.device("cpu"), FLOAT32)
    monkeypatch.setattr(module, "references", lambda ids, dim, seed, epoch: torch.full((len(ids), dim), 5.0))
    run(other, lr=1e-3, reference_weight=0.0)
    assert all(torch.equal(tensor, other.backbone.image_state()[name]) for name, tensor in weights(engine).items())


def test_options_out_of_range_are_refused():
    scopes = [("scope", scope) for scope in ("lora-4", "last-x-norm", "last-0-norm")]
    for key, value in (("lr", -1.0), ("own_match", 1.5), ("batch_size", 1), ("confident", 0.0), *scopes):
        with pytest.raises(UserError, match=f"stage.{key}"):
            from_mapping(StageConfig, {"name": "clip-refine", key: value}, "stage")
    with pytest.raises(UserError, match=r"stage\.captions"):
        StageConfig(captions="pairs.csv")

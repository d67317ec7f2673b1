"""Counted work: of the tower against published figures, of each method's step against its own formula."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from finelens.backbones.open_clip_loader import OpenClipBackbone
from finelens.backbones.registry import load_backbone
from finelens.backbones.vit import VisionTransformer, ViTConfig
from finelens.classes.heads import ClassHeads
from finelens.engine import flops
from finelens.engine.engine import Engine, TowerFlops
from finelens.engine.flops import count, matmul_rate, speed_line, tower_flops
from finelens.methods.registry import find_method
from finelens.protocol import Batch, Preprocess, TargetFeatures
from finelens.training.config import TrainingConfig
from finelens.training.estimate import estimate
from tests.training.tasks import FLOAT32

CPU = torch.device("cpu")
CLASSES = 10


@pytest.fixture(scope="module")
def vit_b_32() -> Engine:
    """The real geometry with random weights."""
    torch.manual_seed(0)
    tower = VisionTransformer(ViTConfig(image_size=224, patch_size=32, width=768, layers=12, heads=12, output_dim=512))
    preprocess = Preprocess(224, 224, (0.5,) * 3, (0.5,) * 3)
    return Engine(OpenClipBackbone("ViT-B-32", preprocess, tower, None, logit_scale=100.0, logit_bias=0.0, context_length=77), CPU, FLOAT32)


def test_a_matrix_product_and_a_convolution():
    a, b = torch.ones(3, 5), torch.ones(5, 7)
    assert count(lambda: a @ b) == 2 * 3 * 5 * 7
    x, w = torch.ones(1, 2, 6, 6), torch.ones(4, 2, 3, 3)
    assert count(lambda: F.conv2d(x, w)) == 2 * 4 * 4 * (2 * 3 * 3) * 4


def test_attention_counts_on_the_cpu():
    q = torch.ones(1, 2, 50, 16)
    assert count(lambda: F.scaled_dot_product_attention(q, q, q)) == 2 * (2 * 2 * 50 * 50 * 16)


def test_vit_b_32_costs_what_is_published(vit_b_32):
    norms = vit_b_32.backbone.tunable("norm").values()
    for parameter in norms:
        parameter.requires_grad_(True)
    found = tower_flops(vit_b_32, norms)
    for parameter in norms:
        parameter.requires_grad_(False)
        parameter.grad = None
    # After the last attention only the class token goes on: 49 patches are spared its projection and the MLP.
    spared = 49 * (2 * 768 * 768 + 2 * 2 * 768 * 3072)
    assert found.forward == pytest.approx(8.73e9 - spared, rel=0.01)
    assert found.with_gradient == pytest.approx(2 * found.forward, rel=0.02)
    frozen = count(lambda: vit_b_32.encode_frozen(torch.zeros(1, 3, 224, 224, dtype=torch.uint8)))
    assert frozen == found.forward


def test_the_embedded_tower_costs_what_is_published():
    """EfficientNet-Lite0: 407 million multiplications with additions, as its authors count; here it has no classifier."""
    engine = Engine(load_backbone("embedded"), CPU, FLOAT32)
    assert tower_flops(engine).forward == pytest.approx(2 * 0.407e9, rel=0.03)


@pytest.mark.parametrize(
    ("method", "limit"),
    # One weak forward, the crops, and a strong forward with its backward, which costs as much again when only norms are trained.
    [("microclip", 11.2), ("fair", 1 + 16 + 2.05), ("dpa", 1 + 2.05)],
)
def test_work_of_a_step_in_forwards(vit_b_32, method, limit):
    line = find_method(method)
    config = line.config_class()
    training = TrainingConfig(precision="float32")
    heads = ClassHeads(*(F.normalize(torch.randn(CLASSES, 512, generator=torch.Generator().manual_seed(i)), dim=-1) for i in range(3)))
    task = line.build(vit_b_32, heads, config, training, 0)
    task.prepare(TargetFeatures(heads.templates, torch.randn(CLASSES, 768)))
    for group in task.parameter_groups():
        for _, parameter in group["params"]:
            parameter.requires_grad_(True)
    images = torch.randint(0, 256, (1, 3, 224, 224), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    crops = images[:, None].expand(1, task.views.crops, 3, 224, 224).contiguous() if task.views.crops else None
    batch = Batch(torch.arange(1), images if task.views.weak else None, images if task.views.strong else None, crops)
    forward = tower_flops(vit_b_32).forward
    try:
        spent = count(lambda: task.step(batch, 0, 0).loss.backward()) / forward
    finally:
        for parameter in vit_b_32.backbone.parameters():
            parameter.requires_grad_(False)
    cost = task.cost()
    assert cost.no_grad_forwards + 2 * cost.grad_forwards == pytest.approx(spent, rel=0.03)
    assert spent <= limit


def test_an_estimate_counts_work_and_leaves_no_gradient(tiny_vit):
    engine = Engine(load_backbone(f"local:{tiny_vit}"), CPU, FLOAT32)
    line = find_method("dpa")
    heads = ClassHeads(*(F.normalize(torch.randn(3, engine.backbone.dim), dim=-1) for _ in range(3)))
    task = line.build(engine, heads, line.config_class(), TrainingConfig(), 0)
    found = estimate(task, engine, images=10, epochs=2)
    assert found.tower.with_gradient > found.tower.forward > 0
    assert found.flops == found.tower.forward + found.tower.with_gradient
    assert (engine.no_grad_forwards, engine.grad_forwards) == (0, 0)
    assert all(p.grad is None for p in engine.backbone.parameters())


def test_the_speed_of_a_run(tiny_vit, monkeypatch):
    engine = Engine(load_backbone(f"local:{tiny_vit}"), CPU, FLOAT32)
    assert speed_line(engine) is None
    engine.no_grad_forwards, engine.grad_forwards = 30, 10
    engine.stopwatch.seconds = {"encode": 1.0, "encode with gradient": 0.5, "backward": 0.5, "method": 9.0}
    engine.tower_flops = TowerFlops(1_000_000_000, 2_000_000_000)
    monkeypatch.setattr(flops, "matmul_rate", lambda dtype, device: 100e9)
    assert speed_line(engine) == ("speed: 20 images/s in the image tower, 25 GFLOP/s, 25% of the rate of a float32 matrix product here (100 GFLOP/s)")


def test_the_rate_of_a_matrix_product_is_positive():
    assert matmul_rate(torch.float32, CPU) > 0

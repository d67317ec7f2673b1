"""A tiny ViT, random heads and a few random pictures: enough to run a self-training method for real in a second."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from finelens.backbones.open_clip_loader import OpenClipBackbone
from finelens.backbones.vit import VisionTransformer, ViTConfig
from finelens.classes.heads import ClassHeads
from finelens.engine.device import Precision
from finelens.engine.engine import Engine
from finelens.images.batches import batches, centre_batches
from finelens.images.view_config import ViewConfig
from finelens.protocol import Batch, Preprocess, TargetFeatures, Task
from finelens.training.config import TrainingConfig
from finelens.training.loop import Hooks, Interrupted, Trainer
from finelens.training.schedule import build_optimizer
from tests.backbones.checkpoints import write_tiny_vit

SIDE, DIM = 64, 48
FLOAT32 = Precision(torch.float32, "test")


class Pictures:
    """An image store of random pictures, no two alike."""

    def __init__(self, count: int, seed: int = 0):
        g = torch.Generator().manual_seed(seed)
        # Large patches of colour: pixel noise would look alike to any encoder.
        coarse = torch.randint(0, 256, (count, 3, 5, 6), generator=g, dtype=torch.uint8)
        self.images = coarse.repeat_interleave(16, 2).repeat_interleave(16, 3)  # (n, 3, 80, 96)
        self.ids = [f"{i:04d}" for i in range(count)]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return self.images[index]


def tiny_engine(folder: Path, dtype: torch.dtype = torch.float32) -> Engine:
    """Engine around the tiny ViT (64-pixel images, E = 48)."""
    if not folder.exists():
        write_tiny_vit(folder)
    return Engine(OpenClipBackbone.from_folder(folder).to(dtype), torch.device("cpu"), FLOAT32)


def vit_b32_engine() -> Engine:
    """CLIP ViT-B/32 without storage: shapes only."""
    with torch.device("meta"):
        tower = VisionTransformer(ViTConfig(image_size=224, patch_size=32, width=768, layers=12, heads=12, output_dim=512))
    preprocess = Preprocess(224, 224, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    backbone = OpenClipBackbone("shapes", preprocess, tower, None, logit_scale=100.0, logit_bias=0.0, context_length=77)
    return Engine(backbone, torch.device("meta"), FLOAT32)


def unit_rows(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Random unit-norm rows."""
    g = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(*shape, generator=g, dtype=torch.float64), dim=-1).to(dtype)


def random_heads(classes: int, dtype: torch.dtype = torch.float32) -> ClassHeads:
    """Three different heads (C, 48), and texts of which each class has one more than the class before."""
    texts = tuple(unit_rows(c + 1, DIM, seed=10 + c, dtype=dtype) for c in range(classes))
    return ClassHeads(*(unit_rows(classes, DIM, seed=seed, dtype=dtype) for seed in (1, 2, 3)), texts=texts)


def without_texts(heads: ClassHeads) -> ClassHeads:
    """What a model that was loaded has of its text side."""
    return ClassHeads(heads.templates, heads.descriptions, heads.weighted)


def random_batch(count: int, crops: int, seed: int = 0) -> Batch:
    """Views of ``count`` pictures, positions 0 to ``count`` - 1."""
    g = torch.Generator().manual_seed(seed)

    def view(*shape: int) -> Tensor:
        return torch.randint(0, 256, (*shape, 3, 4, 4), generator=g, dtype=torch.uint8).repeat_interleave(16, -1).repeat_interleave(16, -2)

    return Batch(torch.arange(count), weak=view(count), strong=view(count), crops=view(count, crops) if crops else None, centre=view(count))


def target_features(engine: Engine, pictures: Pictures) -> TargetFeatures:
    """Features of the centre views, and the views of the first epoch with seed 0."""
    preprocess = engine.backbone.preprocess
    features = engine.features(views for _, views in centre_batches(pictures, preprocess, 8))
    return replace(features, first_views=lambda plan: batches(pictures, preprocess, plan, ViewConfig(), 0, 0, 8, np.arange(len(pictures))))


def trainable_count(task: Task) -> int:
    """Numbers that the optimiser moves."""
    return sum(p.numel() for group in task.parameter_groups() for _, p in group["params"])


def train_steps(task: Task, batch: Batch, steps: int, lr: float = 1e-3) -> list[float]:
    """Losses of some steps on one batch."""
    optimizer, losses = build_optimizer(task, lr), []
    for step in range(steps):
        optimizer.zero_grad()
        loss = task.step(batch, 0, step).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def step_gradient(task: Task, batch: Batch, name: str, position: int, step: float = 1e-6) -> tuple[float, float]:
    """Derivative of the step's loss by one number of a trained parameter: automatic, and by central differences.

    The task must give the same loss for the same batch; labels are constant within ``step``.
    """
    named = {key: p for group in task.parameter_groups() for key, p in group["params"]}
    for p in named.values():
        p.requires_grad_(True)
        p.grad = None
    task.step(batch, 0, 0).loss.backward()
    parameter = named[name]
    assert parameter.grad is not None
    automatic = parameter.grad.flatten()[position].item()
    values = []
    for sign in (1, -1):
        with torch.no_grad():
            parameter.view(-1)[position] += sign * step
            values.append(task.step(batch, 0, 0).loss.item())
            parameter.view(-1)[position] -= sign * step
    return automatic, (values[0] - values[1]) / (2 * step)


def separating_rows(engine: Engine, batch: Batch, classes: int) -> Tensor:
    """Head rows (C, 48) under which the first C weak views get C different labels: random towers see all pictures as nearly the same."""
    assert batch.weak is not None
    features = engine.encode_frozen(batch.weak).global_
    return F.normalize(features[:classes] - features.mean(0), dim=-1)


def whole_and_resumed(build: Callable[[], Task], pictures: Pictures, config: TrainingConfig, checkpoints: Path) -> tuple[Task, Task]:
    """The same training twice: without a stop, and stopped after three steps and resumed by a new task."""

    def trainer(stop_after: float, folder: Path | None) -> tuple[Task, Trainer]:
        task = build()
        seen: list[int] = []
        hooks = Hooks(checkpoints=folder, on_images=seen.append, should_stop=lambda: len(seen) >= stop_after)
        return task, Trainer(task, task.engine, pictures, config, ViewConfig(), seed=0, hooks=hooks)

    task, whole = trainer(math.inf, None)
    task.prepare(target_features(task.engine, pictures))
    whole.run()
    first, part = trainer(3, checkpoints)
    first.prepare(target_features(first.engine, pictures))
    with pytest.raises(Interrupted):
        part.run()
    second, rest = trainer(math.inf, checkpoints)
    rest.resume()
    rest.run()
    return task, second

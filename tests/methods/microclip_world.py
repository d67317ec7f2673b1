"""A tiny microCLIP: task, heads, a batch of noise, and what its parts see."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from finelens.backbones.registry import load_backbone
from finelens.classes.heads import ClassHeads
from finelens.engine.device import Precision
from finelens.engine.engine import Engine
from finelens.methods.microclip.config import MicroClipConfig
from finelens.methods.microclip.pseudo_labels import multi_view_feature
from finelens.methods.microclip.task import MicroClip
from finelens.protocol import Batch
from finelens.training.schedule import build_optimizer
from tests.methods.tiny import unit_rows

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


def take_steps(task: MicroClip, count: int, lr: float = 1e-3) -> None:
    optimizer = build_optimizer(task, lr)
    for step in range(count):
        optimizer.zero_grad()
        task.step(make_batch(task.views.crops), 0, step).loss.backward()
        optimizer.step()

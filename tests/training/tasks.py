"""A task without images: least squares, so that the loop's own work can be checked by hand."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from finelens.engine.device import Precision
from finelens.engine.engine import Engine
from finelens.images.store import PixelStore
from finelens.protocol import Backbone, Batch, Cost, ImageTokens, Preprocess, StepOutput, TargetFeatures, Task, ViewPlan

FLOAT32 = Precision(torch.float32, "test")


class MeanBackbone(Backbone):
    """Tower that averages pixels and has one trained scale per channel and a fitted centre."""

    def __init__(self) -> None:
        super().__init__()
        self.name = "mean"
        self.preprocess = Preprocess(8, 8, (0.0,) * 3, (1.0,) * 3)
        self.width = self.dim = 3
        self.grid = (1, 1)
        self.logit_scale, self.logit_bias, self.context_length = 10.0, 0.0, 8
        self.scale = nn.Parameter(torch.ones(3), requires_grad=False)
        self.register_buffer("centre", torch.zeros(3))
        self.largest_batch = 0

    def encode_image(self, images: Tensor, *, patches: bool = False, prompts: Tensor | None = None) -> ImageTokens:
        self.largest_batch = max(self.largest_batch, len(images))
        cls = images.mean((2, 3)) * self.scale  # (B, 3)
        return ImageTokens(nn.functional.normalize(self.project(cls), dim=-1), cls, cls[:, None] if patches else None)

    def project(self, tokens: Tensor) -> Tensor:
        return tokens - self.centre

    def tokenize(self, texts):
        raise NotImplementedError

    count_tokens = encode_text = tokenize

    def tunable(self, scope: str) -> dict[str, nn.Parameter]:
        return {"scale": self.scale}

    def fit_centre(self, cls: Tensor) -> None:
        self.centre.copy_(cls.mean(0))

    def fitted_state(self) -> dict[str, Tensor]:
        return {"centre": self.centre}

    def image_config(self) -> dict[str, Any]:
        return {"kind": "mean"}

    def image_state(self) -> dict[str, Tensor]:
        return dict(self.state_dict())


class LeastSquares(Task):
    """Fits ``w`` to the mean brightness of weak views; ``idle`` never gets a gradient, ``steps`` counts."""

    views = ViewPlan(weak=True, strong=False)

    def __init__(self, engine: Engine, start: float = 0.0) -> None:
        super().__init__(engine)
        self.w = nn.Parameter(torch.full((3,), start))
        self.idle = nn.Parameter(torch.ones(2))
        self.frozen = nn.Parameter(torch.ones(1), requires_grad=False)
        self.register_buffer("steps", torch.zeros(1))
        self.seen: list[tuple[int, int, list[int]]] = []
        self.poison_at: int | None = None

    def prepare(self, features: TargetFeatures) -> None:
        pass

    def parameter_groups(self) -> list[dict[str, Any]]:
        tower = list(self.engine.backbone.tunable("norm").items())
        return [
            {"params": [("w", self.w), ("idle", self.idle)], "weight_decay": 0.0},
            {"params": tower, "weight_decay": 0.1, "lr_scale": 0.5},
        ]

    def step(self, batch: Batch, epoch: int, step_in_epoch: int) -> StepOutput:
        self.seen.append((epoch, step_in_epoch, batch.index.tolist()))
        self.steps += 1
        cls = self.engine.encode(batch.weak).cls
        loss = (cls - self.w).square().mean()
        if self.poison_at == len(self.seen):
            loss = loss * float("nan")
        return StepOutput(loss, {"count": float(len(batch.index))})

    def predict_logits(self, images: Tensor) -> dict[str, Tensor]:
        return {"logits": self.engine.encode_frozen(images).cls}

    def cost(self) -> Cost:
        return Cost(2, 1)

    def end_epoch(self, epoch: int) -> dict[str, float]:
        return {"ended": float(epoch)}


def make_engine() -> Engine:
    return Engine(MeanBackbone(), torch.device("cpu"), FLOAT32)


def make_store(count: int = 10) -> PixelStore:
    draw = torch.Generator().manual_seed(0)
    images = [torch.randint(0, 256, (3, 9, 11), dtype=torch.uint8, generator=draw) for _ in range(count)]
    return PixelStore([f"id{i:02d}" for i in range(count)], images)

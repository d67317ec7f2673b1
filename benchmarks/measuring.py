"""What the speed benchmarks share: two sides timed in turn, ViT-B/32 with random weights, and where a number comes from."""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import finelens
from finelens.backbones.open_clip_loader import OpenClipBackbone
from finelens.backbones.vit import VisionTransformer, ViTConfig
from finelens.engine.device import Precision
from finelens.engine.engine import Engine
from finelens.engine.flops import MATRIX_SIDE
from finelens.protocol import Preprocess

CPU = torch.device("cpu")
VIT_B_32 = ViTConfig(image_size=224, patch_size=32, width=768, layers=12, heads=12, output_dim=512, quick_gelu=True)
PRECISIONS = {
    "float32": Precision(torch.float32, "benchmark"),
    "bfloat16": Precision(torch.bfloat16, "benchmark"),
}


@dataclass
class Times:
    """Repeats of one piece of work.

    Attributes:
        wall: Seconds by the clock, of each repeat.
        cpu: Seconds that all threads of the process worked, of each repeat; a busy machine changes it less.
    """

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    def row(self) -> dict[str, float]:
        """Best and median, in seconds."""
        return {
            "best": round(min(self.wall), 4),
            "median": round(statistics.median(self.wall), 4),
            "cpu_best": round(min(self.cpu), 4),
            "cpu_median": round(statistics.median(self.cpu), 4),
        }


def in_turn(sides: dict[str, Callable[[], object]], repeats: int) -> dict[str, Times]:
    """Run the sides one after the other, ``repeats`` times, after one round that does not count."""
    times = {name: Times() for name in sides}
    for repeat in range(repeats + 1):
        for name, work in sides.items():
            wall, cpu = time.perf_counter(), time.process_time()
            work()
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            if repeat:
                times[name].wall.append(wall)
                times[name].cpu.append(cpu)
    return times


def ratios(slow: Times, fast: Times, digits: int = 2) -> dict[str, float]:
    """How many times as long ``slow`` takes: best over best, and the median over repeats that follow each other."""
    return {
        "best": round(min(slow.wall) / min(fast.wall), digits),
        "median": round(statistics.median(a / b for a, b in zip(slow.wall, fast.wall, strict=True)), digits),
        "cpu_best": round(min(slow.cpu) / min(fast.cpu), digits),
        "cpu_median": round(statistics.median(a / b for a, b in zip(slow.cpu, fast.cpu, strict=True)), digits),
    }


def matrix_product(dtype: torch.dtype) -> tuple[Callable[[], object], float]:
    """The product that gives the rate of the machine (``finelens.engine.flops.matmul_rate`` uses the same), and its operations."""
    a = torch.ones(MATRIX_SIDE, MATRIX_SIDE, dtype=dtype)
    return (lambda: [a @ a for _ in range(8)]), 8 * 2.0 * MATRIX_SIDE**3


def vit_b_32(seed: int = 0) -> OpenClipBackbone:
    """The image side of ViT-B/32 at 224 px with random weights."""
    torch.manual_seed(seed)
    return OpenClipBackbone(
        "ViT-B-32",
        Preprocess(224, 224, (0.5,) * 3, (0.5,) * 3),
        VisionTransformer(VIT_B_32),
        None,
        logit_scale=100.0,
        logit_bias=0.0,
        context_length=77,
    )


def engine_of(backbone: Any, precision: str) -> Engine:
    """The engine that every method runs on."""
    return Engine(backbone, CPU, PRECISIONS[precision])


def smooth_pictures(count: int, seed: int = 0) -> Tensor:
    """Random pictures (N, 3, 224, 224) uint8 whose patches differ; gradients of pixel noise would cancel."""
    coarse = torch.rand(count, 3, 5, 5, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(coarse, size=(VIT_B_32.image_size,) * 2, mode="bicubic").clamp(0, 1).mul(255).to(torch.uint8)


def write(out: Path, row: dict[str, Any]) -> None:
    """Append a result with what made it, and print it."""
    print(json.dumps(row), flush=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("a") as file:
        file.write(json.dumps(row | provenance()) + "\n")


def provenance() -> dict[str, Any]:
    """The command and what it ran on."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    return {
        "command": "python " + " ".join([f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
        "finelens": finelens.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
        "load": None if load is None else round(load, 1),
    }

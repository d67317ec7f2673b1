"""One process with two threads against two processes with one thread each, on the same microCLIP steps of a ViT-B/32 with random weights.

    python benchmarks/processes.py --out benchmarks/results/processes.jsonl

One JSON line: the largest difference of a loss, seconds of a step by the clock (best and median), and what all threads worked in a step (``cpu``),
which a busy machine changes less. ``exchange`` is the time of the first process in gathers and averages, waiting for the other included.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

import finelens
from finelens.backbones.open_clip_loader import OpenClipBackbone
from finelens.backbones.vit import VisionTransformer, ViTConfig
from finelens.classes.heads import ClassHeads
from finelens.engine.device import Precision
from finelens.engine.distributed import join
from finelens.engine.engine import Engine
from finelens.methods.microclip.config import MicroClipConfig
from finelens.methods.microclip.task import MicroClip
from finelens.protocol import Batch, Preprocess
from finelens.training.checkpoint import named_trainable
from finelens.training.schedule import build_optimizer

CLASSES = 37
VIT_B_32 = ViTConfig(image_size=224, patch_size=32, width=768, layers=12, heads=12, output_dim=512, quick_gelu=True)
# Processes, and threads of each.
SIDES = ((1, 2), (2, 1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--crops", type=int, default=2)
    parser.add_argument("--steps", type=int, default=5)
    given = parser.parse_args()
    if given.out is None:
        print(json.dumps(steps(given.batch, given.crops, given.steps)))
        return
    one, two = (launch(count, threads, given) for count, threads in SIDES)
    row = {
        "tower": "vit-b-32",
        "precision": "float32",
        **{name: getattr(given, name) for name in ("batch", "crops", "steps")},
        "loss_difference": max(abs(a - b) for a, b in zip(one["losses"], two["losses"], strict=True)),
        "losses": one["losses"],
        "one_process_two_threads": summary(one),
        "two_processes_one_thread": summary(two),
        "ratio": {name: round(summary(one)[name] / summary(two)[name], 2) for name in ("best", "median", "cpu")},
        "command": "python " + " ".join(["benchmarks/processes.py", *sys.argv[1:]]),
        "finelens": finelens.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "load": round(os.getloadavg()[0], 1),
    }
    print(json.dumps(row))
    with given.out.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
    assert row["loss_difference"] <= 1e-5


def summary(found: dict[str, Any]) -> dict[str, float]:
    """Of all steps but the first."""
    wall = found["seconds"][1:]
    return {"best": round(min(wall), 3), "median": round(statistics.median(wall), 3), "cpu": found["cpu"], "exchange": found["exchange"]}


def launch(count: int, threads: int, given: argparse.Namespace) -> dict[str, Any]:
    """What the first of some processes found."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    command = [sys.executable, __file__, *(f"--{name}={getattr(given, name)}" for name in ("batch", "crops", "steps"))]
    started = []
    for rank in range(count):
        own = {"RANK": rank, "WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": threads}
        environment = {**os.environ, **{name: str(value) for name, value in own.items()}}
        started.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True))
    said = [process.communicate()[0] for process in started]
    assert not any(process.returncode for process in started)
    found: dict[str, Any] = json.loads(said[0])
    return found


def steps(batch_size: int, crops: int, count: int) -> dict[str, Any]:
    """Train on one batch; losses and times."""
    processes = join("cpu")
    torch.manual_seed(0)
    preprocess = Preprocess(224, 224, (0.5,) * 3, (0.5,) * 3)
    tower = VisionTransformer(VIT_B_32)
    backbone = OpenClipBackbone("ViT-B-32", preprocess, tower, None, logit_scale=100.0, logit_bias=0.0, context_length=77)
    engine = Engine(backbone, torch.device("cpu"), Precision(torch.float32, "benchmark"))
    engine.processes = processes
    heads = [F.normalize(torch.randn(CLASSES, backbone.dim), dim=-1) for _ in range(3)]
    task = MicroClip(engine, ClassHeads(*heads), MicroClipConfig(crops=crops))
    optimizer = build_optimizer(task, 1e-4)
    # Smooth random pictures, so that the patches of an image differ.
    coarse = torch.rand(batch_size * (2 + crops), 3, 5, 5)
    pixels = F.interpolate(coarse, size=(224, 224), mode="bicubic").clamp(0, 1).mul(255).to(torch.uint8).unflatten(0, (batch_size, 2 + crops))
    batch = Batch(torch.arange(batch_size), weak=pixels[:, 0], strong=pixels[:, 1], crops=pixels[:, 2:])
    losses, seconds, worked = [], [], 0.0
    for step in range(count):
        wall, cpu = time.perf_counter(), time.process_time()
        optimizer.zero_grad(set_to_none=True)
        output = task.step(batch, 0, step)
        output.loss.backward()
        with engine.stopwatch("exchange"):
            processes.average_gradients(named_trainable(task).values())
        optimizer.step()
        losses.append(output.loss.item())
        seconds.append(time.perf_counter() - wall)
        worked += (time.process_time() - cpu) if step else 0.0
    all_threads = processes.total(round(1000 * worked)) / 1000 / max(1, count - 1)
    return {"losses": losses, "seconds": seconds, "cpu": round(all_threads, 3), "exchange": round(engine.stopwatch.seconds["exchange"] / count, 3)}


if __name__ == "__main__":
    main()

"""Counted work of the image tower, and what this machine makes of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from finelens.core import private_torch
from finelens.core.threads import threads_of_its_own
from finelens.engine.engine import CPU_CHUNK, Engine, TowerFlops

MATRIX_SIDE = 1024


def count(work: Callable[[], object]) -> int:
    """Operations of a piece of work, forward and backward."""
    # Not at the top: it brings Triton along.
    from torch.utils.flop_counter import FlopCounterMode, conv_flop_count, sdpa_backward_flop_count, sdpa_flop_count

    # The counter knows the kernels of GPUs only.
    cpu_kernels: dict[Any, Callable[..., int]] = {
        private_torch.CPU_ATTENTION: lambda query, key, value, *_, **__: sdpa_flop_count(query, key, value),
        private_torch.CPU_ATTENTION_BACKWARD: lambda grad, query, key, value, *_, **__: sdpa_backward_flop_count(grad, query, key, value),
    }
    if private_torch.fused_convolution is not None:
        cpu_kernels[private_torch.fused_convolution] = lambda x, weight, *_, out_shape, **__: conv_flop_count(x, weight, out_shape)
    counter = FlopCounterMode(display=False, custom_mapping=cpu_kernels)
    # What other threads do is not counted.
    with threads_of_its_own(1, torch.get_num_threads()), counter:
        work()
    return counter.get_total_flops()


def tower_flops(engine: Engine, trained: Iterable[nn.Parameter] = ()) -> TowerFlops:
    """Count one blank image through the tower; nothing is updated and no forward is added to the engine's own count.

    Args:
        engine: Runs the backbone.
        trained: Parameters that take a gradient now; none for a method without training.
    """
    size = engine.backbone.preprocess.image_size
    probe = torch.zeros(1, 3, size, size, dtype=torch.uint8)
    forward = count(lambda: engine.encode_frozen(probe))
    prefix = count(lambda: engine.encode_prefix(probe.expand(CPU_CHUNK, -1, -1, -1))) // CPU_CHUNK if engine.last_blocks else 0
    parameters = list(trained)
    if not parameters:
        return TowerFlops(forward, 0, prefix)
    return TowerFlops(forward, count(lambda: forward_and_backward(engine, probe)), prefix)


def forward_and_backward(engine: Engine, images: Tensor, *, patches: bool = False) -> None:
    """Encode uint8 views (B, 3, S, S) and go back as far as there is something that learns; some scopes leave the whole tower frozen."""
    features = engine.encode(images, patches=patches).global_
    if features.requires_grad:
        features.sum().backward()


def matmul_rate(dtype: torch.dtype, device: torch.device) -> float:
    """Operations per second of a square matrix product: the rate that a tower is measured against."""
    a = torch.ones(MATRIX_SIDE, MATRIX_SIDE, dtype=dtype, device=device)
    best = float("inf")
    for _ in range(4):
        start = time.perf_counter()
        (a @ a)[0, 0].item()
        best = min(best, time.perf_counter() - start)
    return 2 * MATRIX_SIDE**3 / best


def speed_line(engine: Engine) -> str | None:
    """What the tower reached over a run: images and operations per second, and its share of the rate of a matrix product; None where it did nothing.

    Only the stages that encode count; the matrix product is timed now.
    """
    seconds = sum(engine.stopwatch.seconds.get(stage, 0.0) for stage in ("encode", "encode with gradient", "backward"))
    images = engine.no_grad_forwards + engine.grad_forwards
    if not images or not seconds or engine.tower_flops is None:
        return None
    rate = engine.flops / seconds
    peak = matmul_rate(engine.precision.dtype, engine.device) * engine.processes.count
    return (
        f"speed: {images / seconds:.3g} images/s in the image tower, {rate / 1e9:.3g} GFLOP/s, {rate / peak:.0%} of the rate of a "
        f"{engine.precision.name} matrix product here ({peak / 1e9:.3g} GFLOP/s)"
    )

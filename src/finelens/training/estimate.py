"""How long training will take, from one short probe."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from finelens.protocol import Task
from finelens.training.engine import Engine
from finelens.training.microbatch import until_it_fits

PROBE_IMAGES = 16


def estimate_seconds(task: Task, engine: Engine, images: int, epochs: int) -> float:
    """Predict the training time: images x epochs x (forwards without gradient + forwards with gradient), at probed rates.

    The probe encodes ``PROBE_IMAGES`` blank images with and without gradient, twice each, and takes the faster; nothing is updated or counted.

    Args:
        task: The method; its ``cost`` gives the forwards.
        engine: Runs the backbone.
        images: Images per epoch.
        epochs: Epochs.
    """
    cost = task.cost()
    counts = engine.no_grad_forwards, engine.grad_forwards
    spent = dict(engine.stopwatch.seconds)
    size = engine.backbone.preprocess.image_size
    probe = torch.zeros(PROBE_IMAGES, 3, size, size, dtype=torch.uint8)
    trained = [parameter for group in task.parameter_groups() for _, parameter in group["params"]]
    wanted = [parameter.requires_grad for parameter in trained]
    try:
        for parameter in trained:
            parameter.requires_grad_(True)
        without = _seconds(lambda: engine.encode_frozen(probe), engine.device)
        with_gradient = until_it_fits(
            lambda: _seconds(lambda: engine.encode(probe, patches=True).global_.sum().backward(), engine.device),
            lambda: engine.micro.halve(PROBE_IMAGES, with_gradient=True),
        )
    finally:
        for parameter, flag in zip(trained, wanted, strict=True):
            parameter.requires_grad_(flag)
            parameter.grad = None
        engine.no_grad_forwards, engine.grad_forwards = counts
        engine.stopwatch.seconds = spent
    return images * epochs * (cost.no_grad_forwards * without + cost.grad_forwards * with_gradient) / PROBE_IMAGES


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    best = float("inf")
    for _ in range(2):
        _synchronise(device)
        start = time.perf_counter()
        work()
        _synchronise(device)
        best = min(best, time.perf_counter() - start)
    return best


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)

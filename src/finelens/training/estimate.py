"""How long training will take and how much work it is, from one short probe."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from finelens.engine.engine import Engine, TowerFlops
from finelens.engine.flops import forward_and_backward, tower_flops
from finelens.engine.microbatch import until_it_fits
from finelens.protocol import PrefixRows, Task

PROBE_IMAGES = 16


@dataclass(frozen=True)
class Estimate:
    """What a run will cost.

    Attributes:
        seconds: Predicted time.
        flops: Counted work of one image in one epoch, in floating-point operations of the image tower.
        flops_kept: That work in an epoch that finds the outputs of the first blocks kept; equal to ``flops`` where none are.
        tower: Work of one image in the tower.
        flops_once: Counted work of one image before the first epoch and after the last.
    """

    seconds: float
    flops: float
    flops_kept: float
    tower: TowerFlops
    flops_once: float = 0


def estimate(task: Task, engine: Engine, images: int, epochs: int, *, prepared: bool = False, draws: int = 0) -> Estimate:
    """Predict a run: images x (forwards before and after training + epochs x (forwards without gradient + forwards with gradient)), at probed rates
    and shared by all processes. After as many epochs as there are draws of views, the blocks before ``engine.last_blocks`` are at rest.

    The probe encodes ``PROBE_IMAGES`` blank images with and without gradient, twice each, and takes the faster; nothing is updated or counted.

    Args:
        task: The method; its ``cost`` gives the forwards.
        engine: Runs the backbone.
        images: Images per epoch.
        epochs: Epochs.
        prepared: Whether what is done once has been done.
        draws: ``training.cached_prefix``.
    """
    cost, size = task.cost(), engine.backbone.preprocess.image_size
    probe = torch.zeros(PROBE_IMAGES, 3, size, size, dtype=torch.uint8)
    with engine.alone(), untouched(engine), _trainable(task) as trained:
        tower = tower_flops(engine, trained)
        without, with_gradient = _rates(engine, probe)
        kept = _rates(engine, engine.encode_prefix(probe).as_subclass(PrefixRows)) if draws else (without, with_gradient)
    once = cost.after + (0 if prepared else cost.once)
    first = min(epochs, draws) if draws else epochs
    epoch, later = (cost.no_grad_forwards * rates[0] + cost.grad_forwards * rates[1] for rates in ((without, with_gradient), kept))
    seconds = images * (once * without + first * epoch + (epochs - first) * later) / PROBE_IMAGES
    seconds = engine.processes.first_value(seconds / engine.processes.count)
    flops = cost.no_grad_forwards * tower.forward + cost.grad_forwards * tower.with_gradient
    flops_kept = flops - (cost.no_grad_forwards + cost.grad_forwards) * tower.prefix
    return Estimate(seconds, flops, flops_kept, tower, once * tower.forward)


def _rates(engine: Engine, images: Tensor) -> tuple[float, float]:
    """Seconds of a pass over the images without and with gradient."""
    without = _seconds(lambda: engine.encode_frozen(images), engine.device)
    with_gradient = until_it_fits(
        lambda: _seconds(lambda: forward_and_backward(engine, images, patches=True), engine.device),
        lambda: engine.micro.halve(len(images), with_gradient=True),
    )
    return without, with_gradient


@contextmanager
def untouched(engine: Engine) -> Iterator[None]:
    """Leave the engine's counts and times as they were, whatever is encoded in between."""
    counts, spent = engine.counts, dict(engine.stopwatch.seconds)
    try:
        yield
    finally:
        engine.counts = counts
        engine.stopwatch.seconds = spent


@contextmanager
def _trainable(task: Task) -> Iterator[list[torch.nn.Parameter]]:
    """The task's parameters, taking gradients for a while."""
    trained = [parameter for group in task.parameter_groups() for _, parameter in group["params"]]
    wanted = [parameter.requires_grad for parameter in trained]
    try:
        for parameter in trained:
            parameter.requires_grad_(True)
        yield trained
    finally:
        for parameter, flag in zip(trained, wanted, strict=True):
            parameter.requires_grad_(flag)
            parameter.grad = None


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

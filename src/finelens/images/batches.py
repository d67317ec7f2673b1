"""Batches of views, built ahead in a few threads. What a batch holds depends on its key only, never on threads or timing."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from finelens.images.randomness import generator, permutation
from finelens.images.view_config import ViewConfig
from finelens.images.views import centre_view, crop_views, inference_views, strong_view, weak_view
from finelens.protocol import Batch, ImageStore, InferenceViews, Preprocess, ViewPlan

T = TypeVar("T")

NO_VIEWS = ViewPlan(weak=False, strong=False)
DEFAULT_WORKERS = min(8, os.cpu_count() or 2)


def epoch_order(n: int, seed: int, epoch: int) -> np.ndarray:
    """The order in which an epoch visits a store: a permutation of 0..n-1, (n,), int64, a function of its arguments only."""
    return permutation(generator(seed, epoch, "", "order"), n)


def batches(
    store: ImageStore,
    preprocess: Preprocess,
    plan: ViewPlan,
    view_config: ViewConfig,
    seed: int,
    epoch: int,
    batch_size: int,
    order: np.ndarray | None = None,
    start_step: int = 0,
    workers: int = DEFAULT_WORKERS,
    pinned: bool = False,
) -> Generator[Batch, None, None]:
    """The batches of one epoch; the last one may be smaller.

    While the caller works on a batch, the next one is built. Closing the iterator, or leaving its loop, stops the threads.

    Args:
        store: The originals.
        preprocess: Geometry of the model.
        plan: Which views to build.
        view_config: Their options.
        seed: Seed of the run.
        epoch: Epoch, from 0.
        batch_size: Images of a batch.
        order: Positions to visit, (n,); default :func:`epoch_order` over the whole store.
        start_step: Batches to skip, for resuming inside an epoch.
        workers: Threads.
        pinned: Whether views lie in page-locked memory, from which a GPU copies while it computes.
    """
    positions = epoch_order(len(store), seed, epoch) if order is None else np.asarray(order)

    side = preprocess.image_size

    def allocate(step: list[int]) -> Batch:
        count = len(step)
        return Batch(
            index=torch.tensor(step, dtype=torch.int64),
            weak=_pixels(count, 3, side, side, pinned=pinned) if plan.weak else None,
            strong=_pixels(count, 3, side, side, pinned=pinned) if plan.strong else None,
            crops=_pixels(count, plan.crops, 3, side, side, pinned=pinned) if plan.crops else None,
            centre=_pixels(count, 3, side, side, pinned=pinned) if plan.centre else None,
        )

    def fill(batch: Batch, row: int, position: int) -> None:
        if plan == NO_VIEWS:
            return
        image, key = store[position], store.ids[position]
        if batch.weak is not None:
            batch.weak[row] = weak_view(image, preprocess, seed, epoch, key)
        if batch.strong is not None:
            batch.strong[row] = strong_view(image, preprocess, seed, epoch, key, view_config)
        if batch.crops is not None:
            batch.crops[row] = crop_views(image, preprocess, seed, epoch, key, plan.crops, view_config.crop_low, view_config.crop_high)
        if batch.centre is not None:
            batch.centre[row] = centre_view(image, preprocess)

    steps = [positions[i : i + batch_size].tolist() for i in range(start_step * batch_size, len(positions), batch_size)]
    yield from _build_ahead(steps, allocate, fill, workers)


def centre_batches(
    store: ImageStore, preprocess: Preprocess, batch_size: int, workers: int = DEFAULT_WORKERS, order: np.ndarray | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Centre views of the whole store, in its order, or of some positions.

    Args:
        store: Images.
        preprocess: Geometry of the views.
        batch_size: Images of a batch.
        workers: Threads.
        order: Positions to visit, (n,).

    Returns:
        Iterator over positions (B,) int64 and views (B, 3, S, S) uint8.
    """
    side = preprocess.image_size

    def allocate(step: list[int]) -> tuple[Tensor, Tensor]:
        return torch.tensor(step, dtype=torch.int64), _pixels(len(step), 3, side, side)

    def fill(batch: tuple[Tensor, Tensor], row: int, position: int) -> None:
        batch[1][row] = centre_view(store[position], preprocess)

    yield from _build_ahead(_steps(len(store), batch_size, order), allocate, fill, workers)


def inference_batches(
    store: ImageStore,
    preprocess: Preprocess,
    plan: InferenceViews,
    batch_size: int,
    workers: int = DEFAULT_WORKERS,
    order: np.ndarray | None = None,
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Centre views of the whole store, in its order, or of some positions, and the further views that a method answers from.

    Returns:
        Iterator over positions (B,) int64, centre views (B, 3, S, S) and further views (B, M, 3, S, S), uint8.
    """
    side = preprocess.image_size

    def allocate(step: list[int]) -> tuple[Tensor, Tensor, Tensor]:
        return torch.tensor(step, dtype=torch.int64), _pixels(len(step), 3, side, side), _pixels(len(step), plan.count, 3, side, side)

    def fill(batch: tuple[Tensor, Tensor, Tensor], row: int, position: int) -> None:
        image = store[position]
        batch[1][row] = centre_view(image, preprocess)
        batch[2][row] = inference_views(image, preprocess, store.ids[position], plan)

    yield from _build_ahead(_steps(len(store), batch_size, order), allocate, fill, workers)


def _steps(count: int, batch_size: int, order: np.ndarray | None) -> list[list[int]]:
    """Positions of each batch: all, or those of ``order``."""
    positions = list(range(count)) if order is None else order.tolist()
    return [positions[i : i + batch_size] for i in range(0, len(positions), batch_size)]


def _pixels(*shape: int, pinned: bool = False) -> Tensor:
    return torch.empty(shape, dtype=torch.uint8, pin_memory=pinned)


def _build_ahead(steps: list[list[int]], allocate: Callable[[list[int]], T], fill: Callable[[T, int, int], None], workers: int) -> Iterator[T]:
    """Fill the rows of each step's batch in threads, one step ahead of the consumer. An exception reaches the consumer at its step.

    Threads write into the batch itself: stacking finished views would hold every pixel twice.
    """
    waiting: deque[tuple[T, list[Future[None]]]] = deque()
    pool = ThreadPoolExecutor(max(1, workers), thread_name_prefix="finelens-views")
    try:
        for step in steps:
            batch = allocate(step)
            waiting.append((batch, [pool.submit(fill, batch, row, position) for row, position in enumerate(step)]))
            if len(waiting) > 1:
                yield _finished(*waiting.popleft())
        while waiting:
            yield _finished(*waiting.popleft())
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _finished(batch: T, rows: list[Future[None]]) -> T:
    for row in rows:
        row.result()
    return batch

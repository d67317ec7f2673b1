"""Batches of views, built ahead in a few threads. What a batch holds depends on its key only, never on threads or timing."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from finelens.images.randomness import generator, permutation
from finelens.images.views import ViewConfig, centre_view, crop_views, strong_view, weak_view
from finelens.protocol import Batch, ImageStore, Preprocess, ViewPlan

T = TypeVar("T")

DEFAULT_WORKERS = 2


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
) -> Iterator[Batch]:
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
    """
    positions = epoch_order(len(store), seed, epoch) if order is None else np.asarray(order)

    def views(position: int) -> _Views:
        return _build_views(store, position, preprocess, plan, view_config, seed, epoch)

    steps = [positions[i : i + batch_size].tolist() for i in range(start_step * batch_size, len(positions), batch_size)]
    for step, built in _map_ahead(views, steps, workers):
        yield Batch(torch.tensor(step, dtype=torch.int64), *(_stack(parts) for parts in zip(*built, strict=True)))


def centre_batches(store: ImageStore, preprocess: Preprocess, batch_size: int, workers: int = DEFAULT_WORKERS) -> Iterator[tuple[Tensor, Tensor]]:
    """Centre views of the whole store, in its order.

    Yields:
        Positions (B,) int64 and views (B, 3, S, S) uint8.
    """
    steps = [list(range(i, min(i + batch_size, len(store)))) for i in range(0, len(store), batch_size)]
    for step, built in _map_ahead(lambda position: centre_view(store[position], preprocess), steps, workers):
        yield torch.tensor(step, dtype=torch.int64), torch.stack(built)  # (B,), (B, 3, S, S)


_Views = tuple["Tensor | None", "Tensor | None", "Tensor | None"]


def _build_views(store: ImageStore, position: int, preprocess: Preprocess, plan: ViewPlan, config: ViewConfig, seed: int, epoch: int) -> _Views:
    image, key = store[position], store.ids[position]
    weak = weak_view(image, preprocess, seed, epoch, key) if plan.weak else None
    strong = strong_view(image, preprocess, seed, epoch, key, config) if plan.strong else None
    crops = crop_views(image, preprocess, seed, epoch, key, plan.crops, config.crop_low, config.crop_high) if plan.crops else None
    return weak, strong, crops


def _stack(parts: Sequence[Tensor | None]) -> Tensor | None:
    present = [part for part in parts if part is not None]
    return torch.stack(present) if present else None


def _map_ahead(function: Callable[[int], T], steps: list[list[int]], workers: int) -> Iterator[tuple[list[int], list[T]]]:
    """Apply a function to each position of each step in threads, one step ahead of the consumer. An exception reaches the consumer at its step."""
    waiting: deque[tuple[list[int], list[Future[T]]]] = deque()
    pool = ThreadPoolExecutor(max(1, workers), thread_name_prefix="finelens-views")
    try:
        for step in steps:
            waiting.append((step, [pool.submit(function, position) for position in step]))
            if len(waiting) > 1:
                ready, futures = waiting.popleft()
                yield ready, [future.result() for future in futures]
        while waiting:
            ready, futures = waiting.popleft()
            yield ready, [future.result() for future in futures]
    finally:
        pool.shutdown(wait=True, cancel_futures=True)

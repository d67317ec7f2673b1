"""Torch work in several threads of the host, and how many cores each of them takes."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from functools import cache
from typing import TypeVar

import torch

T = TypeVar("T")
R = TypeVar("R")


@contextmanager
def threads_of_its_own(count: int, others: int) -> Iterator[None]:
    """Let torch use ``count`` cores in the current thread.

    Args:
        count: Cores here.
        others: Cores in the threads that are yet to be started: torch gives them what was set last, in whichever thread.
    """
    # A new thread takes the number that was set last at its first look, and would look after other threads have ended.
    torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(others)


def side_by_side(work: Callable[[T], R], parts: Sequence[T]) -> list[R]:
    """``work`` of each part, in the order of the parts. Torch's cores are divided among the parts; with one core nothing is started.

    Worth it where an operation keeps one core busy and no more: a solver, or one that waits for memory. Inside of a part everything is in turn; a
    part must not wait for a thread that calls this.

    Args:
        work: Gradients are recorded in it as they are here; autocast is off.
        parts: What it is called with.

    Raises:
        BaseException: What a part raised, once no part runs any more.
    """
    cores = torch.get_num_threads()
    count = min(cores, len(parts))
    graded = torch.is_grad_enabled()

    def one(part: T) -> R:
        # Both are settings of a thread: a new one records gradients, without autocast.
        with torch.set_grad_enabled(graded), torch.autocast("cpu", enabled=False):
            return work(part)

    def run(part: T) -> R:
        with threads_of_its_own(cores // count, cores):
            return one(part)

    if count < 2 or getattr(_thread, "has_a_part", False):
        return [one(part) for part in parts]
    pool = _pool(cores, os.getpid())
    futures = [pool.submit(run, part) for part in parts]
    try:
        return [future.result() for future in futures]
    finally:
        for future in futures:
            future.cancel()
        wait(futures)


_thread = threading.local()


@cache
def _pool(cores: int, process: int) -> ThreadPoolExecutor:
    """Threads that stay: what torch keeps by thread (kernels it has prepared, memory it has been given) would be made anew for each batch."""

    def start() -> None:
        _thread.has_a_part = True

    return ThreadPoolExecutor(cores, thread_name_prefix="finelens-part", initializer=start)


@contextmanager
def prefetch(work: Callable[[], T], device: torch.device) -> Iterator[Callable[[], T]]:
    """Run ``work`` in a thread beside the block. What the block is given waits for the result, or raises what ``work`` raised.

    The thread is gone when the block ends, however it ends. On a CPU it takes one core, as the block wants the others; on CUDA it works in a stream
    of its own, which starts from what was queued before the block.

    Args:
        work: Must not depend on what the block does.
        device: Where its tensors are.
    """
    threads, graded = torch.get_num_threads(), torch.is_grad_enabled()
    stream = torch.cuda.Stream(device) if device.type == "cuda" else None
    if stream is not None:
        stream.wait_stream(torch.cuda.current_stream(device))

    def run() -> T:
        # Both are settings of a thread: a new one records gradients and takes all cores.
        with torch.set_grad_enabled(graded), torch.cuda.stream(stream), threads_of_its_own(1 if stream is None else threads, threads):
            return work()

    def result() -> T:
        found = future.result()
        if stream is not None:
            torch.cuda.current_stream(device).wait_stream(stream)
        return found

    with ThreadPoolExecutor(1, thread_name_prefix="finelens-prefetch") as pool:
        future = pool.submit(run)
        yield result

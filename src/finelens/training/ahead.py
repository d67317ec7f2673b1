"""Work of the host that runs while the caller keeps the device busy."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

from finelens.threads import threads_of_its_own

T = TypeVar("T")


@contextmanager
def ahead(work: Callable[[], T], device: torch.device) -> Iterator[Callable[[], T]]:
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

    with ThreadPoolExecutor(1, thread_name_prefix="finelens-ahead") as pool:
        future = pool.submit(run)
        yield result

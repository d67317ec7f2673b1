"""Images of many requests, answered together."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from finelens.images.decode import DecodedImage
from finelens.serving.answers import Answer

Job = tuple[DecodedImage, "asyncio.Future[Answer]"]


class FullError(RuntimeError):
    """More images wait than may."""


class Batcher:
    """Collects images for a few milliseconds and asks the model about them at once, in one thread.

    Args:
        answer: What is said of each of at least one image.
        size: Most images of a batch.
        wait: Seconds that a batch waits for further images once it has one.
        queue: Images that wait at most.
        tell: Called with the size of each batch.
    """

    def __init__(
        self, answer: Callable[[Sequence[DecodedImage]], Sequence[Answer]], *, size: int, wait: float, queue: int, tell: Callable[[int], None]
    ) -> None:
        self._answer, self._size, self._wait, self._most, self._tell = answer, size, wait, queue, tell
        self._jobs: asyncio.Queue[Job | None] = asyncio.Queue()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="finelens-model")
        self._task: asyncio.Task[None] | None = None
        # Images that came and have no answer yet.
        self.waiting = 0

    def start(self) -> None:
        """Begin to answer."""
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def stop(self) -> None:
        """Answer what waits, and end."""
        await self._jobs.put(None)
        if self._task is not None:
            await self._task
        self._thread.shutdown()

    def reserve(self, count: int) -> None:
        """Take room for images that will come.

        Raises:
            FullError: There is none.
        """
        if self.waiting + count > self._most:
            raise FullError
        self.waiting += count

    def release(self, count: int) -> None:
        """Give room back."""
        self.waiting -= count

    async def answers(self, images: Sequence[DecodedImage]) -> list[Answer]:
        """What is said of each image, room for which was reserved."""
        loop = asyncio.get_running_loop()
        futures = [loop.create_future() for _ in images]
        for job in zip(images, futures, strict=True):
            self._jobs.put_nowait(job)
        return list(await asyncio.gather(*futures))

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        going = True
        while going:
            first = await self._jobs.get()
            if first is None:
                return
            batch, end = [first], loop.time() + self._wait
            while going and len(batch) < self._size:
                try:
                    job = await asyncio.wait_for(self._jobs.get(), max(0.0, end - loop.time()))
                except TimeoutError:
                    break
                if job is None:
                    going = False
                else:
                    batch.append(job)
            await self._answer_batch(batch)

    async def _answer_batch(self, batch: list[Job]) -> None:
        # Clients that went need no answer.
        batch = [job for job in batch if not job[1].done()]
        if not batch:
            return
        self._tell(len(batch))
        try:
            rows = await asyncio.get_running_loop().run_in_executor(self._thread, self._answer, [image for image, _ in batch])
        except Exception as error:
            for _, future in batch:
                if not future.done():
                    future.set_exception(error)
            return
        for (_, future), row in zip(batch, rows, strict=True):
            if not future.done():
                future.set_result(row)

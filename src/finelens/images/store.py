"""Decoded originals, ordered by sample id and without labels, in memory or in one memory-mapped file."""

from __future__ import annotations

import os
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from finelens.errors import UserError
from finelens.images.boxes import Box
from finelens.images.decode import DecodedImage, DecodeLimits, Failure, KnownImage, decode, decode_bytes, decode_open_image, from_pixels, recognise
from finelens.images.discover import ImageFile, display_name
from finelens.images.known import KnownPhotographs
from finelens.images.spill import PixelBuffer
from finelens.images.unheard import unheard
from finelens.protocol import ImageRecord

DEFAULT_WORKERS = min(8, os.cpu_count() or 2)
MEMORY_BUDGET = 2 << 30
"""Bytes of pixels that stay in memory; the rest goes to the spill file."""

SUPPORTED_ITEMS = (
    "a path, a Pillow image, a uint8 array (H, W, 3) or (H, W), a uint8 tensor (3, H, W), a tuple whose first element is one of these, or an object "
    "with an .image attribute"
)


class ImageItems(Protocol):
    """Anything with a length and positions: a list, a torch data set, a lazily loading sequence."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


@dataclass(frozen=True)
class EncodedImage:
    """The bytes of an image file that lies in an archive or a table.

    Attributes:
        data: The bytes.
        name: What the file is called.
    """

    data: bytes
    name: str


@dataclass(frozen=True)
class LoadedImages:
    """A store of the good images, and one record per input in input order."""

    store: PixelStore
    records: list[ImageRecord]

    @property
    def by_content(self) -> bool:
        """Sample ids are hashes of the photographs' bytes."""
        return True

    @property
    def pictures(self) -> dict[str, int]:
        """Positions of the images that can be shown, by name."""
        return {record.name: record.index for record in self.records if record.index is not None}


class PixelStore:
    """Decoded originals by position, ordered by sample id.

    The id is the SHA-256 of the content plus an ordinal for exact duplicates, so neither names nor folders nor the order of the input show in it.

    Attributes:
        ids: Sample ids, sorted.
    """

    def __init__(self, ids: list[str], images: Sequence[Tensor | Callable[[], Tensor]]):
        """Take images, or what makes one each time it is looked at, in the order of their sorted ids."""
        self.ids = ids
        self._images = images

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Tensor:
        """The image, (3, H, W) uint8, short side capped; read-only by convention."""
        image = self._images[index]
        return image if isinstance(image, Tensor) else image()


def load_images(
    items: ImageItems,
    limits: DecodeLimits | None = None,
    workers: int = DEFAULT_WORKERS,
    progress: Callable[[int], None] | None = None,
    memory_budget: int = MEMORY_BUDGET,
    spill_dir: Path | None = None,
    *,
    seldom: bool = False,
) -> LoadedImages:
    """Decode images in a thread pool. Labels are never touched: of a tuple only the first element is read, of an object only ``.image``.

    Args:
        items: A sequence or data set of what :func:`finelens.images.discover.discover` found, paths, Pillow images, uint8 arrays (H, W, 3) or (H, W),
            uint8 tensors (3, H, W), tuples whose first element is one of these, or objects with an ``image`` attribute. Items are fetched one after
            another in the calling thread.
        limits: What to refuse and what to reduce.
        workers: Decoding threads.
        progress: Called with the number of items done so far, in the calling thread.
        memory_budget: Bytes of pixels to keep in memory.
        spill_dir: Folder for the pixels beyond the budget, in one unnamed temporary file that goes with the process; None keeps all in memory.
        seldom: Whether few pixels will be looked at. Files of a folder that decoded before, by what the cache says of their contents, are read and
            hashed; they are decoded each time they are looked at, and not kept.

    Raises:
        UserError: ``items`` or one of them is of no such kind, or the spill file cannot be written.
    """
    if isinstance(items, (str, bytes, os.PathLike)) or not (hasattr(items, "__len__") and hasattr(items, "__getitem__")):
        raise UserError(f"images must be a sequence or data set, got {type(items).__name__}; its items may be {SUPPORTED_ITEMS}")
    limits = limits or DecodeLimits()
    with KnownPhotographs(limits) if seldom else nullcontext() as known:
        jobs = (_item_job(i, items[i], limits, known) for i in range(len(items)))
        return _load(jobs, workers, progress, PixelBuffer(memory_budget, spill_dir))


Job = Callable[[], "DecodedImage | KnownImage | Failure"]


def _decode_job(path: Path, limits: DecodeLimits, box: Box | None = None) -> Job:
    return lambda: decode(path, limits, box)


def _recognise_job(path: Path, limits: DecodeLimits, known: KnownPhotographs, box: Box | None) -> Job:
    def job() -> DecodedImage | KnownImage | Failure:
        found = recognise(path, limits, known, box)
        if isinstance(found, DecodedImage):
            known.add(found.sha256, path, found.notes)
        return found

    return job


def _item_job(position: int, item: Any, limits: DecodeLimits, known: KnownPhotographs | None = None) -> tuple[str, Job]:
    if isinstance(item, ImageFile):
        path = item.path
        return item.name, _decode_job(path, limits, item.box) if known is None else _recognise_job(path, limits, known, item.box)
    image = _image_of(item)
    if isinstance(image, (str, bytes, os.PathLike)):
        path = Path(os.fsdecode(image))
        return display_name(path), _decode_job(path, limits)
    if isinstance(image, EncodedImage):
        return display_name(image.name), lambda: decode_bytes(image.data, image.name, limits)
    if isinstance(image, Image.Image):
        return f"[{position}]", lambda: decode_open_image(image, limits)
    if isinstance(image, np.ndarray):
        image = _tensor_of(image)
    if not (isinstance(image, Tensor) and image.dtype == torch.uint8 and image.ndim == 3 and image.shape[0] == 3):
        got = f"{image.dtype} of shape {tuple(image.shape)}" if isinstance(image, (Tensor, np.ndarray)) else type(image).__name__
        raise UserError(f"image [{position}] is {got}; give {SUPPORTED_ITEMS}")
    return f"[{position}]", lambda: from_pixels(image.detach().cpu(), limits)


def decode_item(position: int, item: Any, limits: DecodeLimits) -> DecodedImage | Failure:
    """Decode one of the items that :func:`load_images` takes."""
    found = _item_job(position, item, limits)[1]()
    assert not isinstance(found, KnownImage)
    return found


def _image_of(item: Any) -> Any:
    """The image part of an item; nothing else of it is looked at."""
    if isinstance(item, (str, bytes, os.PathLike, EncodedImage, Image.Image, np.ndarray, Tensor)):
        return item
    if isinstance(item, (tuple, list)) and item:
        return item[0]
    return item.image if hasattr(item, "image") else item


def _tensor_of(array: np.ndarray) -> Tensor | np.ndarray:
    if array.dtype != np.uint8 or not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3)):
        return array
    colour = np.repeat(array[:, :, None], 3, axis=2) if array.ndim == 2 else array
    return torch.from_numpy(np.array(colour)).permute(2, 0, 1)  # (3, H, W)


def _load(jobs: Iterable[tuple[str, Job]], workers: int, progress: Callable[[int], None] | None, pixels: PixelBuffer) -> LoadedImages:
    outcomes: list[tuple[str, str, str, str | None]] = []  # name, status, reason, sample id
    places: dict[str, int] = {}  # digest -> number in pixels: exact duplicates share their pixels
    copies: Counter[str] = Counter()
    by_id: dict[str, int] = {}
    with unheard():
        for done, (name, result) in enumerate(_run_ahead(jobs, workers), start=1):
            if isinstance(result, Failure):
                outcomes.append((name, result.status, result.reason, None))
            else:
                digest = result.sha256
                if digest not in places:
                    places[digest] = pixels.add(result.read if isinstance(result, KnownImage) else result.pixels)
                sample_id = f"{digest}-{copies[digest]}" if copies[digest] else digest
                copies[digest] += 1
                by_id[sample_id] = places[digest]
                outcomes.append((name, "ok", "; ".join(result.notes), sample_id))
            if progress is not None:
                progress(done)
    images = pixels.finish()
    ids = sorted(by_id)
    index = {sample_id: i for i, sample_id in enumerate(ids)}
    records = [ImageRecord(name, status, reason, key, None if key is None else index[key]) for name, status, reason, key in outcomes]
    return LoadedImages(PixelStore(ids, [images[by_id[key]] for key in ids]), records)


def _run_ahead(jobs: Iterable[tuple[str, Job]], workers: int) -> Iterator[tuple[str, DecodedImage | KnownImage | Failure]]:
    """Results in the order of the jobs. Only a few are in flight, so memory does not grow with the number of jobs."""
    waiting: deque[tuple[str, Future[DecodedImage | KnownImage | Failure]]] = deque()
    pool = ThreadPoolExecutor(max(1, workers), thread_name_prefix="finelens-decode")
    try:
        for name, job in jobs:
            waiting.append((name, pool.submit(job)))
            if len(waiting) > 2 * workers:
                name, future = waiting.popleft()
                yield name, future.result()
        while waiting:
            name, future = waiting.popleft()
            yield name, future.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)

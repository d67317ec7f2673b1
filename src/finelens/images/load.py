"""From files or Python objects to decoded images and their views, with progress."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from torch import Tensor

from finelens.core.console import Console
from finelens.errors import UserError
from finelens.images.batches import centre_batches
from finelens.images.decode import DecodeLimits
from finelens.images.discover import FoundFiles, ImageFile
from finelens.images.store import ImageItems, LoadedImages, load_images
from finelens.images.view_config import ViewConfig
from finelens.protocol import ImageRecord, ImageStore, Preprocess

BATCH = 64
_MOST_NOTES = 8


def decode_limits(views: ViewConfig, preprocess: Preprocess) -> DecodeLimits:
    """Limits of a run: originals are kept at least as large as the tower's resize."""
    return DecodeLimits(max_pixels=round(views.max_megapixels * 1e6), short_side=max(views.store_short_side, preprocess.resize_size))


def load(source: list[ImageFile] | ImageItems, limits: DecodeLimits, console: Console, spill_dir: Path | None = None) -> LoadedImages:
    """Decode files or Python objects, with a progress bar.

    Raises:
        UserError: There is no image, or not one could be read; the message gives the reasons.
    """
    if not count_images(source):
        raise UserError("there is no image to adapt to: the sequence is empty")
    say_remarks(source, console)
    with console.progress(len(source), "read images") as bar:

        def advance(done: int) -> None:
            bar.update(1)

        loaded = load_images(source, limits, progress=advance, spill_dir=spill_dir)
    if not len(loaded.store):
        reasons = "; ".join(f"{record.name}: {record.status}, {record.reason}" for record in loaded.records[:3])
        raise UserError(f"none of the {len(loaded.records)} files is an image that can be read ({reasons})")
    return loaded


def say_remarks(source: list[ImageFile] | ImageItems, console: Console) -> None:
    """Say what was left out of a folder, or followed in it."""
    for remark in source.remarks if isinstance(source, FoundFiles) else ():
        console.say(remark)


def count_images(source: list[ImageFile] | ImageItems) -> int:
    """Number of images. What has no length never reaches the loaders, which say what they take."""
    try:
        return len(source)
    except TypeError:
        raise UserError(f"images must be a folder, a sequence or a data set with a length, got {type(source).__name__}") from None


def status_counts(records: Sequence[ImageRecord]) -> dict[str, int]:
    """Number of files by status, ``ok`` first."""
    counts: dict[str, int] = {"ok": 0}
    for record in records:
        counts[record.status] = counts.get(record.status, 0) + 1
    return counts


def say_notes(records: Sequence[ImageRecord], console: Console) -> None:
    """Say how many readable files were noted, and why: each kind of note with its number and a first file, the most frequent first."""
    noted = [(note, record.name) for record in records if record.status == "ok" and record.reason for note in record.reason.split("; ")]
    if not noted:
        return
    # Notes that differ in their numbers are of one kind.
    kinds = [re.sub(r"\d[\d.e+-]*", "#", note) for note, _ in noted]
    files = sum(record.status == "ok" and bool(record.reason) for record in records)
    console.say(f"noted: {files} of {len(records)} files were read with a note (column reason)")
    for kind, count in Counter(kinds).most_common(_MOST_NOTES):
        note, name = noted[kinds.index(kind)]
        console.say(f"  {count} x {note} (first {name})")


def centre_views(store: ImageStore, preprocess: Preprocess, console: Console, what: str) -> Iterator[Tensor]:
    """Centre views of a store in its order, in uint8 batches (B, 3, S, S), with a progress bar called ``what``."""
    with console.progress(len(store), what) as bar:
        for index, views in centre_batches(store, preprocess, BATCH):
            yield views
            bar.update(len(index))

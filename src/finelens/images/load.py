"""From files or Python objects to decoded images and their views, with progress."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from torch import Tensor

from finelens.core.console import Console
from finelens.errors import UserError
from finelens.images.batches import centre_batches
from finelens.images.decode import DecodeLimits
from finelens.images.discover import ImageFile
from finelens.images.store import ImageItems, LoadedImages, load_images
from finelens.images.view_config import ViewConfig
from finelens.protocol import ImageRecord, ImageStore, Preprocess

BATCH = 64
_MOST_NOTES = 8


def decode_limits(views: ViewConfig, preprocess: Preprocess) -> DecodeLimits:
    """Limits of a run: originals are kept at least as large as the tower's resize."""
    return DecodeLimits(max_pixels=round(views.max_megapixels * 1e6), short_side=max(views.store_short_side, preprocess.resize_size))


def load(
    source: list[ImageFile] | ImageItems, limits: DecodeLimits, console: Console, spill_dir: Path | None = None, *, seldom: bool = False
) -> LoadedImages:
    """Decode files or Python objects, with a progress bar; ``seldom`` as for :func:`finelens.images.store.load_images`.

    Raises:
        UserError: There is no image, or not one could be read; the message gives the reasons.
    """
    if not count_images(source):
        raise UserError("there is no image to adapt to: the sequence is empty")
    say_remarks(source, console)
    with console.progress(len(source), "read images") as bar:

        def advance(done: int) -> None:
            bar.update(1)

        loaded = load_images(source, limits, progress=advance, spill_dir=spill_dir, seldom=seldom)
    need_one(loaded)
    return loaded


def need_one(loaded: LoadedImages) -> None:
    """Refuse files none of which is an image.

    Raises:
        UserError: None of them can be read.
    """
    if not len(loaded.store):
        raise none_read(loaded.records, len(loaded.records))


def none_read(first: Sequence[ImageRecord], files: int) -> UserError:
    """What to say of so many files none of which is an image, of which these are the first."""
    reasons = "; ".join(f"{record.name}: {record.status}, {record.reason}" for record in first[:3])
    return UserError(f"none of the {files} files is an image that can be read ({reasons}); give a folder of whole photographs")


def say_remarks(source: list[ImageFile] | ImageItems, console: Console) -> None:
    """Say what was left out of a folder, or followed in it."""
    for remark in getattr(source, "remarks", ()):
        console.say(remark)


def count_images(source: list[ImageFile] | ImageItems) -> int:
    """Number of images. What has no length never reaches the loaders, which say what they take."""
    try:
        return len(source)
    except TypeError:
        raise UserError(f"images must be a folder, a sequence or a data set with a length, got {type(source).__name__}") from None


def status_counts(records: Iterable[ImageRecord]) -> dict[str, int]:
    """Number of files by status, ``ok`` first."""
    tally = Tally()
    tally.add(records)
    return tally.counts


class Tally:
    """What became of the files, counted as they come: by status, and by kind of note. Its size does not depend on their number."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {"ok": 0}
        self._noted = 0
        self._kinds: Counter[str] = Counter()
        self._first: dict[str, tuple[str, str]] = {}

    @property
    def files(self) -> int:
        """Number of files."""
        return sum(self.counts.values())

    def add(self, records: Iterable[ImageRecord]) -> None:
        """Count further files."""
        for record in records:
            self.counts[record.status] = self.counts.get(record.status, 0) + 1
            if record.status != "ok" or not record.reason:
                continue
            self._noted += 1
            for note in record.reason.split("; "):
                # Notes that differ in their numbers are of one kind.
                kind = re.sub(r"\d[\d.e+-]*", "#", note)
                self._kinds[kind] += 1
                self._first.setdefault(kind, (note, record.name))

    def merge(self, other: Tally) -> None:
        """Count what another one has counted."""
        for status, count in other.counts.items():
            self.counts[status] = self.counts.get(status, 0) + count
        self._noted += other._noted
        self._kinds.update(other._kinds)
        self._first = {**other._first, **self._first}

    def say(self, console: Console, earlier: int = 0) -> None:
        """Say the numbers by status, and how many of the files an earlier command had done."""
        noun = "file" if self.files == 1 else "files"
        before = f" ({earlier} by an earlier command)" if earlier else ""
        by_status = ", ".join(f"{count} {status}" for status, count in self.counts.items())
        console.report(f"{self.files} {noun}{before}: {by_status}", "files", files=self.files, earlier=earlier, counts=self.counts)
        # Also for those who asked to hear of nothing but what is wrong.
        if unread := self.files - self.counts["ok"]:
            console.warn(f"{unread} of {self.files} {noun} could not be read (column status)")

    def say_notes(self, console: Console) -> None:
        """Say how many readable files were noted, and why: each kind of note with its number and a first file, the most frequent first."""
        if not self._noted:
            return
        console.say(f"noted: {self._noted} of {self.files} files were read with a note (column reason)")
        for kind, count in self._kinds.most_common(_MOST_NOTES):
            note, name = self._first[kind]
            console.say(f"  {count} x {note} (first {name})")


def say_notes(records: Iterable[ImageRecord], console: Console) -> None:
    """:meth:`Tally.say_notes` of all files at once."""
    tally = Tally()
    tally.add(records)
    tally.say_notes(console)


def centre_views(store: ImageStore, preprocess: Preprocess, console: Console, what: str) -> Iterator[Tensor]:
    """Centre views of a store in its order, in uint8 batches (B, 3, S, S), with a progress bar called ``what``."""
    with console.progress(len(store), what) as bar:
        for index, views in centre_batches(store, preprocess, BATCH):
            yield views
            bar.update(len(index))

"""What a run would do and for how long, without doing it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from finelens.backbones.registry import is_local
from finelens.core.console import Console, duration
from finelens.engine.engine import Engine
from finelens.feature_store.encoder import FeatureEncoder
from finelens.images.batches import centre_batches
from finelens.images.load import need_one
from finelens.images.store import load_images
from finelens.intake.taken import Taken
from finelens.runs.config import RunConfig
from finelens.runs.feature_source import FeatureSource
from finelens.runs.inputs import Given, warn_of_doubts, warn_of_hints
from finelens.runs.photo_source import PhotoSource
from finelens.runs.prepare import Prepared, prepare
from finelens.training.estimate import estimate, untouched

# Photographs that are read and encoded to see how long it takes here.
PROBE = 8


@dataclass(frozen=True)
class Plan:
    """What a run would do.

    Attributes:
        photos: What it would read.
        files: How many files or rows there are.
        classes: How many class names.
        method: What it would run.
        summary: One sentence on that.
        backbone: The model.
        out: The run folder.
        encoding: Seconds for looking at the photographs, less for those that were encoded before; None where it is not known.
        training: Seconds of training; 0 for a method without, None where it is not known.
        note: What the times rest on, or why they are not known.
    """

    photos: str
    files: int
    classes: int
    method: str
    summary: str
    backbone: str
    out: str
    encoding: float | None
    training: float | None
    note: str

    @property
    def seconds(self) -> float | None:
        """The whole time; None where a part of it is not known."""
        return None if self.encoding is None or self.training is None else self.encoding + self.training

    def lines(self) -> list[str]:
        """For a person."""
        parts = [("encoding", self.encoding), ("training", self.training)]
        told = [f"{name} {duration(value, rough=True)}" for name, value in parts if value is not None and value >= 1]
        known = None if self.seconds is None else "a moment" if self.seconds < 1 else f"about {duration(self.seconds, rough=True)}"
        total = "not known" if known is None else known + (f" ({', '.join(told)})" if told else "")
        return [
            "nothing was written; without --dry-run this would",
            f"  read      {self.photos}: {self.files:,} {'file' if self.files == 1 else 'files'}",
            f"  sort into {self.classes:,} {'class' if self.classes == 1 else 'classes'}",
            f"  with      method {self.method}: {self.summary}",
            f"  starting  from {self.backbone}",
            f"  write     {self.out}",
            f"  take      {total}; {self.note}",
        ]


def plan_run(config: RunConfig, out: Path, console: Console, taken: Taken | None = None) -> Plan:
    """Count what there is and measure how long a few photographs take. Texts that are encoded for it go to the cache, as a run's do.

    Args:
        config: The run.
        out: Its folder, which is not touched.
        console: What to say.
        taken: Rows, names and answers of the file of another tool; None in a run without.

    Raises:
        UserError: What the run itself would refuse.
    """
    given = Given.of(config, None, taken)
    warn_of_doubts(config, console, taken)
    warn_of_hints(given.left_out, console)
    source, names = given.source, given.names
    files = source.listing().count
    encoding: float | None = None
    training: float | None = None if config.entry.trains else 0.0
    if isinstance(source, FeatureSource):
        encoding, note = 0.0, "features are read, not encoded; a method without training takes seconds"
    elif type(source) is not PhotoSource:
        note = "shards are not looked into for this"
    elif not is_local(config.backbone):
        note = "weights are not fetched for this; finelens doctor --backbone measures them"
    else:
        prepared = prepare(config, names, given.descriptions, console, source, taxonomy=given.taxonomy)
        each, known = _seconds_each(prepared, source)
        encoding = files * each
        if config.entry.trains:
            training = estimate(prepared.task, prepared.engine, files, config.training.epochs, draws=config.training.cached_prefix).seconds
        before = f", {known} of which were encoded before" if known else ""
        note = f"measured on {min(PROBE, files)} of them{before}; a start, a method without training and the report take seconds more"
    return Plan(config.photos, files, len(names), config.method, config.entry.summary, config.backbone, str(out), encoding, training, note)


def _seconds_each(prepared: Prepared, source: PhotoSource) -> tuple[float, int]:
    """Seconds to read and encode one photograph, with the further views of a method that answers from many, and how many were encoded before.

    Those that were encoded before stand for as large a part of all.
    """
    step = max(1, len(source.files) // PROBE)
    probe = source.files[::step][:PROBE]
    times = []
    # The first pass also opens what reads them.
    for _ in range(2):
        start = time.perf_counter()
        loaded = load_images(probe, prepared.limits)
        times.append((time.perf_counter() - start) / len(probe))
    read = min(times)
    if len(probe) == len(source.files):
        need_one(loaded)
    if not len(loaded.store):
        return read, 0
    (_, pixels), *_ = centre_batches(loaded.store, prepared.engine.backbone.preprocess, PROBE)
    known = FeatureEncoder(prepared.engine, prepared.limits.short_side).known(loaded.store)
    further = 0 if prepared.task.inference is None else prepared.task.inference.count
    views = 1 - known / len(loaded.store) + further
    return read + (views * encoding_seconds(prepared.engine, pixels) if views else 0.0), known


def encoding_seconds(engine: Engine, pixels: Tensor) -> float:
    """Seconds that the tower takes for one of some centre views (B, 3, S, S) uint8, the better of two passes."""
    with untouched(engine):
        return min(_timed(engine, pixels) for _ in range(2)) / len(pixels)


def _timed(engine: Engine, pixels: Tensor) -> float:
    start = time.perf_counter()
    # What comes back to the host has been computed.
    engine.encode_frozen(pixels).global_.cpu()
    return time.perf_counter() - start

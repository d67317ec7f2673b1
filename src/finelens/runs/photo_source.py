"""Photographs: a folder of them, a list, shards, or what Python gives."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from finelens.backbones.features_only import KIND
from finelens.classes.labels import read_labels
from finelens.core.console import Console
from finelens.errors import UserError
from finelens.feature_store.encoder import FeatureEncoder
from finelens.feature_store.prototypes import Prototypes
from finelens.images.complaints import note_complaints
from finelens.images.decode import DecodeLimits
from finelens.images.discover import ImageFile, discover
from finelens.images.load import load
from finelens.images.shards import ChosenImages, ShardImages
from finelens.images.store import ImageItems
from finelens.methods.registry import Method
from finelens.protocol import Backbone, ImageRecord, InferenceViews, Loaded
from finelens.runs.config import RunConfig
from finelens.runs.predict import Predictions, Request, item_groups, predict_items
from finelens.runs.source import Listing, Source, digest_of, load_run_backbone
from finelens.storage.cache import spill_folder

FROM_PYTHON = "(images from Python)"


@dataclass(frozen=True)
class PhotoSource:
    """Photographs: a folder of them, or what Python gives.

    Attributes:
        name: The folder as the user wrote it.
        folder: Where they are; None where they come from Python.
        items: What Python gave.
        strict: Whether files that decode with complaints get a note.
        kept: Names to which the source was narrowed; None for all.
        listed: The files themselves in the place of a folder, in the order that was asked for.
    """

    name: str = FROM_PYTHON
    folder: Path | None = None
    items: ImageItems = ()
    strict: bool = False
    kept: Container[str] | None = None
    listed: tuple[ImageFile, ...] | None = None

    @cached_property
    def files(self) -> list[ImageFile]:
        """The files that may be photographs."""
        found = list(self.listed) if self.listed is not None else [] if self.folder is None else discover(self.folder)
        return found if self.kept is None else [file for file in found if file.name in self.kept]

    @property
    def inputs(self) -> list[ImageFile] | ImageItems:
        """Files, or what Python gave."""
        return self.items if self.folder is None else self.files

    def named(self, wanted: Callable[[str], bool]) -> list[ImageFile] | ImageItems:
        """Inputs with a wanted name."""
        return [file for file in self.files if wanted(file.name)]

    def backbone(self, wanted: str | None, prototypes: str | Path | None) -> str:
        """What the user wants, else the embedded model."""
        return wanted or "embedded"

    def check(self, method: Method) -> None:
        """The folder has to be there; any method can use it."""
        _ = self.files

    def check_views(self, views: InferenceViews | None, method: str) -> None:
        """Any view can be had of a photograph."""

    def open_backbone(self, config: RunConfig, prototypes: Prototypes | None, console: Console) -> Backbone:
        """Load the model; photographs need one."""
        if config.backbone == KIND:
            raise UserError("--backbone features is what a run on a feature file and --prototypes gets; with photographs give a model")
        return load_run_backbone(config, prototypes)

    def load(self, limits: DecodeLimits, console: Console, *, seldom: bool = False) -> Loaded:
        """Decode them, with notes where the run is strict."""
        loaded = load(self.inputs, limits, console, spill_folder(), seldom=seldom)
        return replace(loaded, records=note_complaints(self.files, loaded.records, limits, console)) if self.strict else loaded

    @property
    def names(self) -> Sequence[str] | None:
        """Those of a list."""
        return None if self.listed is None else [file.name for file in self.listed]

    def labels(
        self, labels: str | Path, classes: Sequence[str], left_out: list[str] | None = None, *, strangers: int | None = None
    ) -> dict[str, int]:
        """By folder or from a file."""
        return read_labels(self.name, labels, classes, names=self.names, left_out=left_out, strangers=strangers)

    def only(self, names: Container[str]) -> PhotoSource:
        """The files of those names."""
        return replace(self, kept=names)

    def answers(self, asked: Request) -> Predictions:
        """Decode and encode group by group."""
        found = predict_items(asked, self.inputs)
        return replace(found, records=note_complaints(self.files, found.records, asked.limits, asked.console)) if self.strict else found

    def parts(self, asked: Request, within: range | None = None) -> Iterator[Predictions]:
        """Decode and encode group by group."""
        within = range(len(self.inputs)) if within is None else within
        start = within.start
        for part in item_groups(asked, self.inputs, within):
            end = start + len(part.records)
            if self.strict:
                part = replace(part, records=note_complaints(self.files[start:end], part.records, asked.limits, Console(enabled=False)))
            yield part
            start = end

    def listing(self) -> Listing:
        """Files by name, size and time of change; what Python gave by its number only."""
        if self.folder is None:
            return Listing(len(self.items), "")
        return Listing(len(self.files), digest_of((f"{file.name}{file.box or ''}", file.path) for file in self.files))

    def joint_features(
        self, encoder: FeatureEncoder, limits: DecodeLimits, wanted: Callable[[str], bool], console: Console
    ) -> tuple[Sequence[ImageRecord], Sequence[str], Tensor]:
        """Encode those with a wanted name."""
        images = self.named(wanted)
        if not len(images):
            return [], [], torch.zeros(0, encoder.engine.backbone.dim)
        loaded = load(images, limits, console)
        return loaded.records, loaded.store.ids, encoder.centre(loaded.store, console, "look at the run's photographs").global_


@dataclass(frozen=True)
class ShardSource(PhotoSource):
    """Photographs in tar shards, in Parquet files, or in what an index file names.

    Attributes:
        images: They, by position.
    """

    images: ShardImages = field(kw_only=True)

    @property
    def files(self) -> list[ImageFile]:
        """None: the files that there are hold many photographs each."""
        return []

    @property
    def inputs(self) -> ImageItems:
        """Images of the shards."""
        return self.images if self.kept is None else self.named(self.kept.__contains__)

    def named(self, wanted: Callable[[str], bool]) -> ImageItems:
        """Images with a wanted name."""
        return ChosenImages(self.images, [i for i, name in enumerate(self.images.names) if wanted(name)])

    def check(self, method: Method) -> None:
        """They are there, and any method can use them."""

    @property
    def names(self) -> Sequence[str]:
        """As the shards have them."""
        return self.images.names

    def listing(self) -> Listing:
        """What they lie in by name, size and time of change."""
        return Listing(len(self.images), digest_of((path.name, path) for path in self.images.files))


# Of which nothing more is known: enough to prepare a run whose images are loaded elsewhere.
PHOTOGRAPHS: Source = PhotoSource()

"""Rows of features: a file, a folder of shards, or an array from Python."""

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
from finelens.feature_store.crops import crops_for
from finelens.feature_store.encoder import FeatureEncoder, tower_digest
from finelens.feature_store.files import FeatureFile, feature_metadata, read_features, read_part
from finelens.feature_store.folder import FeatureFolder
from finelens.feature_store.prototypes import Prototypes, check_width, feature_backbone
from finelens.feature_store.sampled import MANY
from finelens.feature_store.store import feature_rows
from finelens.images.decode import DecodeLimits
from finelens.images.load import BATCH
from finelens.methods.registry import Method, all_methods
from finelens.protocol import Backbone, ImageRecord, InferenceViews, Loaded
from finelens.runs.config import RunConfig
from finelens.runs.predict import Predictions, Request, feature_groups, folder_groups, predict_features
from finelens.runs.source import Listing, digest_of, load_run_backbone


@dataclass(frozen=True)
class FeatureSource:
    """Rows of features: a file, or an array from Python.

    Attributes:
        name: The file as the user wrote it.
        path: The file; None for an array.
        row_names: Text file of row names.
        given: The array.
        kept: Names to which the source was narrowed; None for all.
    """

    name: str
    path: Path | None = None
    row_names: Path | None = None
    given: FeatureFile | None = field(default=None, compare=False)
    kept: Container[str] | None = None

    @cached_property
    def file(self) -> FeatureFile:
        """The rows, read."""
        if self.given is not None:
            return self.given
        assert self.path is not None
        return read_features(self.path, self.row_names)

    @property
    def whole(self) -> FeatureFile:
        """All rows: the same, but where a run holds a part of them."""
        return self.file

    def backbone(self, wanted: str | None, prototypes: str | Path | None) -> str:
        """The model that the file names; none beside prototypes."""
        known = None if self.path is None else feature_metadata(self.path).get("backbone")
        if prototypes is not None:
            return KIND
        if not known and wanted is not None:
            raise UserError(
                f"{self.name} was not written by finelens features, so --backbone {wanted} cannot be checked against it; give --prototypes"
            )
        if not known:
            raise UserError(f"{self.name} does not name the model of its features: give that model's class prototypes with --prototypes FILE")
        return wanted or known

    def check(self, method: Method) -> None:
        """Refuse a method that looks at more of a photograph than there is: features of the whole, and perhaps of its crops."""
        crops = self.file.store.crops
        if method.trains or (method.needs_pixels and crops is None):
            names = ", ".join(other.name for other in all_methods() if not other.needs_pixels)
            raise UserError(
                f"method {method.name} needs photographs, and {self.name if self.path else 'the array'} holds features; "
                f"methods that take features: {names}; and wca where finelens features --crops 60 wrote them"
            )
        if "support" in method.needs:
            raise UserError(
                f"method {method.name} encodes a support set with the model of the photographs, which a feature file lacks; give the photographs"
            )

    def check_views(self, views: InferenceViews | None, method: str) -> None:
        """Refuse a method whose crops the file does not hold."""
        if views is not None:
            crops_for(self.file.store.crops, views, method)

    def open_backbone(self, config: RunConfig, prototypes: Prototypes | None, console: Console) -> Backbone:
        """The features themselves, or the model that the file was made with, checked against it."""
        file = self.file
        if prototypes is not None:
            check_width(prototypes, file.dim, "features have" if self.path is None else f"{file.path} has")
        if config.backbone == KIND:
            if prototypes is None:
                raise UserError("--backbone features is what a run on a feature file and --prototypes gets; with photographs give a model")
            return feature_backbone(file, prototypes, config.logit_scale, console)
        backbone = load_run_backbone(config, prototypes)
        if file.tower != tower_digest(backbone):
            raise UserError(
                f"{file.path} was made with other weights or preprocessing than backbone {config.backbone} has now; "
                "write it again with finelens features, or give the --backbone it was made with"
            )
        return backbone

    def load(self, limits: DecodeLimits, console: Console, *, seldom: bool = False) -> Loaded:
        """The rows, as they were read."""
        return self.file

    @property
    def names(self) -> Sequence[str]:
        """As they are stored."""
        return [record.name for record in self.whole.records]

    def labels(
        self, labels: str | Path, classes: Sequence[str], left_out: list[str] | None = None, *, strangers: int | None = None
    ) -> dict[str, int]:
        """By stored path or from a file."""
        return read_labels(self.name, labels, classes, names=self.names, left_out=left_out, strangers=strangers)

    def only(self, names: Container[str]) -> FeatureSource:
        """The rows of those names."""
        return replace(self, given=self.whole, kept=names)

    def answers(self, asked: Request) -> Predictions:
        """From the rows; nothing is encoded."""
        for doubt in self.file.doubts:
            asked.console.warn(doubt)
        found = predict_features(asked, self.whole)
        return found if self.kept is None else replace(found, records=[record for record in found.records if record.name in self.kept])

    def parts(self, asked: Request, within: range | None = None) -> Iterator[Predictions]:
        """From the rows, some at a time."""
        for doubt in self.file.doubts:
            asked.console.warn(doubt)
        return feature_groups(asked, self.file, within)

    def listing(self) -> Listing:
        """The file by name, size and time of change."""
        named = [path for path in (self.path, self.row_names) if path is not None]
        return Listing(len(self.file.records), digest_of((path.name, path) for path in named))

    def joint_features(
        self, encoder: FeatureEncoder, limits: DecodeLimits, wanted: Callable[[str], bool], console: Console
    ) -> tuple[Sequence[ImageRecord], Sequence[str], Tensor]:
        """All rows, as the centred backbone gives them."""
        file = self.whole
        if file.tower != tower_digest(encoder.engine.backbone):
            raise UserError(f"{file.path} was written again with other weights or preprocessing than the run's; encode with its backbone")
        rows = [encoder.engine.encode_frozen(part).global_ for part in feature_rows(file.store.features, BATCH)]
        return file.records, file.store.ids, torch.cat(rows)


@dataclass(frozen=True)
class FolderSource(FeatureSource):
    """A feature folder: a shard at a time for whoever answers row by row; all of it in memory for whoever needs all rows at once, or of very many a
    part that knows where the others are.

    Attributes:
        also: Names of files that are in the part in any case.
    """

    also: frozenset[str] = frozenset()

    @cached_property
    def file(self) -> FeatureFile:
        """The rows, read; of very many a part of them."""
        if self.given is not None:
            return self.given
        assert self.path is not None
        return read_part(self.path, also=self.also) if self.is_many else read_features(self.path)

    @property
    def whole(self) -> FeatureFile:
        """All rows, for whoever measures answers or looks at photographs by name."""
        return self._read if self.given is None and self.is_many else self.file

    @cached_property
    def _read(self) -> FeatureFile:
        assert self.path is not None
        return read_features(self.path)

    @property
    def names(self) -> Sequence[str]:
        """As they are stored; of very many without their features."""
        return self.folder.names() if self.given is None and self.is_many else super().names

    @property
    def is_many(self) -> bool:
        """Whether it holds more photographs than a run holds."""
        return self.folder.rows > MANY

    @cached_property
    def folder(self) -> FeatureFolder:
        """The folder."""
        assert self.path is not None
        return FeatureFolder(self.path)

    def parts(self, asked: Request, within: range | None = None) -> Iterator[Predictions]:
        """From the shards, one after another."""
        return folder_groups(asked, self.folder, within)

    def listing(self) -> Listing:
        """What the manifest says."""
        return Listing(len(self.folder), self.folder.digest)

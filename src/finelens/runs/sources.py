"""Where images come from: photographs or rows of features. Which of the two is asked once, at the door; what differs stands behind it."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from finelens.backbones.features_only import KIND
from finelens.backbones.registry import load_backbone
from finelens.classes.labels import read_labels
from finelens.classes.text_files import split_lines
from finelens.core.console import Console
from finelens.errors import UserError
from finelens.feature_store.crops import crops_for
from finelens.feature_store.encoder import FeatureEncoder, tower_digest
from finelens.feature_store.extra import ExtraFiles
from finelens.feature_store.files import FeatureFile, feature_metadata, given_features, is_matrix, read_features
from finelens.feature_store.folder import FeatureFolder
from finelens.feature_store.paths import is_feature_path
from finelens.feature_store.prototypes import Prototypes, check_width, feature_backbone
from finelens.feature_store.store import feature_rows
from finelens.images.complaints import note_complaints
from finelens.images.decode import DecodeLimits
from finelens.images.discover import STANDARD_INPUT, ImageFile, discover, display_name, shards_at
from finelens.images.load import BATCH, load
from finelens.images.shards import ShardImages, shard_images
from finelens.images.signatures import archive_kind
from finelens.images.store import ImageItems
from finelens.methods.registry import Method, all_methods
from finelens.protocol import Backbone, ImageRecord, InferenceViews, Loaded
from finelens.runs.config import RunConfig
from finelens.runs.model import Model
from finelens.runs.predict import Predictions, feature_groups, folder_groups, item_groups, predict_features, predict_items
from finelens.storage.cache import spill_folder

FROM_PYTHON = "(images from Python)"
FEATURES_FROM_PYTHON = "(features from Python)"
LIST_SUFFIXES = (".txt", ".lst")


@dataclass(frozen=True)
class Listing:
    """Inputs before they are read.

    Attributes:
        count: How many there are.
        digest: Hash of their names, sizes and times of change.
    """

    count: int
    digest: str


class Source(Protocol):
    """Images of a run or of a question, before anything is read. Each method reads what it needs, once."""

    @property
    def name(self) -> str:
        """What messages and the configuration call it."""
        ...

    def backbone(self, wanted: str | None, prototypes: str | Path | None) -> str:
        """Specification of the model of a run, as ``load_backbone`` takes it; ``features`` where features and prototypes are all that is needed.

        Args:
            wanted: What the user asked for; None for what a feature file says, else ``embedded``.
            prototypes: The user's prototypes file.

        Raises:
            UserError: The source cannot be used so.
        """
        ...

    def check(self, method: Method) -> None:
        """Refuse a method that needs what is not there, and a source that is not there itself."""
        ...

    def check_views(self, views: InferenceViews | None, method: str) -> None:
        """Refuse a method whose further views of an image cannot be had."""
        ...

    def open_backbone(self, config: RunConfig, prototypes: Prototypes | None, console: Console) -> Backbone:
        """The backbone of a run, checked against the source and the prototypes.

        Raises:
            UserError: It cannot be loaded or does not fit.
        """
        ...

    def load(self, limits: DecodeLimits, console: Console) -> Loaded:
        """The images, decoded where they are photographs.

        Raises:
            UserError: None can be read.
        """
        ...

    def labels(self, labels: str | Path, classes: Sequence[str], left_out: list[str] | None = None) -> dict[str, int]:
        """True classes by name of the image, see :func:`finelens.classes.labels.read_labels`."""
        ...

    def only(self, names: Container[str]) -> Source:
        """This source, of which only inputs with one of the names are told of."""
        ...

    def answers(
        self, model: Model, limits: DecodeLimits, console: Console, *, zero_shot: bool = True, extra: ExtraFiles | None = None
    ) -> Predictions:
        """Logits by branch, and with the unadapted model's beside them unless that is not asked for.

        Raises:
            UserError: The model cannot classify these images.
        """
        ...

    def parts(
        self,
        model: Model,
        limits: DecodeLimits,
        console: Console,
        *,
        zero_shot: bool = True,
        extra: ExtraFiles | None = None,
        within: range | None = None,
    ) -> Iterator[Predictions]:
        """As :meth:`answers`, some inputs at a time and in their order, so that memory does not grow with their number.

        Args:
            model: The model.
            limits: Decode limits of the run.
            console: Progress.
            zero_shot: Whether to ask the unadapted model as well.
            extra: Features of further encoders.
            within: Positions of the inputs; all by default.
        """
        ...

    def listing(self) -> Listing:
        """How many inputs there are, and a digest that changes when one of them does."""
        ...

    def joint_features(
        self, encoder: FeatureEncoder, limits: DecodeLimits, wanted: Callable[[str], bool], console: Console
    ) -> tuple[Sequence[ImageRecord], Sequence[str], Tensor]:
        """Records of the inputs, at least of those with a wanted name, and ids and unit-norm features (N, E) at the positions that they name."""
        ...


def source_of(images: object) -> PhotoSource | FeatureSource:
    """The door for what Python gives: a path as for :func:`source_at`, a sequence or data set of images, or features (N, D) in floating point."""
    if isinstance(images, (str, Path)):
        return source_at(images)
    if is_matrix(images):
        return FeatureSource(FEATURES_FROM_PYTHON, given=given_features(cast(Any, images)))
    return PhotoSource(items=cast(ImageItems, images))


def source_at(
    path: str | Path, *, strict: bool = False, row_names: str | Path | None = None, logit_scale: float | None = None
) -> PhotoSource | FeatureSource:
    """The door for paths: photographs or features?

    Args:
        path: A folder or a feature file.
        strict: Whether photographs that decode although the image library complained get a note.
        row_names: Text file of row names for a feature file of another origin.
        logit_scale: What the user says of the features' model; only refused here, where it could have no effect.

    Raises:
        UserError: An option has no effect on this kind of source.
    """
    if is_feature_path(path):
        if strict:
            raise UserError(f"--strict looks into photographs, and {path} holds features; leave it out")
        if Path(path).is_dir():
            if row_names is not None:
                raise UserError(f"{path} names its rows itself; leave --row-names out")
            return FolderSource(str(path), Path(path))
        return FeatureSource(str(path), Path(path), None if row_names is None else Path(row_names))
    for name, value in (("--row-names", row_names), ("--logit-scale", logit_scale)):
        if value is not None:
            raise UserError(f"{name} has an effect on feature files only, and {path} is none; leave it out")
    images = shard_images(Path(path))
    if images is not None:
        if strict:
            raise UserError(f"--strict looks into files of photographs, and {path} holds shards; leave it out")
        return ShardSource(str(path), Path(path), images=images)
    return PhotoSource(str(path), Path(path), strict=strict)


def asked_at(path: str | Path, *, strict: bool = False, row_names: str | Path | None = None) -> PhotoSource | FeatureSource:
    """The door for what a finished run is asked about: as :func:`source_at`, and also one photograph, a list of them, or ``-``.

    Args:
        path: A folder, a feature file, one photograph, a file ``.txt`` or ``.lst`` of paths, one a line, or ``-`` for such a list on standard input.
        strict: See :func:`source_at`.
        row_names: See :func:`source_at`.

    Raises:
        UserError: An option has no effect on this kind of source, or a list is empty, no text or names nothing that exists.
    """
    source = source_at(path, strict=strict, row_names=row_names)
    if type(source) is not PhotoSource:
        return source
    if str(path) == STANDARD_INPUT:
        return replace(source, listed=_listed(sys.stdin.buffer.read(), "standard input"))
    place = Path(path)
    if not place.is_file() or archive_kind(place) is not None:
        return source
    if place.suffix.lower() in LIST_SUFFIXES:
        return replace(source, listed=_listed(place.read_bytes(), str(path)))
    return replace(source, listed=(ImageFile(os.path.abspath(place), display_name(path)),))


def _listed(text: bytes, where: str) -> tuple[ImageFile, ...]:
    """The files of a list; paths are relative to the working directory, as they are for any other command."""
    try:
        lines = [line.strip() for line in split_lines(text.decode("utf-8-sig"))]
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: not a list of paths in UTF-8 (byte {error.start}); write one path a line") from error
    names = [line for line in lines if line]
    if not names:
        raise UserError(f"{where}: no paths; write one path a line")
    if any("\0" in name for name in names):
        raise UserError(f"{where}: not a list of paths; write one path a line")
    files = tuple(ImageFile(os.path.abspath(Path(name).expanduser()), display_name(name)) for name in names)
    if not any(os.path.lexists(file.place) for file in files):
        # A list that was made inside the folder of the photographs: every row would say that its file is gone.
        raise UserError(
            f"{where}: nothing it names exists ({files[0].name} is the first); "
            "relative paths count from the folder where the command runs, so run it from where they lead to the photographs, or write full paths"
        )
    return files


def source_of_run(config: RunConfig) -> PhotoSource | FeatureSource:
    """The source that a run's configuration names."""
    return source_at(config.photos, strict=config.strict, row_names=config.row_names_file, logit_scale=config.logit_scale)


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
        return _load_backbone(config, prototypes)

    def load(self, limits: DecodeLimits, console: Console) -> Loaded:
        """Decode them, with notes where the run is strict."""
        loaded = load(self.inputs, limits, console, spill_folder())
        return replace(loaded, records=note_complaints(self.files, loaded.records, console)) if self.strict else loaded

    def labels(self, labels: str | Path, classes: Sequence[str], left_out: list[str] | None = None) -> dict[str, int]:
        """By folder or from a file, about whatever lies in the folder or is in the list."""
        names = None if self.listed is None else [file.name for file in self.listed]
        return read_labels(self.name, labels, classes, names=names, left_out=left_out)

    def only(self, names: Container[str]) -> PhotoSource:
        """The files of those names."""
        return replace(self, kept=names)

    def answers(
        self, model: Model, limits: DecodeLimits, console: Console, *, zero_shot: bool = True, extra: ExtraFiles | None = None
    ) -> Predictions:
        """Decode and encode group by group."""
        found = predict_items(model, self.inputs, limits, console, zero_shot=zero_shot, extra=extra)
        return replace(found, records=note_complaints(self.files, found.records, console)) if self.strict else found

    def parts(
        self,
        model: Model,
        limits: DecodeLimits,
        console: Console,
        *,
        zero_shot: bool = True,
        extra: ExtraFiles | None = None,
        within: range | None = None,
    ) -> Iterator[Predictions]:
        """Decode and encode group by group."""
        within = range(len(self.inputs)) if within is None else within
        start = within.start
        for part in item_groups(model, self.inputs, limits, console, zero_shot=zero_shot, extra=extra, within=within):
            end = start + len(part.records)
            if self.strict:
                part = replace(part, records=note_complaints(self.files[start:end], part.records, Console(enabled=False)))
            yield part
            start = end

    def listing(self) -> Listing:
        """Files by name, size and time of change; what Python gave by its number only."""
        if self.folder is None:
            return Listing(len(self.items), "")
        return Listing(len(self.files), _digest((file.name, file.path) for file in self.files))

    def joint_features(
        self, encoder: FeatureEncoder, limits: DecodeLimits, wanted: Callable[[str], bool], console: Console
    ) -> tuple[Sequence[ImageRecord], Sequence[str], Tensor]:
        """Encode those with a wanted name."""
        files = [file for file in self.files if wanted(file.name)]
        if not files:
            return [], [], torch.zeros(0, encoder.engine.backbone.dim)
        loaded = load(files, limits, console)
        return loaded.records, loaded.store.ids, encoder.centre(loaded.store, console, "look at the run's photographs").global_


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
        backbone = _load_backbone(config, prototypes)
        if file.tower != tower_digest(backbone):
            raise UserError(
                f"{file.path} was made with other weights or preprocessing than backbone {config.backbone} has now; "
                "write it again with finelens features, or give the --backbone it was made with"
            )
        return backbone

    def load(self, limits: DecodeLimits, console: Console) -> Loaded:
        """The rows, as they were read."""
        return self.file

    def labels(self, labels: str | Path, classes: Sequence[str], left_out: list[str] | None = None) -> dict[str, int]:
        """By stored path or from a file."""
        return read_labels(self.name, labels, classes, names=[record.name for record in self.file.records], left_out=left_out)

    def only(self, names: Container[str]) -> FeatureSource:
        """The rows of those names."""
        return replace(self, given=self.file, kept=names)

    def answers(
        self, model: Model, limits: DecodeLimits, console: Console, *, zero_shot: bool = True, extra: ExtraFiles | None = None
    ) -> Predictions:
        """From the rows; nothing is encoded."""
        for doubt in self.file.doubts:
            console.warn(doubt)
        found = predict_features(model, self.file, zero_shot=zero_shot, extra=extra)
        return found if self.kept is None else replace(found, records=[record for record in found.records if record.name in self.kept])

    def parts(
        self,
        model: Model,
        limits: DecodeLimits,
        console: Console,
        *,
        zero_shot: bool = True,
        extra: ExtraFiles | None = None,
        within: range | None = None,
    ) -> Iterator[Predictions]:
        """From the rows, some at a time."""
        for doubt in self.file.doubts:
            console.warn(doubt)
        return feature_groups(model, self.file, console, zero_shot=zero_shot, extra=extra, within=within)

    def listing(self) -> Listing:
        """The file by name, size and time of change."""
        named = [path for path in (self.path, self.row_names) if path is not None]
        return Listing(len(self.file.records), _digest((path.name, path) for path in named))

    def joint_features(
        self, encoder: FeatureEncoder, limits: DecodeLimits, wanted: Callable[[str], bool], console: Console
    ) -> tuple[Sequence[ImageRecord], Sequence[str], Tensor]:
        """All rows, as the centred backbone gives them."""
        file = self.file
        if file.tower != tower_digest(encoder.engine.backbone):
            raise UserError(f"{file.path} was written again with other weights or preprocessing than the run's")
        rows = [encoder.engine.encode_frozen(part).global_ for part in feature_rows(file.store.features, BATCH)]
        return file.records, file.store.ids, torch.cat(rows)


@dataclass(frozen=True)
class ShardSource(PhotoSource):
    """Photographs in tar shards or Parquet files.

    Attributes:
        images: They, by position.
    """

    images: ShardImages = field(kw_only=True)

    @property
    def inputs(self) -> ImageItems:
        """Images of the shards."""
        if self.kept is None:
            return self.images
        return [self.images[i] for i, name in enumerate(self.images.names) if name in self.kept]

    def check(self, method: Method) -> None:
        """They are there, and any method can use them."""

    def labels(self, labels: str | Path, classes: Sequence[str], left_out: list[str] | None = None) -> dict[str, int]:
        """From a file, or by the folder in a shard."""
        return read_labels(self.name, labels, classes, names=self.images.names, left_out=left_out)

    def listing(self) -> Listing:
        """Shards by name, size and time of change."""
        assert self.folder is not None
        return Listing(len(self.images), _digest((path.name, path) for path in shards_at(self.folder)))

    def joint_features(
        self, encoder: FeatureEncoder, limits: DecodeLimits, wanted: Callable[[str], bool], console: Console
    ) -> tuple[Sequence[ImageRecord], Sequence[str], Tensor]:
        """Encode those with a wanted name."""
        images = [self.images[i] for i, name in enumerate(self.images.names) if wanted(name)]
        if not images:
            return [], [], torch.zeros(0, encoder.engine.backbone.dim)
        loaded = load(images, limits, console)
        return loaded.records, loaded.store.ids, encoder.centre(loaded.store, console, "look at the run's photographs").global_


def _digest(files: Iterable[tuple[str, Path]]) -> str:
    """Hash of names, sizes and times of change."""
    digest = hashlib.sha256()
    for name, path in files:
        try:
            state = path.stat()
            told = f"{state.st_size} {state.st_mtime_ns}"
        except OSError:
            told = "gone"
        digest.update(f"{name}\0{told}\n".encode())
    return digest.hexdigest()


@dataclass(frozen=True)
class FolderSource(FeatureSource):
    """A feature folder: all of it in memory for whoever needs all rows at once, a shard at a time for whoever answers row by row."""

    @cached_property
    def folder(self) -> FeatureFolder:
        """The folder."""
        assert self.path is not None
        return FeatureFolder(self.path)

    def parts(
        self,
        model: Model,
        limits: DecodeLimits,
        console: Console,
        *,
        zero_shot: bool = True,
        extra: ExtraFiles | None = None,
        within: range | None = None,
    ) -> Iterator[Predictions]:
        """From the shards, one after another."""
        return folder_groups(model, self.folder, console, zero_shot=zero_shot, extra=extra, within=within)

    def listing(self) -> Listing:
        """What the manifest says."""
        return Listing(len(self.folder), self.folder.digest)


# Of which nothing more is known: enough to prepare a run whose images are loaded elsewhere.
PHOTOGRAPHS: Source = PhotoSource()


def _load_backbone(config: RunConfig, prototypes: Prototypes | None) -> Backbone:
    if config.logit_scale is not None:
        raise UserError(f"--logit-scale has no effect: backbone {config.backbone} has its own; leave it out")
    backbone = load_backbone(config.backbone)
    if prototypes is not None:
        check_width(prototypes, backbone.dim, f"features of backbone {config.backbone}")
    return backbone

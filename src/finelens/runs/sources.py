"""The doors: photographs or rows of features? That is asked once, here; what differs stands behind the two kinds."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from finelens.classes.text_files import split_lines
from finelens.core.home import expanded
from finelens.errors import UserError
from finelens.feature_store.files import given_features, is_matrix
from finelens.feature_store.paths import is_feature_path
from finelens.images.discover import STANDARD_INPUT, ImageFile, display_name
from finelens.images.indices import check_part
from finelens.images.shards import shard_images
from finelens.images.signatures import archive_kind
from finelens.images.store import ImageItems
from finelens.images.tiles import Grid
from finelens.intake.elevater import listed_images
from finelens.intake.taken import Taken
from finelens.runs.config import RunConfig
from finelens.runs.feature_source import FeatureSource, FolderSource
from finelens.runs.photo_source import PhotoSource, ShardSource

FEATURES_FROM_PYTHON = "(features from Python)"
LIST_SUFFIXES = (".txt", ".lst")


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
    images = listed_images(Path(path)) if images is None else images
    if images is not None:
        if strict:
            raise UserError(f"--strict looks into files of photographs, and {path} holds shards; leave it out")
        return ShardSource(str(path), Path(path), images=images)
    check_part(Path(path))
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
        lines = split_lines(text.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: not a list of paths in UTF-8 (byte {error.start}); write one path a line") from error
    names = [_listed_name(line) for line in lines if line.strip()]
    if not names:
        raise UserError(f"{where}: no paths; write one path a line")
    if any("\0" in name for name in names):
        raise UserError(f"{where}: not a list of paths; write one path a line")
    files = tuple(ImageFile(_place(name), display_name(name)) for name in names)
    if not any(os.path.lexists(file.place) for file in files):
        # A list that was made inside the folder of the photographs: every row would say that its file is gone.
        raise UserError(
            f"{where}: nothing it names exists ({files[0].name} is the first); "
            "relative paths count from the folder where the command runs, so run it from where they lead to the photographs, or write full paths"
        )
    return files


def _listed_name(line: str) -> str:
    """The path in a line of a list: without the blanks around it, unless a file is called so."""
    name = line.strip()
    return line if line != name and "\0" not in line and os.path.lexists(_place(line)) and not os.path.lexists(_place(name)) else name


def _place(name: str) -> str:
    return os.path.abspath(expanded(name))


def source_of_run(config: RunConfig, taken: Taken | None = None) -> PhotoSource | FeatureSource:
    """The source that a run's configuration names; ``taken`` are its rows where they come from a file of another tool."""
    source = source_at(config.photos, strict=config.strict, row_names=config.row_names_file, logit_scale=config.logit_scale)
    return source if taken is None else with_rows(source, taken)


def with_rows(source: PhotoSource | FeatureSource, taken: Taken) -> PhotoSource:
    """The rows of a file of another tool in the place of all files of a folder.

    Raises:
        UserError: The source is no folder of photographs.
    """
    if type(source) is not PhotoSource or source.folder is None or not source.folder.is_dir():
        raise UserError(f"--in says which photographs of a folder are meant, and {source.name} is none; give the folder of the photographs")
    return replace(source, listed=taken.images(source.folder))


def with_tiles(source: PhotoSource | FeatureSource, grid: Grid) -> PhotoSource:
    """Each photograph of a source and, behind it, its tiles.

    Raises:
        UserError: The source holds no photographs that are files.
    """
    if type(source) is not PhotoSource:
        raise UserError(f"--tiles cuts photographs that are files, and {source.name} holds none; give the folder of the photographs")
    return replace(source, listed=grid.of(source.files))

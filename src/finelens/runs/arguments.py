"""What ``adapt`` and ``predict`` were given, before anything of it is looked at. It imports no tensor library."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from finelens.errors import UserError
from finelens.methods.registry import DEFAULT_METHOD
from finelens.runs.shard import Shard

# Values by section and key, as ``--set`` gives them.
Assignments = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True)
class RunArguments:
    """What a run is to be; fields as the arguments of :func:`finelens.api.adapt`, which says what they mean.

    Attributes:
        photos: A path, like all that are files or folders.
        extra: As they were written: an entry may be a word that stands for no file.
    """

    photos: Path
    classes: Path | None
    verb: str = "adapt"
    descriptions: Path | None = None
    hints: Path | None = None
    in_file: Path | None = None
    box_confidence: float | None = None
    csv_bom: bool = False
    rank_floor: float = 0.8
    group_by: str | None = None
    strict: bool = False
    prototypes: Path | None = None
    row_names: Path | None = None
    extra: Sequence[str | Path] = ()
    extra_names: Sequence[str | Path] = ()
    extra_encoders: Sequence[str] = ()
    logit_scale: float | None = None
    backbone: str | None = None
    method: str = DEFAULT_METHOD
    stage: str | None = None
    captions: str | Path | None = None
    minutes: float | None = None
    seed: int = 0
    device: str = "cpu"
    options: Assignments | None = None
    calibration: bool = True

    @classmethod
    def of(cls, **given: Any) -> RunArguments:
        """From arguments among which a path may be text."""
        names = ("photos", "classes", "descriptions", "hints", "in_file", "prototypes", "row_names")
        paths: dict[str, Any] = {name: as_path(given[name]) for name in names if name in given}
        return cls(**{**given, **paths})


@dataclass(frozen=True, kw_only=True)
class PredictArguments:
    """What ``predict`` was asked; fields as the arguments of :func:`finelens.api.predict_to`, which says what they mean.

    Attributes:
        run: A path, like all that are files or folders.
        shard: The part that this process writes; None for all rows.
    """

    run: Path
    photos: Path
    csv: Path
    device: str = "cpu"
    strict: bool = False
    row_names: Path | None = None
    extra: tuple[Path, ...] = ()
    extra_names: tuple[Path, ...] = ()
    calibrate: Path | None = None
    calibrate_photos: Path | None = None
    coverage: float | None = None
    zero_shot: bool = True
    shard: Shard | None = None
    in_file: Path | None = None
    box_confidence: float | None = None
    csv_bom: bool = False
    extra_encoders: tuple[str, ...] = ()
    classes: Path | None = None
    descriptions: Path | None = None
    prototypes: Path | None = None
    group_by: str | None = None
    tiles: str | None = None
    tile_floor: float | None = None
    overwrite: bool = False

    _FILES: ClassVar = ("run", "photos", "csv", "row_names", "calibrate", "calibrate_photos", "in_file", "classes", "descriptions", "prototypes")
    _LISTS: ClassVar = ("extra", "extra_names")

    @property
    def target(self) -> Path:
        """The file that this process writes."""
        return self.csv if self.shard is None else self.shard.of(self.csv)

    def absolute(self) -> PredictArguments:
        """The same with paths that mean the same in any process."""
        changed: dict[str, Any] = {name: Path(os.path.abspath(own)) for name in self._FILES if (own := getattr(self, name)) is not None}
        for name in self._LISTS:
            changed[name] = tuple(Path(os.path.abspath(own)) for own in getattr(self, name))
        return replace(self, **changed)


def as_path(path: str | Path | None) -> Path | None:
    """The path, where there is one.

    Raises:
        UserError: It is something else, as a list of names is.
    """
    if path is not None and not isinstance(path, (str, os.PathLike)):
        raise UserError(f"expected the path of a file, got a {type(path).__name__}; write it to a file, one line each")
    return None if path is None else Path(path)

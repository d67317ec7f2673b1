"""Features of further encoders beside those of the run's own model: read from files, and matched to the photographs by content or by name."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from finelens.classes.file_names import FileNames
from finelens.classes.text_files import counted, quote
from finelens.errors import UserError
from finelens.feature_store.files import FeatureFile, feature_metadata, read_features
from finelens.feature_store.paths import is_feature_path
from finelens.protocol import ImageRecord, Loaded


@dataclass(frozen=True)
class ExtraEncoder:
    """What a model keeps of a further encoder.

    Attributes:
        width: Columns of its features.
        tower: Digest of the model that made them; empty where the file did not say.
        backbone: Specification of that model; empty where the file did not say.
    """

    width: int
    tower: str = ""
    backbone: str = ""

    def __str__(self) -> str:
        return f"{self.backbone or 'a model without a name'} with {self.width} columns"


@dataclass(frozen=True)
class Extra:
    """Features of further encoders for the images of a store.

    Attributes:
        features: (N, D_v) of each, in store order.
        encoders: What they were made with.
        digest: Hash of all rows.
    """

    features: tuple[Tensor, ...]
    encoders: tuple[ExtraEncoder, ...]

    @property
    def digest(self) -> str:
        """Hash of the rows in store order."""
        digest = hashlib.sha256()
        for rows in self.features:
            digest.update(rows.contiguous().numpy().data)
        return digest.hexdigest()


@dataclass(frozen=True)
class ExtraFile:
    """A feature file of a further encoder, and whether its rows have names that the user chose."""

    file: FeatureFile
    named: bool

    @property
    def encoder(self) -> ExtraEncoder:
        """What made it."""
        return ExtraEncoder(self.file.dim, self.file.tower, self.file.backbone)

    def rows(self, source: Loaded, named: bool) -> Tensor:
        """Features (N, D) of the images of a store, in its order; the file may hold others as well.

        Args:
            source: Photographs or features.
            named: Whether the rows of the source have names that the user chose.

        Raises:
            UserError: The file lacks an image, or nothing but positions could match the two.
        """
        path = self.file.path
        content = self.file.by_content and source.by_content
        if not content and not self.named:
            raise UserError(f"{path}: its rows have no names, and rows of several files are never matched by position; give --extra-names FILE")
        if not content and not named:
            raise UserError(
                "the rows of the feature file have no names, and rows of several files are never matched by position; give --row-names FILE"
            )
        known, names = self._by_content if content else self._by_name
        wanted = [record for record in source.records if record.index is not None]
        places = [known[found[0]] if len(found := names.find(_key(record, content))) == 1 else None for record in wanted]
        missing = [record.name for record, place in zip(wanted, places, strict=True) if place is None]
        if missing and len(missing) == len(wanted):
            raise UserError(
                f"{path} holds none of the {counted(len(wanted), 'image', 'images')}: it was made from others; write it from the same ones"
            )
        if missing:
            more = f" and of {len(missing) - 1} more" if len(missing) > 1 else ""
            raise UserError(f"{path} has no feature of {quote(missing[0])}{more}; write it again from the same images")
        order = torch.empty(len(wanted), dtype=torch.int64)
        order[[record.index for record in wanted]] = torch.tensor(places)
        return self.file.store.features.global_[order]

    # Photographs that are asked about group by group look here each time.
    @cached_property
    def _by_content(self) -> tuple[dict[str, int], FileNames]:
        return self._known(content=True)

    @cached_property
    def _by_name(self) -> tuple[dict[str, int], FileNames]:
        return self._known(content=False)

    def _known(self, *, content: bool) -> tuple[dict[str, int], FileNames]:
        known = {_key(record, content): record.index for record in self.file.records if record.index is not None}
        return known, FileNames(known)


@dataclass(frozen=True)
class ExtraFiles:
    """All further encoders of a run.

    Attributes:
        files: In the order of the option.
        source_named: Whether the user named the rows of the images' own feature file; of no matter for photographs.
    """

    files: tuple[ExtraFile, ...]
    source_named: bool = False

    @property
    def doubts(self) -> tuple[str, ...]:
        """What their numbers look like that they should not be; lines to warn of."""
        return tuple(doubt for file in self.files for doubt in file.file.doubts)

    def of(self, source: Loaded) -> Extra:
        """The features that belong to a store.

        Raises:
            UserError: They do not fit.
        """
        named = self.source_named or source.by_content
        return Extra(tuple(file.rows(source, named) for file in self.files), tuple(file.encoder for file in self.files))


def read_extra(paths: Sequence[str | Path], names_files: Sequence[str | Path], *, source_named: bool) -> ExtraFiles | None:
    """Read feature files of further encoders; None without any.

    Args:
        paths: As ``finelens features`` wrote them, or arrays of any model.
        names_files: Row names of the arrays: one file for all, or one each in their order.
        source_named: See :class:`ExtraFiles`.

    Raises:
        UserError: A file cannot be read, or the numbers do not fit.
    """
    for path in paths:
        if not is_feature_path(path):
            raise UserError(f"--extra {path}: expected a feature file, .safetensors or .npy; write one with finelens features")
    foreign = [path for path in paths if not feature_metadata(Path(path)).get("tower")]
    if names_files and (not foreign or len(names_files) not in (1, len(foreign))):
        raise UserError(
            f"--extra-names: {counted(len(names_files), 'file', 'files')} for {counted(len(foreign), 'array', 'arrays')} without names of its own; "
            "give one for all, or one each"
        )
    named = iter(names_files if len(names_files) != 1 else [names_files[0]] * len(foreign))
    files = []
    for path in paths:
        names = next(named, None) if path in foreign else None
        files.append(ExtraFile(read_features(Path(path), None if names is None else Path(names)), path not in foreign or names is not None))
    return ExtraFiles(tuple(files), source_named) if files else None


def check_encoders(needed: Sequence[ExtraEncoder], given: ExtraFiles | None) -> None:
    """Refuse features of further encoders that are not those of a run.

    Raises:
        UserError: They lack, are too many, or are of other models.
    """
    files = () if given is None else given.files
    if files and not needed:
        raise UserError("--extra has no effect: the run was made without further encoders; leave it out")
    if len(files) != len(needed):
        what = "; ".join(str(encoder) for encoder in needed)
        raise UserError(
            f"the run looks at features of {counted(len(needed), 'further encoder', 'further encoders')} ({what}), and got {len(files)}: "
            "give a file of these images for each with --extra FILE, in that order"
        )
    for file, encoder in zip(files, needed, strict=True):
        own, path = file.encoder, file.file.path
        if own.width != encoder.width:
            raise UserError(
                f"{path} has features of {own.width} columns, and the run needs those of {encoder} in its place; check the order of --extra"
            )
        if own.tower and encoder.tower and own.tower != encoder.tower:
            raise UserError(f"{path} was made with {own}, and the run needs {encoder} in its place; write it with that model, or mend the order")


def _key(record: ImageRecord, content: bool) -> str:
    """What an image is known by: copies of a photograph have the same features."""
    return (record.sample_id or "").partition("-")[0] if content else record.name

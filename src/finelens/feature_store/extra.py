"""Features of further encoders beside those of the run's own model: from files, matched to the images by content or by name, or encoded here."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from finelens.backbones.registry import is_encoder_spec
from finelens.classes.file_names import FileNames
from finelens.classes.text_files import counted, quote
from finelens.errors import UserError
from finelens.feature_store.extra_towers import Beside, ExtraEncoder, ExtraTower
from finelens.feature_store.files import FeatureFile, feature_metadata, read_features
from finelens.feature_store.paths import is_feature_path
from finelens.images.decode import DecodeLimits
from finelens.protocol import ImageRecord, Loaded


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

    @property
    def place(self) -> str:
        """What messages call it."""
        return str(self.file.path)

    def rows(self, source: Loaded, beside: Beside, named: bool) -> Tensor:
        """Features (N, D) of the images of a store, in its order; the file may hold others as well.

        Args:
            source: Photographs or features.
            beside: Of no matter: nothing is encoded.
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

    files: tuple[ExtraFile | ExtraTower, ...]
    source_named: bool = False

    @property
    def doubts(self) -> tuple[str, ...]:
        """What their numbers look like that they should not be; lines to warn of."""
        return tuple(doubt for file in self.files if isinstance(file, ExtraFile) for doubt in file.file.doubts)

    @property
    def towers(self) -> tuple[ExtraTower, ...]:
        """Those that see the photographs themselves."""
        return tuple(file for file in self.files if isinstance(file, ExtraTower))

    def wide_enough(self, limits: DecodeLimits) -> DecodeLimits:
        """Limits under which originals are kept as large as each of the encoders wants them."""
        sides = [tower.backbone.preprocess.resize_size for tower in self.towers]
        return replace(limits, short_side=max([limits.short_side, *sides]))

    def of(self, source: Loaded, beside: Beside) -> Extra:
        """The features that belong to a store.

        Raises:
            UserError: They do not fit.
        """
        named = self.source_named or source.by_content
        return Extra(tuple(file.rows(source, beside, named) for file in self.files), tuple(file.encoder for file in self.files))


def read_extra(entries: Sequence[str | Path], names_files: Sequence[str | Path], *, source_named: bool) -> ExtraFiles | None:
    """Read feature files of further encoders, and take note of encoders that see the photographs themselves; None without any.

    Args:
        entries: Files as ``finelens features`` wrote them, or arrays of any model; or specifications of encoders.
        names_files: Row names of the arrays: one file for all, or one each in their order.
        source_named: See :class:`ExtraFiles`.

    Raises:
        UserError: A file cannot be read, or the numbers do not fit.
    """
    paths = [entry for entry in entries if not is_encoder_spec(str(entry))]
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
    files: list[ExtraFile | ExtraTower] = []
    for path in entries:
        if path not in paths:
            files.append(ExtraTower(str(path)))
            continue
        names = next(named, None) if path in foreign else None
        files.append(ExtraFile(read_features(Path(path), None if names is None else Path(names)), path not in foreign or names is not None))
    return ExtraFiles(tuple(files), source_named) if files else None


def extra_of_run(
    needed: Sequence[ExtraEncoder], paths: Sequence[str | Path], names_files: Sequence[str | Path], encoders: Sequence[str], *, source_named: bool
) -> ExtraFiles | None:
    """What a finished run needs of further encoders about the images that it is asked about; None where it needs nothing or is given nothing.

    Args:
        needed: What the run was made with.
        paths: The user's feature files: for each encoder, or for each that does not see photographs itself.
        names_files: See :func:`read_extra`.
        encoders: Specifications in the place of those that the run remembers, for weights that have moved.
        source_named: See :class:`ExtraFiles`.

    Raises:
        UserError: Files or specifications are missing, too many, unreadable, or of other models.
    """
    own = [encoder.backbone for encoder in needed if encoder.encodes]
    if encoders and len(encoders) != len(own):
        raise UserError(
            f"--extra-encoder: the run encodes photographs with {counted(len(own), 'further encoder', 'further encoders')}, got {len(encoders)}"
        )
    if not paths and not own:
        return None
    if len(paths) == len(needed) and not encoders:
        entries: list[str | Path] = list(paths)
    else:
        left, specs = iter(paths), iter(encoders or own)
        entries = [next(specs) if encoder.encodes else next(left, "") for encoder in needed]
        entries = [*(entry for entry in entries if entry), *left]
    found = read_extra(entries, names_files, source_named=source_named)
    if paths:
        check_encoders(needed, found)
    return found


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
        own, path = file.encoder, file.place
        if own.width != encoder.width:
            raise UserError(
                f"{path} has features of {own.width} columns, and the run needs those of {encoder} in its place; check the order of --extra"
            )
        if own.encodes and own.tower != encoder.tower:
            raise UserError(f"{path}: its weights are not those that the run was made with; give those with --extra-encoder")
        if own.tower and encoder.tower and own.tower != encoder.tower:
            raise UserError(f"{path} was made with {own}, and the run needs {encoder} in its place; write it with that model, or mend the order")


def _key(record: ImageRecord, content: bool) -> str:
    """What an image is known by: copies of a photograph have the same features."""
    return (record.sample_id or "").partition("-")[0] if content else record.name

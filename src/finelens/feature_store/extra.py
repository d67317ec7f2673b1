"""Features of further encoders beside those of the run's own model: from files, matched to the images by content or by name, or encoded here."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from finelens.backbones.registry import is_encoder_spec
from finelens.classes.file_names import FileNames
from finelens.classes.text_files import counted, quote
from finelens.errors import UserError
from finelens.feature_store.extra_towers import Beside, ExtraEncoder, ExtraTower
from finelens.feature_store.files import feature_digest, feature_metadata, read_features, refuse_infinite
from finelens.feature_store.folder import FeatureFolder
from finelens.feature_store.paths import is_feature_folder, is_feature_path
from finelens.feature_store.sampled import FolderRows
from finelens.feature_store.store import FeatureStore
from finelens.images.decode import DecodeLimits
from finelens.protocol import ImageRecord, Loaded, Rows
from finelens.solvers.rows import RowsAt, TensorRows

# Photographs that are matched at a time, of very many.
MATCHED = 1 << 14


@dataclass(frozen=True)
class Extra:
    """Features of further encoders for the images of a store.

    Attributes:
        features: (N, D_v) of each, in store order.
        encoders: What they were made with.
        rows: The same of all photographs, where the store is a part of so many that a run does not hold them; else none.
        contents: Hashes of what holds those.
    """

    features: tuple[Tensor, ...]
    encoders: tuple[ExtraEncoder, ...]
    rows: tuple[Rows, ...] = ()
    contents: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        """Hash of the rows in store order, and of what holds the others."""
        digest = hashlib.sha256("".join(self.contents).encode())
        for rows in self.features:
            digest.update(rows.contiguous().numpy().data)
        return digest.hexdigest()


class _ByContent:
    """Rows of photographs by their content, 72 bytes each in memory."""

    def __init__(self, records: Iterable[ImageRecord]) -> None:
        pairs = [(_key(record), record.index) for record in records if record.index is not None]
        contents, rows = np.array([content for content, _ in pairs], dtype=np.bytes_), np.array([row for _, row in pairs], dtype=np.int64)
        order = contents.argsort(kind="stable")
        self._contents, self._rows = contents[order], rows[order]

    def find(self, wanted: Sequence[ImageRecord]) -> list[int | None]:
        """The row of each."""
        contents = np.array([_key(record) for record in wanted], dtype=np.bytes_)
        places = self._contents.searchsorted(contents).clip(max=len(self._contents) - 1)
        found = zip(self._rows[places].tolist(), (self._contents[places] == contents).tolist(), strict=True)
        return [row if same else None for row, same in found]


class _ByName:
    """Rows of photographs by their names, in any spelling."""

    def __init__(self, records: Iterable[ImageRecord]) -> None:
        self._rows = {record.name: record.index for record in records if record.index is not None}
        self._names = FileNames(self._rows)

    def find(self, wanted: Sequence[ImageRecord]) -> list[int | None]:
        """The row of each."""
        spelled = (self._names.find(record.name) for record in wanted)
        return [self._rows[found[0]] if len(found) == 1 else None for found in spelled]


@dataclass(frozen=True)
class ExtraFile:
    """A feature file of a further encoder, or a folder, whose rows are read when they are wanted.

    Attributes:
        path: Where it lies.
        encoder: What made it.
        held: The rows.
        known: The photographs that have one, each with its place among the rows; all that a file tells of in the case of a file.
        named: Whether its rows have names that the user chose, or finelens wrote.
        doubts: What its numbers look like that they should not be; lines to warn of.
    """

    path: Path
    encoder: ExtraEncoder
    held: Rows
    known: Callable[[], Iterable[ImageRecord]]
    named: bool
    doubts: tuple[str, ...] = ()

    @classmethod
    def at(cls, path: Path, names_file: Path | None, *, named: bool) -> ExtraFile:
        """The file or folder at a path.

        Raises:
            UserError: It cannot be read, or the numbers are of no use.
        """
        if is_feature_folder(path):
            if names_file is not None:
                raise UserError(f"{path} names its rows itself; leave --extra-names out")
            folder = FeatureFolder(path)
            if not folder.rows:
                raise UserError(f"{path} holds no feature: none of its {len(folder)} files was an image that could be read")
            rows = FolderRows(folder, "global")
            encoder = ExtraEncoder(sum(rows.widths), folder.metadata.get("tower", ""), folder.metadata.get("backbone", ""))
            return cls(path, encoder, rows, rows.records, named)
        file = read_features(path, names_file)
        encoder = ExtraEncoder(file.dim, file.tower, file.backbone)
        return cls(path, encoder, TensorRows(file.store.features.global_), file.records.copy, named, file.doubts)

    @property
    def place(self) -> str:
        """What messages call it."""
        return str(self.path)

    @property
    def digest(self) -> str:
        """Hash of the file, or of what names the contents of the folder."""
        return feature_digest(self.path)

    def rows(self, source: Loaded, beside: Beside, named: bool) -> Tensor:
        """Features (N, D) of the images of a store, in its order; the file may hold others as well.

        Args:
            source: Photographs or features.
            beside: Of no matter: nothing is encoded.
            named: Whether the rows of the source have names that the user chose.

        Raises:
            UserError: The file lacks an image, or nothing but positions could match the two.
        """
        order = torch.empty(sum(record.index is not None for record in source.records), dtype=torch.int64)
        order[[record.index for record in source.records if record.index is not None]] = self._places(source.records, source, named)
        found = self.held.at(order)
        refuse_infinite(found, self.path, "features")
        return found

    def all_rows(self, source: Loaded, named: bool) -> Rows:
        """The same of all photographs that the store is a part of, read when they are wanted: 8 bytes each in memory."""
        features = source.store.features if isinstance(source.store, FeatureStore) else None
        assert features is not None
        assert isinstance(features.rows, FolderRows)
        return RowsAt(self.held, torch.cat([self._places(own, source, named) for own in _batched(features.rows.records())]))

    def _places(self, records: Sequence[ImageRecord], source: Loaded, named: bool) -> Tensor:
        """Rows (n,) of those of the records that have features."""
        path = self.path
        content = bool(self.encoder.tower) and source.by_content
        if not content and not self.named:
            raise UserError(f"{path}: its rows have no names, and rows of several files are never matched by position; give --extra-names FILE")
        if not content and not named:
            raise UserError(
                "the rows of the feature file have no names, and rows of several files are never matched by position; give --row-names FILE"
            )
        wanted = [record for record in records if record.index is not None]
        places = (self._by_content if content else self._by_name).find(wanted)
        missing = [record.name for record, place in zip(wanted, places, strict=True) if place is None]
        if missing and len(missing) == len(wanted):
            raise UserError(
                f"{path} holds none of the {counted(len(wanted), 'image', 'images')}: it was made from others; write it from the same ones"
            )
        if missing:
            more = f" and of {len(missing) - 1} more" if len(missing) > 1 else ""
            raise UserError(f"{path} has no feature of {quote(missing[0])}{more}; write it again from the same images")
        return torch.tensor(places, dtype=torch.int64)

    # Photographs that are asked about group by group look here each time.
    @cached_property
    def _by_content(self) -> _ByContent:
        return _ByContent(self.known())

    @cached_property
    def _by_name(self) -> _ByName:
        return _ByName(self.known())


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
        return tuple(doubt for file in self.files if isinstance(file, ExtraFile) for doubt in file.doubts)

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

    def of_all(self, source: Loaded, beside: Beside) -> Extra:
        """Those, and where the others are of the photographs that the store is a part of.

        Raises:
            UserError: They do not fit.
        """
        own, files = self.of(source, beside), [file for file in self.files if isinstance(file, ExtraFile)]
        rows = tuple(file.all_rows(source, self.source_named or source.by_content) for file in files)
        return replace(own, rows=rows, contents=tuple(file.digest for file in files))


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
        files.append(ExtraFile.at(Path(path), None if names is None else Path(names), named=path not in foreign or names is not None))
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


def _key(record: ImageRecord) -> bytes:
    """The content of a photograph: copies have the same features."""
    return (record.sample_id or "").partition("-")[0].encode()


def _batched(records: Iterable[ImageRecord]) -> Iterable[list[ImageRecord]]:
    left = iter(records)
    return iter(lambda: list(islice(left, MATCHED)), [])

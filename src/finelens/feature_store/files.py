"""Reading features: files that ``finelens features`` wrote, and ``.npy`` or ``.safetensors`` of any model."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from finelens.classes.text_files import counted, quote, read_utf8, split_lines
from finelens.core.schemas import SCHEMA_VERSION, STATUSES
from finelens.errors import UserError
from finelens.feature_store.crops import Crops, StoredCrops
from finelens.feature_store.folder import FeatureFolder
from finelens.feature_store.paths import is_feature_folder
from finelens.feature_store.sampled import PART, FolderRows, part_of
from finelens.feature_store.store import FeatureStore
from finelens.protocol import ImageRecord, TargetFeatures
from finelens.storage.files import file_digest
from finelens.storage.tensors import load_both, load_metadata, load_tensors

FORMAT = "finelens-features"
_KEYS = ("global", "features", "image_features", "image_embeds", "embeddings")
# What other tools call the two sides of a model: a lone matrix of the other side is not taken.
_SIDES = {"features": "text_", "prototypes": "image_"}
_TINY = 1e-12
# What messages call an array that came from Python.
IN_MEMORY = Path("array")


@dataclass(frozen=True)
class FeatureFile:
    """Features of images and what is known of them.

    Attributes:
        path: The file.
        store: The good rows, ordered by sample id.
        records: One per image or row, in the order of the file.
        backbone: Specification of the model that made them; empty where it is not known.
        tower: Digest of that model's image side; empty where it is not known.
        logit_scale: The model's multiplier of cosines; None where it is not known.
        logit_bias: The model's additive term.
        doubts: What the numbers look like that they should not be; lines to warn of.
        counts: Files by status, where the rows are a part of a folder; None where the records tell.
        digest: Of the whole then.
    """

    path: Path
    store: FeatureStore
    records: list[ImageRecord]
    backbone: str = ""
    tower: str = ""
    logit_scale: float | None = None
    logit_bias: float = 0.0
    doubts: tuple[str, ...] = ()
    counts: dict[str, int] | None = None
    digest: str = ""

    @property
    def by_content(self) -> bool:
        """Whether sample ids are hashes of the photographs' bytes: where finelens encoded them."""
        return bool(self.tower)

    @property
    def pictures(self) -> dict[str, int]:
        """Positions of the images that can be shown, by name: none, there are no pixels."""
        return {}

    @property
    def dim(self) -> int:
        """Feature width."""
        return self.store.features.global_.shape[1]


def feature_metadata(path: Path) -> dict[str, str]:
    """Texts that ``finelens features`` stored; empty for a file of another origin.

    Raises:
        UserError: The file is damaged, or was written by a newer finelens.
    """
    if is_feature_folder(path):
        return FeatureFolder(path).metadata
    return _own_texts({} if path.suffix.lower() == ".npy" else load_metadata(path), path)


def _own_texts(metadata: dict[str, str], path: Path) -> dict[str, str]:
    if metadata.get("format") != FORMAT:
        return {name: metadata[name] for name in ("logit_scale", "logit_bias") if name in metadata}
    version = metadata.get("schema_version", "")
    if not version.isdigit() or int(version) > SCHEMA_VERSION:
        raise UserError(f"{path}: written by a newer finelens ({metadata.get('finelens_version')}); upgrade finelens")
    return metadata


def feature_digest(path: Path) -> str:
    """Hash of a feature file, or of the manifest of a folder, which names the contents."""
    return FeatureFolder(path).digest if is_feature_folder(path) else file_digest(path)


def read_features(path: Path, names_file: Path | None = None) -> FeatureFile:
    """Read a feature file.

    Args:
        path: What ``finelens features`` wrote, or an array (N, D) of any model: ``.npy`` (never pickled objects), or ``.safetensors`` with the key
            ``global``, ``features``, ``image_features``, ``image_embeds`` or ``embeddings``, or with one matrix only.
        names_file: Text file with one row name a line, for an array of another origin; by default ``row-000000`` and on.

    Raises:
        UserError: The file cannot be read, or its content is no matrix of finite numbers.
    """
    metadata = feature_metadata(path)
    if metadata.get("format") == FORMAT:
        if names_file is not None:
            raise UserError(f"{path} names its rows itself; leave --row-names out")
        return read_folder(path) if is_feature_folder(path) else _read_own(path, metadata)
    tensors, _ = named_tensors(path)
    matrix = read_matrix(path, tensors, _KEYS, "features")
    scale, bias = stored_scale(path, tensors, metadata)
    return matrix_file(matrix, _row_names(names_file, len(matrix)), path, scale, bias or 0.0)


def is_matrix(value: object) -> bool:
    """Whether Python gave features, an array or table (N, D) of floating-point numbers, rather than images."""
    if isinstance(value, Tensor):
        return value.ndim == 2 and value.is_floating_point()
    # A table of another library (pandas, polars) has a shape and becomes an array; a picture or a data set has no such shape.
    if not hasattr(value, "__array__") or len(getattr(value, "shape", ())) != 2:
        return False
    return np.asarray(value).dtype.kind == "f"


def given_features(value: Tensor | np.ndarray) -> FeatureFile:
    """Features (N, D) from Python as a feature file; rows are called like images in memory.

    Raises:
        UserError: They are no matrix of finite numbers, or no row says anything.
    """
    # A copy in float32, whatever the number type: the caller's array is never written to.
    tensor = value.detach().cpu() if isinstance(value, Tensor) else torch.from_numpy(np.array(value, dtype=np.float64))
    return matrix_file(check_matrix(tensor, IN_MEMORY, "features"), [f"[{i}]" for i in range(len(tensor))], IN_MEMORY)


def matrix_file(matrix: Tensor, names: Sequence[str], path: Path, scale: float | None = None, bias: float = 0.0) -> FeatureFile:
    """A feature file of rows (N, D) of any model.

    Raises:
        UserError: All rows have length 0.
    """
    lengths = matrix.norm(dim=1)
    ids = _content_ids(matrix)
    kept = [i for i in range(len(matrix)) if lengths[i] > _TINY]
    if not kept:
        raise UserError(f"{path}: all {len(matrix)} rows have length 0; give features that say something")
    global_ = F.normalize(matrix[kept], dim=1)
    order = sorted(range(len(kept)), key=lambda i: ids[kept[i]])
    place = {kept[i]: rank for rank, i in enumerate(order)}
    records = [
        ImageRecord(name, "ok", "", ids[i], place[i]) if i in place else ImageRecord(name, "degenerate", "the feature has length 0")
        for i, name in enumerate(names)
    ]
    rows = global_[order]
    store = FeatureStore([ids[kept[i]] for i in order], TargetFeatures(rows, rows))
    return FeatureFile(path, store, records, "", "", scale, bias, quantised(matrix, path, "features"))


def quantised(matrix: Tensor, path: Path, what: str) -> tuple[str, ...]:
    """A line about a matrix of whole numbers beyond 1, which may be codes of a quantised one: their cosines say little; none about another."""
    if not len(matrix) or matrix.abs().max() <= 1 or not bool((matrix == matrix.round()).all()):
        return ()
    return (
        f"{path}: all {what} are whole numbers. If they are quantised codes, their angles mean nothing: dequantise them first "
        "(lowest + code * step, column by column), or give the floating-point numbers they were made from",
    )


def _read_own(path: Path, metadata: dict[str, str]) -> FeatureFile:
    tensors = load_tensors(path)
    try:
        table = json.loads(tensors["records"].numpy().tobytes())
        found = [ImageRecord(name, status, reason, sample_id) for name, status, reason, sample_id in table]
        global_, cls = tensors["global"].float(), tensors["cls"].float()
        ids = [record.sample_id for record in found if record.sample_id is not None]
        known = all(record.status in STATUSES for record in found)
        if not known or not (len(ids) == len(global_) == len(cls)) or global_.ndim != 2 or cls.ndim != 2 or len(set(ids)) < len(ids):
            raise ValueError("its table and its features do not fit together")
        crops = _stored_crops(path, tensors, metadata, ids)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is damaged ({error}); write it again with finelens features --overwrite") from error
    return _own_file(path, metadata, found, global_, cls, crops)


def read_folder(path: Path) -> FeatureFile:
    """All of a feature folder, in memory.

    Raises:
        UserError: It is damaged, not finished, or holds no feature.
    """
    folder = FeatureFolder(path)
    records, tensors = folder.read()
    if not tensors:
        raise UserError(f"{path} holds no feature: none of its {len(records)} files was an image that could be read")
    return _own_file(path, folder.metadata, records, tensors["global"], tensors["cls"])


def read_part(path: Path, most: int = PART, also: Set[str] = frozenset()) -> FeatureFile:
    """A part of a feature folder that holds very many photographs; features of it know where to read all of them.

    Args:
        path: The folder.
        most: Photographs, evenly spread.
        also: Names of files that are part of it in any case.

    Raises:
        UserError: It is damaged, not finished, or holds no feature.
    """
    folder = FeatureFolder(path)
    found = part_of(folder, most, also)
    part = _own_file(path, folder.metadata, found.records, found.tensors["global"], found.tensors["cls"])
    store, places = part.store, torch.empty(len(found.places), dtype=torch.int64)
    places[[record.index for record in part.records if record.index is not None]] = torch.tensor(found.places)
    store.features = replace(store.features, rows=FolderRows(folder, "global"), cls_rows=FolderRows(folder, "cls"), places=places)
    return replace(part, counts=found.counts, digest=folder.digest)


def folder_parts(folder: FeatureFolder, within: range, size: int) -> Iterator[FeatureFile]:
    """Neighbouring files of a feature folder, at most ``size`` at a time; a part without a feature has an empty store.

    Raises:
        UserError: A shard is damaged, or a number is not finite.
    """
    for records, tensors in folder.tables(within, size):
        yield _own_file(folder.path, folder.metadata, records, tensors["global"].float(), tensors["cls"].float(), empty=True)


def _own_file(
    path: Path,
    metadata: dict[str, str],
    found: list[ImageRecord],
    global_: Tensor,
    cls: Tensor,
    crops: StoredCrops | None = None,
    *,
    empty: bool = False,
) -> FeatureFile:
    """What finelens wrote: the table, and rows in the order of its readable files."""
    ids = [record.sample_id for record in found if record.sample_id is not None]
    if not ids and not empty:
        raise UserError(f"{path} holds no feature: none of its {len(found)} files was an image that could be read")
    refuse_infinite(global_, path, "features")
    refuse_infinite(cls, path, "cls tokens")
    order = sorted(range(len(ids)), key=lambda i: ids[i])
    place = {ids[i]: rank for rank, i in enumerate(order)}
    records = [ImageRecord(r.name, r.status, r.reason, r.sample_id, None if r.sample_id is None else place[r.sample_id]) for r in found]
    return FeatureFile(
        path,
        FeatureStore([ids[i] for i in order], TargetFeatures(global_[order], cls[order]), crops),
        records,
        metadata.get("backbone", ""),
        metadata.get("tower", ""),
        metadata_number(metadata, "logit_scale", path),
        metadata_number(metadata, "logit_bias", path) or 0.0,
    )


def _stored_crops(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str], ids: Sequence[str]) -> StoredCrops | None:
    """Crops of the images by sorted id. Raises KeyError, TypeError or ValueError where they do not fit the table."""
    if "crops" not in metadata:
        return None
    crops, global_, cls = Crops(**json.loads(metadata["crops"])), tensors["crops.global"], tensors["crops.cls"]
    widths = (tensors["global"].shape[1], tensors["cls"].shape[1])
    if (tuple(global_.shape), tuple(cls.shape)) != tuple((len(ids), crops.count, width) for width in widths):
        raise ValueError("its crops and its table do not fit together")
    row = {sample_id: k for k, sample_id in enumerate(ids)}
    return StoredCrops(path, crops, global_, cls, [row.get(sample_id.partition("-")[0], row[sample_id]) for sample_id in sorted(ids)])


def named_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors of a ``.safetensors`` file and what :func:`feature_metadata` gives; none of a ``.npy`` file, whose one array has no name.

    Raises:
        UserError: The file cannot be read.
    """
    tensors, header = ({}, {}) if path.suffix.lower() == ".npy" else load_both(path)
    return tensors, _own_texts(header, path)


def read_matrix(path: Path, tensors: dict[str, Tensor], keys: Sequence[str], what: str, dims: tuple[int, ...] = (2,)) -> Tensor:
    """A matrix (N, D) of finite float32 numbers.

    Args:
        path: ``.npy``, or ``.safetensors`` with one of the keys or with one matrix only.
        tensors: What :func:`named_tensors` gives for it.
        keys: Names to look for, in this order.
        what: What the rows are, for messages.
        dims: Numbers of dimensions that are allowed.

    Raises:
        UserError: The file is missing, of another kind, or holds no such matrix.
    """
    value = _array(path) if path.suffix.lower() == ".npy" else _tensor(path, tensors, keys, what)
    return check_matrix(value, path, what, dims)


def check_matrix(value: Tensor, path: Path, what: str, dims: tuple[int, ...] = (2,)) -> Tensor:
    """The tensor in float32, if it is a non-empty one of finite numbers and of an allowed number of dimensions.

    Raises:
        UserError: It is not.
    """
    if value.ndim not in dims or not value.numel():
        shape = " or ".join("(rows, columns)" if n == 2 else "(classes, prototypes, columns)" for n in dims)
        raise UserError(f"{path}: expected {what} of shape {shape}, got {tuple(value.shape)}; save one row for each")
    if value.dtype is torch.bool or value.is_complex():
        raise UserError(f"{path}: expected {what} in real numbers, got {value.dtype}; save them as float32")
    value = value.float()
    refuse_infinite(value, path, what)
    return value


def refuse_infinite(value: Tensor, path: Path, what: str) -> None:
    """Refuse rows that are not finite numbers.

    Raises:
        UserError: There is one.
    """
    bad = (~torch.isfinite(value).flatten(1).all(1)).nonzero().flatten()
    if len(bad):
        raise UserError(f"{path}: {counted(len(bad), 'row', 'rows')} of the {what} with NaN or infinity, first row {int(bad[0])}; leave them out")


def _array(path: Path) -> Tensor:
    try:
        # Mapped, not read: a header that promises more than the file holds is refused before anything is allocated.
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}; check the path and its permissions") from error
    # A damaged header is parsed as Python's literals, and fails in as many ways as those can: tokens, syntax, recursion, arithmetic.
    except Exception as error:
        raise UserError(
            f"{path} is damaged, no .npy file, or holds pickled objects, which are never read ({error}); save a plain float array"
        ) from error
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiub":
        kind = getattr(array, "dtype", type(array).__name__)
        raise UserError(f"{path}: expected an array of real numbers, got {kind}; save them as float32")
    # Not every numpy type has a counterpart (long doubles, other byte orders, 16-bit unsigned); float64 holds what any of them says.
    return torch.from_numpy(np.require(array, np.bool_ if array.dtype.kind == "b" else np.float64, ["C", "W"]))


def _tensor(path: Path, tensors: dict[str, Tensor], keys: Sequence[str], what: str) -> Tensor:
    for key in keys:
        if key in tensors:
            return tensors[key]
    matrices = [tensor for name, tensor in tensors.items() if tensor.ndim == 2 and not name.startswith(_SIDES.get(what, " "))]
    if len(matrices) == 1:
        return matrices[0]
    names = ", ".join(sorted(tensors)) or "none"
    raise UserError(f"{path}: cannot tell which tensor holds the {what} (found: {names}); call it {keys[0]}")


def metadata_number(metadata: dict[str, Any], name: str, path: Path) -> float | None:
    """A number of the header, None where it is not given."""
    try:
        value = float(metadata[name]) if name in metadata else None
    except ValueError:
        value = float("nan")
    if value is not None and not abs(value) < float("inf"):
        raise UserError(f"{path}: {name} in its header is not a number ({metadata[name]!r}); give --logit-scale, or write the file again")
    return value


def stored_scale(path: Path, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> tuple[float | None, float | None]:
    """The logit scale and bias of a file, from its header or from tensors of that name that hold one number; None where it has none."""
    names = ("logit_scale", "logit_bias")
    single = {name: tensors[name].item() for name in names if name in tensors and tensors[name].numel() == 1}
    scale, bias = (metadata_number(single | metadata, name, path) for name in names)
    return scale, bias


def _row_names(path: Path | None, count: int) -> list[str]:
    if path is None:
        return [f"row-{i:06d}" for i in range(count)]
    names = [line.strip() for line in split_lines(read_utf8(path, "row names file"))]
    names = names[: next((i for i in range(len(names), 0, -1) if names[i - 1]), 0)]
    if len(names) != count:
        raise UserError(f"row names file {quote(str(path))} has {counted(len(names), 'line', 'lines')} for {count} rows; give one line a row")
    repeated = [name for name, times in Counter(names).items() if times > 1 or not name]
    if repeated:
        raise UserError(f"row names file {quote(str(path))} repeats {quote(repeated[0])} or leaves a line empty; each row needs a name of its own")
    return names


def _content_ids(matrix: Tensor) -> list[str]:
    """Identity of each row by its numbers, as images have one by their bytes; an ordinal tells exact duplicates apart."""
    copies: Counter[str] = Counter()
    ids = []
    for row in matrix.numpy():
        digest = hashlib.sha256(row.tobytes()).hexdigest()
        ids.append(f"{digest}-{copies[digest]}" if copies[digest] else digest)
        copies[digest] += 1
    return ids

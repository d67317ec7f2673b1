"""Photographs in tar shards (WebDataset) and in Parquet files with image bytes, read where they lie; nothing is unpacked."""

from __future__ import annotations

import json
from array import array
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, Protocol

from finelens.errors import UserError
from finelens.images.discover import display_name, is_leftover, shards_at
from finelens.images.signatures import IMAGE_SUFFIXES
from finelens.images.store import EncodedImage
from finelens.images.tar_shards import OTHERS, Archives, members


class ShardImages(Protocol):
    """Images of shards by position.

    Attributes:
        names: ``SHARD/MEMBER`` or ``SHARD[GROUP][ROW].jpg``.
        files: Files that they lie in.
        remarks: What was left out; lines for the terminal.
    """

    names: list[str]
    files: list[Path]
    remarks: tuple[str, ...]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> EncodedImage: ...


class TarImages:
    """Image members of tar files, in the order of the files and of the members; best read in that order.

    Args:
        shards: Plain or gzip-compressed tar files.

    Raises:
        UserError: A shard is damaged, or of another compression.
    """

    def __init__(self, shards: Sequence[Path]) -> None:
        self.files, self._archives = list(shards), Archives()
        self._starts, self._sizes = array("q"), array("q")
        self.names: list[str] = []
        self._first: list[int] = []
        left_out: list[str] = []
        for shard in shards:
            if shard.name.lower().endswith(OTHERS):
                raise UserError(f"{shard}: of compressed shards only .tar.gz is read; decompress it, for example zstd -d, xz -d or bzip2 -d")
            self._first.append(len(self.names))
            others: list[str] = []
            for name, start, size, _ in members(shard, (), 0, others):
                if is_leftover(name.rpartition("/")[2]) or Path(name).suffix.lower() not in IMAGE_SUFFIXES:
                    others.append(name)
                    continue
                self.names.append(display_name(f"{shard.name}/{name}"))
                self._starts.append(start)
                self._sizes.append(size)
            left_out += [display_name(f"{shard.name}/{name}") for name in others]
        self.remarks: tuple[str, ...] = (
            (f"left out: {len(left_out)} members of shards that are no images (first {min(left_out)})",) if left_out else ()
        )

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int, /) -> EncodedImage:
        """The image's bytes."""
        shard = self.files[bisect_right(self._first, index) - 1]
        return EncodedImage(self._archives.read(shard, self._starts[index], self._sizes[index]), self.names[index])


class ParquetImages:
    """Images of Parquet files, read when asked for; the row group that was asked last is kept.

    Args:
        shards: Parquet files.
        column: Name of the image column.
    """

    remarks: tuple[str, ...] = ()

    def __init__(self, shards: Sequence[Path], column: str) -> None:
        self._column, self.files = column, list(shards)
        self._groups: list[tuple[Path, int]] = []
        counts = []
        for shard in shards:
            metadata = open_parquet(shard).metadata
            self._groups += [(shard, group) for group in range(metadata.num_row_groups)]
            counts += [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
        self._starts = [0, *accumulate(counts)]
        self._kept: tuple[int, list[Any]] = (-1, [])
        self.names = [f"{shard.name}[{group}][{i}].jpg" for (shard, group), count in zip(self._groups, counts, strict=True) for i in range(count)]

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, index: int, /) -> EncodedImage:
        """The image's bytes."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        group = bisect_right(self._starts, index) - 1
        if self._kept[0] != group:
            shard, number = self._groups[group]
            self._kept = group, read_column(shard, self._column, [number])
        cell = self._kept[1][index - self._starts[group]]
        data = cell.get("bytes") if isinstance(cell, Mapping) else cell
        # A row without bytes names a file of the machine that wrote it, which is no file to read here: it becomes an image that cannot be read.
        return EncodedImage(data if isinstance(data, bytes) else b"", self.names[index])


class ChosenImages:
    """Some images of shards, read when asked for.

    Args:
        images: All.
        positions: Which, best in ascending order.
    """

    def __init__(self, images: ShardImages, positions: Sequence[int]) -> None:
        self._images, self._positions = images, list(positions)

    def __len__(self) -> int:
        return len(self._positions)

    def __getitem__(self, index: int, /) -> EncodedImage:
        """The image's bytes."""
        return self._images[self._positions[index]]


def shard_images(path: Path) -> ShardImages | None:
    """The images of a tar or Parquet file, or of a folder of nothing else; None for any other path.

    Raises:
        UserError: A shard cannot be read, has no column of images, or there is no image.
    """
    shards = shards_at(path)
    if not shards:
        return None
    if shards[0].suffix.lower() == ".parquet":
        columns = {image_column(shard) for shard in shards}
        if len(columns) > 1:
            raise UserError(f"{display_name(path)}: its files call the image column {' and '.join(sorted(columns))}; give one at a time")
        found: ShardImages = ParquetImages(shards, columns.pop())
    else:
        found = TarImages(shards)
    if not len(found):
        raise UserError(f"no photographs in {display_name(path)}: its shards hold no image")
    return found


def open_parquet(path: Path) -> Any:
    """A Parquet file, open.

    Raises:
        UserError: It cannot be read, or pyarrow is missing.
    """
    try:
        import pyarrow.parquet as parquet
    except ImportError:
        raise UserError(f"{path}: Parquet needs pyarrow (pip install pyarrow)") from None
    try:
        return parquet.ParquetFile(path)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {error}") from error


def read_column(path: Path, column: str, groups: Sequence[int] | None = None) -> list[Any]:
    """The cells of a column, of some row groups or of all.

    Raises:
        UserError: The file is damaged behind the part that says what it holds, or pyarrow is missing.
    """
    file = open_parquet(path)
    try:
        cells: list[Any] = file.read_row_groups(range(file.num_row_groups) if groups is None else groups, columns=[column]).column(0).to_pylist()
    except (OSError, ValueError, NotImplementedError) as error:
        raise UserError(f"cannot read {path}: its column {column} is damaged ({' '.join(f'{error}'.split())}); download it again") from error
    return cells


def image_column(shard: Path) -> str:
    """The column of image bytes: the one that a Hugging Face data set names, else ``image``, else the only one of its kind.

    Raises:
        UserError: There is none, or there are several.
    """
    schema = open_parquet(shard).schema_arrow
    named = hugging_face_features(schema)
    columns = [name for name, feature in named.items() if feature.get("_type") == "Image"]
    columns = columns or [field.name for field in schema if _holds_bytes(field.type)]
    if "image" in columns or len(columns) == 1:
        return "image" if "image" in columns else columns[0]
    raise UserError(
        f"{shard}: {len(columns)} columns could hold the bytes of images ({', '.join(columns) or 'none'}); "
        "keep one, of bytes or of {bytes, path}, and call it image"
    )


def hugging_face_features(schema: Any) -> dict[str, dict[str, Any]]:
    """What a Hugging Face data set says of its columns in the file's own metadata; empty for a file of another origin."""
    try:
        features = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
        return {str(name): dict(feature) for name, feature in features.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}


def _holds_bytes(kind: Any) -> bool:
    import pyarrow

    if pyarrow.types.is_struct(kind):
        return any(kind.field(i).name == "bytes" and _holds_bytes(kind.field(i).type) for i in range(kind.num_fields))
    return bool(pyarrow.types.is_binary(kind) or pyarrow.types.is_large_binary(kind))

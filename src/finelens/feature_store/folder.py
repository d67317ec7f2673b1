"""Features of very many photographs: a folder of shards and a manifest, written as they come and read some rows at a time.

Each shard is a feature file of its own (``feature_store.files``), about neighbouring files in the order of their names; the manifest names the shards
with their sizes and SHA-256. Nothing here holds more rows than those of one shard, but for :func:`FeatureFolder.read`.
"""

from __future__ import annotations

import json
import re
import shutil
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from finelens.core.options import from_mapping
from finelens.core.schemas import SCHEMA_VERSION
from finelens.errors import UserError
from finelens.feature_store.paths import FOLDER_FORMAT, MANIFEST, PART
from finelens.images.load import none_read
from finelens.protocol import ImageRecord
from finelens.storage.files import file_digest, json_text, read_json, write_error, write_json
from finelens.storage.lock import Lock
from finelens.storage.tensors import load_tensor, load_tensors, save_tensors

LOCK, TEXTS = ".finelens.lock", "texts.safetensors"
# How folders of single attempts at a shard begin.
ATTEMPT = ".finelens-attempt-"
_SHARD = re.compile(r"shard-\d{5,}\.safetensors")
# Files of a shard: a few dozen megabytes of features.
SHARD = 4096


@dataclass(frozen=True)
class ShardEntry:
    """A shard as the manifest knows it.

    Attributes:
        name: Its file.
        files: Photographs that its table tells of.
        rows: Those with features.
        bytes: Size of the file.
        sha256: Of the file.
    """

    name: str
    files: int
    rows: int
    bytes: int
    sha256: str


def write_shard(folder: Path, number: int, records: Sequence[ImageRecord], rows: Mapping[str, Tensor], metadata: Mapping[str, str]) -> ShardEntry:
    """Write a shard into a folder.

    Args:
        folder: Where it goes.
        number: Its place among the shards, from 0.
        records: One per file.
        rows: ``global`` (n, E) and ``cls`` (n, W) of those with status ``ok``, in their order.
        metadata: Texts of the file.

    Raises:
        UserError: The disk is full or the like.
    """
    path = folder / f"shard-{number:05d}.safetensors"
    table = json_text([[r.name, r.status, r.reason, r.sample_id] for r in numbered(records, Counter())]).encode("utf-8", "backslashreplace")
    tensors = {"records": torch.frombuffer(bytearray(table), dtype=torch.uint8), **{key: value.float() for key, value in rows.items()}}
    save_tensors(path, tensors, metadata)
    return ShardEntry(path.name, len(records), len(rows["global"]), path.stat().st_size, file_digest(path))


class FolderWriter:
    """Writes a folder shard by shard. Use as a context manager, which claims and releases it.

    A journal names the shards that are whole. A writer of the same key goes on behind them; another one begins anew.

    Args:
        path: The folder; made if it is not there.
        metadata: Texts for every shard and for the manifest, as in a feature file.
        key: Everything that decides the content.

    Attributes:
        entries: Shards that are whole, those of earlier writers of the same key too.
    """

    def __init__(self, path: Path, metadata: Mapping[str, str], key: str) -> None:
        self.path, self._metadata, self._key = Path(path), dict(metadata), key
        self._lock = Lock(self.path / LOCK)
        self.entries: list[ShardEntry] = []

    @property
    def done(self) -> int:
        """Files that are in whole shards."""
        return sum(entry.files for entry in self.entries)

    def __enter__(self) -> FolderWriter:
        """Claim the folder and take up what is there.

        Raises:
            UserError: It cannot be written, or another process writes it.
        """
        try:
            self.path.mkdir(exist_ok=True)
        except OSError as error:
            raise write_error(self.path, error) from error
        with self._lock.claimed():
            self.entries = self._kept()
            kept = {entry.name for entry in self.entries}
            for leftover in [*self.path.glob("shard-*.safetensors"), self.path / TEXTS]:
                # What somebody put beside the shards is theirs.
                if leftover.name not in kept and (_SHARD.fullmatch(leftover.name) or leftover.name == TEXTS):
                    leftover.unlink(missing_ok=True)
            for leftover in self.path.glob(f"{ATTEMPT}*"):
                shutil.rmtree(leftover, ignore_errors=True)
            (self.path / MANIFEST).unlink(missing_ok=True)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._lock.release()

    def add(self, records: Sequence[ImageRecord], rows: Mapping[str, Tensor]) -> None:
        """Write a shard.

        Args:
            records: One per file.
            rows: ``global`` (n, E) and ``cls`` (n, W) of those with status ``ok``, in their order.

        Raises:
            UserError: The disk is full or the like; shards of before stay.
        """
        self.adopt(write_shard(self.path, len(self.entries), records, rows, self._metadata))

    def adopt(self, entry: ShardEntry) -> None:
        """Count in a shard that lies in the folder already: the next one.

        Raises:
            UserError: The disk is full or the like.
        """
        self.entries.append(entry)
        write_json(self.path / PART, {"key": self._key, "shards": [asdict(own) for own in self.entries]})

    def finish(self, texts: Mapping[str, Tensor] | None = None) -> None:
        """Write the manifest: the folder is whole then.

        Args:
            texts: Prototypes and sentences, as in a feature file; None where there are none, or they lie in the folder already.

        Raises:
            UserError: It cannot be written, or no photograph has features; the folder is left unfinished then.
        """
        if self.entries and not any(entry.rows for entry in self.entries):
            raise none_read(_table(self.path / self.entries[0].name), self.done)
        document: dict[str, Any] = {
            "format": FOLDER_FORMAT,
            "schema_version": SCHEMA_VERSION,
            "files": self.done,
            "rows": sum(entry.rows for entry in self.entries),
            "metadata": dict(sorted(self._metadata.items())),
            "shards": [asdict(entry) for entry in self.entries],
        }
        if texts is not None:
            save_tensors(self.path / TEXTS, texts, self._metadata)
        if (self.path / TEXTS).is_file():
            document["texts"] = {"name": TEXTS, "sha256": file_digest(self.path / TEXTS)}
        write_json(self.path / MANIFEST, document)
        (self.path / PART).unlink(missing_ok=True)

    def _kept(self) -> list[ShardEntry]:
        try:
            journal = read_json(self.path / PART)
            if journal["key"] != self._key:
                return []
            entries = [from_mapping(ShardEntry, own, "shard") for own in journal["shards"]]
            return entries if all((self.path / own.name).stat().st_size == own.bytes for own in entries) else []
        except (UserError, OSError, KeyError, TypeError):
            return []


def _table(shard: Path) -> list[ImageRecord]:
    """The files that a shard tells of, without a look at its features.

    Raises:
        UserError: It is missing or damaged.
    """
    table = load_tensor(shard, "records")
    try:
        return [ImageRecord(name, status, reason, sample_id) for name, status, reason, sample_id in json.loads(table.numpy().tobytes())]
    except (TypeError, ValueError) as error:
        raise UserError(f"{shard} is damaged ({error}); write the folder again with finelens features --overwrite") from error


def numbered(records: Sequence[ImageRecord], copies: Counter[str]) -> list[ImageRecord]:
    """The records without positions, exact duplicates with an ordinal each whatever group of files they were read in.

    Args:
        records: In their order.
        copies: How often each content was seen before; counted on.
    """
    found = []
    for record in records:
        own = None
        if record.sample_id is not None:
            content = record.sample_id.partition("-")[0]
            own = f"{content}-{copies[content]}" if copies[content] else content
            copies[content] += 1
        found.append(ImageRecord(record.name, record.status, record.reason, own))
    return found


class FeatureFolder:
    """A folder that is whole.

    Args:
        path: The folder.

    Attributes:
        metadata: Texts of the manifest.
        shards: Its shards in their order.

    Raises:
        UserError: It has no manifest, or a damaged one.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if not (path / MANIFEST).is_file():
            what = "is not finished: give the same finelens features command again" if (path / PART).is_file() else f"has no {MANIFEST}"
            raise UserError(f"feature folder {path} {what}")
        document = read_json(path / MANIFEST)
        if not isinstance(document, dict) or document.get("format") != FOLDER_FORMAT:
            raise UserError(f"{path / MANIFEST}: not the manifest of a feature folder; choose a folder that finelens features wrote")
        version = document.get("schema_version")
        if type(version) is not int or not 1 <= version <= SCHEMA_VERSION:
            raise UserError(f"{path / MANIFEST}: written by a newer finelens, or edited; upgrade finelens")
        try:
            self.metadata = {str(key): str(value) for key, value in document["metadata"].items()}
            self.shards = [from_mapping(ShardEntry, own, "shard") for own in document["shards"]]
        except (KeyError, TypeError, AttributeError, UserError) as error:
            raise UserError(f"{path / MANIFEST} is damaged ({error}); write the folder again with finelens features --overwrite") from error
        if any(Path(entry.name).name != entry.name or entry.files < 1 for entry in self.shards):
            raise UserError(f"{path / MANIFEST} names what is no shard of its folder; write the folder again with finelens features --overwrite")
        self._starts = [0, *accumulate(entry.files for entry in self.shards)]

    def __len__(self) -> int:
        """Photographs that it tells of."""
        return self._starts[-1]

    @property
    def digest(self) -> str:
        """SHA-256 of the manifest, which names the contents."""
        return file_digest(self.path / MANIFEST)

    def tables(self, within: range, size: int) -> Iterator[tuple[list[ImageRecord], dict[str, Tensor]]]:
        """Neighbouring files, at most ``size`` at a time, and the features of those that have any; one shard is open at a time.

        Raises:
            UserError: A shard is missing, or not the one that the manifest names.
        """
        opened, records, tensors, places = -1, list[ImageRecord](), dict[str, Tensor](), list[int]()
        for start in range(within.start, within.stop, size):
            stop, found, parts = min(start + size, within.stop), list[ImageRecord](), list[dict[str, Tensor]]()
            while start < stop:
                number = bisect_right(self._starts, start) - 1
                if number != opened:
                    opened, (records, tensors) = number, self._open(self.shards[number])
                    places = [0, *accumulate(record.sample_id is not None for record in records)]
                first = start - self._starts[number]
                last = min(stop - self._starts[number], len(records))
                found += records[first:last]
                parts.append({name: rows[places[first] : places[last]] for name, rows in tensors.items()})
                start += last - first
            yield found, {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def read(self) -> tuple[list[ImageRecord], dict[str, Tensor]]:
        """All of it, in memory.

        Raises:
            UserError: As for :meth:`tables`.
        """
        rows = sum(entry.rows for entry in self.shards)
        whole: dict[str, Tensor] = {}
        records: list[ImageRecord] = []
        copies: Counter[str] = Counter()
        filled = 0
        for table, tensors in self.tables(range(len(self)), SHARD):
            records += numbered(table, copies)
            count = len(tensors["global"])
            for name, part in tensors.items():
                whole.setdefault(name, torch.empty(rows, part.shape[1]))[filled : filled + count] = part
            filled += count
        return records, whole

    def names(self) -> list[str]:
        """Of all files, in their order; contents are not checked.

        Raises:
            UserError: A shard is missing or damaged.
        """
        return [record.name for table in self.records() for record in table]

    def records(self) -> Iterator[list[ImageRecord]]:
        """The table of one shard after another; contents are not checked.

        Raises:
            UserError: A shard is missing or damaged.
        """
        return (_table(self.path / entry.name) for entry in self.shards)

    @property
    def rows(self) -> int:
        """Photographs that have features."""
        return sum(entry.rows for entry in self.shards)

    def by_shard(self) -> Iterator[tuple[list[ImageRecord], dict[str, Tensor]]]:
        """Table and features of one shard after another.

        Raises:
            UserError: As for :meth:`tables`.
        """
        copies: Counter[str] = Counter()
        for entry in self.shards:
            records, tensors = self._open(entry)
            yield numbered(records, copies), tensors

    def rows_of(self, number: int, kind: str, *, check: bool) -> Tensor:
        """One kind of feature of a shard, (n, D), memory-mapped.

        Args:
            number: Which shard.
            kind: ``global`` or ``cls``.
            check: Whether its SHA-256 is compared with the manifest first.

        Raises:
            UserError: It is missing, or not the one that the manifest names.
        """
        entry = self.shards[number]
        return self._open(entry)[1][kind] if check else load_tensor(self.path / entry.name, kind)

    def _open(self, entry: ShardEntry) -> tuple[list[ImageRecord], dict[str, Tensor]]:
        path = self.path / entry.name
        if file_digest(path) != entry.sha256:
            raise UserError(f"{path} is not the shard that {MANIFEST} names (SHA-256 differs); write the folder again with --overwrite")
        tensors = load_tensors(path)
        try:
            table = json.loads(tensors["records"].numpy().tobytes())
            records = [ImageRecord(name, status, reason, sample_id) for name, status, reason, sample_id in table]
            rows = {name: tensors[name] for name in ("global", "cls")}
            if not len(rows["global"]) == len(rows["cls"]) == entry.rows or len(records) != entry.files:
                raise ValueError("its table and its features do not fit together")
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{path} is damaged ({error}); write the folder again with finelens features --overwrite") from error
        return records, rows

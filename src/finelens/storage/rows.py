"""Encoded images and texts on disk, so that a tower runs once for each.

A folder for each way of encoding (weights, preprocessing, precision, versions) holds shards: safetensors files of some hundred rows, written whole or
not at all under names of their own. So any number of processes may write at once, a killed one loses only its last unfinished shard, and a reader
needs no lock. Shards are memory-mapped; each row carries a checksum and is checked before it is used: a damaged one counts as absent.
"""

from __future__ import annotations

import hashlib
import os
import time
import uuid
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor

from finelens.errors import UserError
from finelens.storage.cache import cache_key
from finelens.storage.cache_place import FEATURES, STALE_SECONDS, cache_folder, cache_limit, is_temporary
from finelens.storage.tensors import load_tensors, save_tensors

# A shard is written at whichever comes first: what a killed process loses is at most this much.
SHARD_ROWS, SHARD_BYTES, SHARD_SECONDS = 1024, 64 << 20, 30.0
# More small shards than this in one folder are joined: single images predicted one by one would make a file each.
SMALL_SHARDS, SMALL_BYTES = 32, 1 << 20
# Rows that an index holds the names of, at some 200 bytes each.
INDEXED_ROWS = 1 << 18
ID, CHECK = "id", "check"

_kept = 0


def rows_kept() -> int:
    """Rows of photographs that this process has put into the cache."""
    return _kept


class RowCache:
    """Rows of one way of encoding. Use as a context manager: leaving the block writes what is pending.

    Args:
        key_parts: Everything the values depend on besides the image or text.
        kind: Where they lie (``cache_place.KINDS``); those of texts are small, and nothing bounds them.
    """

    def __init__(self, key_parts: Sequence[str], kind: str = FEATURES) -> None:
        key = cache_key(key_parts)
        self._limit, self._kind = cache_limit() if kind == FEATURES else None, kind
        # A home folder that cannot be found is a cache that cannot be used.
        self.folder: Path | None = None
        with suppress(UserError):
            self.folder = None if self._limit == 0 else cache_folder() / kind / key
        self.error: str | None = None
        self._pending: list[tuple[list[bytes], dict[str, Tensor]]] = []
        self._rows = self._bytes = 0
        self._wrote = False
        self._last = time.monotonic()

    def __enter__(self) -> RowCache:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def read(self, names: Sequence[str]) -> Iterator[tuple[int, dict[str, Tensor]]]:
        """Rows that are there and whole.

        Args:
            names: Names of images by content, or texts; one may stand more than once.

        Yields:
            Position in ``names`` and the row's tensors, mapped from the file.
        """
        wanted: dict[bytes, list[int]] = {}
        for position, name in enumerate(names):
            wanted.setdefault(_identity(name), []).append(position)
        for shard in self._shards():
            if not wanted:
                return
            used = False
            for identity, row in _whole_rows(shard, wanted.keys()):
                used = True
                for position in wanted.pop(identity, []):
                    yield position, row
            if used:
                # What was used last is removed last.
                with suppress(OSError):
                    os.utime(shard)

    def index(self) -> RowIndex:
        """The rows that are there now, by name, for a reader that learns the names one after another."""
        return RowIndex(self._shards())

    def add(self, names: Sequence[str], tensors: Mapping[str, Tensor]) -> None:
        """Keep rows; they reach the disk with their shard.

        Args:
            names: Names of B images, or B texts.
            tensors: (B, ...) each, always the same names and shapes.
        """
        if self.folder is None or not len(names):
            return
        own = {name: tensor.detach().cpu() for name, tensor in tensors.items()}
        self._pending.append(([_identity(name) for name in names], own))
        self._rows += len(names)
        self._bytes += sum(tensor.nbytes for tensor in own.values())
        if self._rows >= SHARD_ROWS or self._bytes >= SHARD_BYTES or time.monotonic() - self._last >= SHARD_SECONDS:
            self._flush()

    def close(self) -> None:
        """Write what is pending, join small shards, and remove what was used longest ago beyond the limit. May be called twice."""
        self._flush()
        if self._wrote and self.folder is not None:
            self._wrote = False
            _join_small(self._shards())
            if self._limit is not None:
                bound(self.folder.parent, self._limit)

    def _shards(self) -> list[Path]:
        return [] if self.folder is None else sorted(self.folder.glob("*.safetensors"))

    def _flush(self) -> None:
        global _kept
        pending, self._pending = self._pending, []
        self._rows, self._bytes, self._last = 0, 0, time.monotonic()
        if not pending or self.folder is None:
            return
        identities = [identity for own, _ in pending for identity in own]
        tensors = {name: torch.cat([part[name] for _, part in pending]) for name in pending[0][1]}
        try:
            _write_shard(self.folder, identities, tensors)
            self._wrote = True
            _kept += len(identities) if self._kind == FEATURES else 0
        except (OSError, UserError) as error:
            # A cache that cannot be written costs time, not the result.
            self.error, self.folder = str(error), None


class RowIndex:
    """Rows by name, of which those that are asked for are checked. Any number of threads may ask.

    Args:
        shards: Files of rows; of very many rows those that were used last are known.
    """

    def __init__(self, shards: Sequence[Path]) -> None:
        self._places: dict[bytes, tuple[Path, Mapping[str, Tensor], bytes, int]] = {}
        self._used: set[Path] = set()
        for shard in sorted(shards, key=_last_used, reverse=True):
            # A shard that cannot be read has no rows: it may be damaged, or removed a moment ago.
            with suppress(UserError, KeyError, RuntimeError):
                tensors = load_tensors(shard)
                identities, checks = tensors.pop(ID), tensors.pop(CHECK)
                for i, (identity, check) in enumerate(zip(_pieces(identities), _pieces(checks), strict=True)):
                    self._places.setdefault(identity, (shard, tensors, check, i))
            if len(self._places) >= INDEXED_ROWS:
                return

    def get(self, name: str) -> dict[str, Tensor] | None:
        """The row's tensors, mapped from the file; None where there is none, or a damaged one."""
        identity = _identity(name)
        if identity not in self._places:
            return None
        shard, tensors, check, i = self._places[identity]
        try:
            row = {key: tensor[i] for key, tensor in tensors.items()}
        except IndexError:
            return None
        if _checksum(identity, row) != check:
            return None
        if shard not in self._used:
            self._used.add(shard)
            with suppress(OSError):
                os.utime(shard)
        return row


def _last_used(shard: Path) -> float:
    try:
        return shard.stat().st_mtime
    except OSError:
        return 0.0


def _pieces(matrix: Tensor) -> list[bytes]:
    """Each row of a matrix of bytes."""
    data, width = matrix.numpy().tobytes(), matrix.shape[1]
    return [data[at : at + width] for at in range(0, len(data), width)]


def _identity(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()


def _checksum(identity: bytes, row: Mapping[str, Tensor]) -> bytes:
    digest = hashlib.blake2b(identity, digest_size=16)
    for name, tensor in sorted(row.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.digest()


def _write_shard(folder: Path, identities: list[bytes], tensors: dict[str, Tensor]) -> None:
    checks = [_checksum(identity, {name: tensor[i] for name, tensor in tensors.items()}) for i, identity in enumerate(identities)]
    folder.mkdir(parents=True, exist_ok=True)
    save_tensors(folder / f"{uuid.uuid4().hex}.safetensors", {ID: _matrix(identities), CHECK: _matrix(checks), **tensors})


def _matrix(rows: list[bytes]) -> Tensor:
    return torch.frombuffer(bytearray(b"".join(rows)), dtype=torch.uint8).view(len(rows), -1)


def _whole_rows(shard: Path, wanted: Container[bytes]) -> Iterator[tuple[bytes, dict[str, Tensor]]]:
    """Rows of a shard that are wanted and whole. A shard that cannot be read has none: it may be damaged, or removed a moment ago."""
    try:
        tensors = load_tensors(shard)
        identities, checks = (tensors.pop(name).numpy() for name in (ID, CHECK))
        for i, identity in enumerate(map(bytes, identities)):
            if identity in wanted:
                row = {name: tensor[i] for name, tensor in tensors.items()}
                if _checksum(identity, row) == checks[i].tobytes():
                    yield identity, row
    except (UserError, KeyError, IndexError, TypeError, RuntimeError):
        return


def _join_small(shards: list[Path]) -> None:
    """Write small shards as one and remove them; nothing is removed before its rows stand elsewhere."""
    small: list[Path] = []
    rows: dict[bytes, dict[str, Tensor]] = {}
    for shard in shards:
        with suppress(OSError):
            if shard.stat().st_size <= SMALL_BYTES:
                small.append(shard)
    if len(small) <= SMALL_SHARDS:
        return
    for shard in small:
        rows.update(_whole_rows(shard, _Anything()))
    try:
        if rows:
            _write_shard(
                shards[0].parent, list(rows), {name: torch.stack([row[name] for row in rows.values()]) for name in next(iter(rows.values()))}
            )
    except (OSError, UserError, RuntimeError, KeyError):
        return
    for shard in small:
        with suppress(OSError):
            shard.unlink()


class _Anything(Container[bytes]):
    def __contains__(self, item: object) -> bool:
        return True


def bound(root: Path, limit: int) -> None:
    """Remove the shards used longest ago until the rest fit into ``limit`` bytes, and what killed writers left a day ago."""
    shards: list[tuple[float, int, Path]] = []
    for path in root.glob("*/*"):
        with suppress(OSError):
            info = path.stat()
            if path.suffix == ".safetensors":
                shards.append((info.st_mtime, info.st_size, path))
            elif is_temporary(path.name) and time.time() - info.st_mtime > STALE_SECONDS:
                path.unlink()
    total = sum(size for _, size, _ in shards)
    for _, size, path in sorted(shards):
        if total <= limit:
            return
        with suppress(OSError):
            path.unlink()
            total -= size

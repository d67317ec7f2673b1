"""Where the cache is, how large it may be, and what lies in it; without a tensor library."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from finelens.errors import UserError
from finelens.storage.files import TEMPORARY_PREFIX, TEMPORARY_SUFFIX

ENVIRONMENT_VARIABLE = "FINELENS_CACHE"
LIMIT_VARIABLE = "FINELENS_CACHE_GB"
DEFAULT_LIMIT_GB = 20.0
# What lies where, relative to the folder.
FEATURES, TENSORS = "features", "tensors"
KINDS = {FEATURES: ("encoded photographs", "*/*"), TENSORS: ("encoded texts and maps", "**/*")}
# A file that is being written is not older.
STALE_SECONDS = 24 * 3600.0


def cache_folder() -> Path:
    """``$FINELENS_CACHE`` if set, else ``finelens`` in the platform's folder for caches. It need not exist.

    Raises:
        UserError: The system tells of no home folder, as for a user in a container that has no entry there.
    """
    if chosen := os.environ.get(ENVIRONMENT_VARIABLE):
        return Path(chosen)
    try:
        return _platform_folder() / "finelens"
    except RuntimeError:
        raise UserError(f"there is no home folder to keep the cache in: set {ENVIRONMENT_VARIABLE} to a folder for it") from None


def _platform_folder() -> Path:
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")


def cache_limit() -> int:
    """Bytes that cached features may take: ``$FINELENS_CACHE_GB``, else 20 GB. 0 switches the cache off.

    Raises:
        UserError: The variable is not a number.
    """
    text = os.environ.get(LIMIT_VARIABLE) or str(DEFAULT_LIMIT_GB)
    try:
        return max(0, int(float(text) * 1e9))
    except (ValueError, OverflowError):
        raise UserError(f"{LIMIT_VARIABLE} must be a number of gigabytes, got {text!r}; unset it for {DEFAULT_LIMIT_GB:g}") from None


@dataclass(frozen=True)
class CacheFile:
    """A file that finelens put into the cache.

    Attributes:
        path: The file.
        kind: A key of :data:`KINDS`.
        size: Bytes.
        used: When it was last written or read, in seconds of the epoch.
    """

    path: Path
    kind: str
    size: int
    used: float


def cache_files() -> Iterator[CacheFile]:
    """The files of the cache that may be removed at any time, and what killed writers left a day ago; nothing else in the folder is touched."""
    root = cache_folder()
    for kind, (_, pattern) in KINDS.items():
        for path in sorted((root / kind).glob(pattern)):
            with suppress(OSError):
                info = path.stat()
                if path.suffix == ".safetensors" or (is_temporary(path.name) and time.time() - info.st_mtime > STALE_SECONDS):
                    yield CacheFile(path, kind, info.st_size, info.st_mtime)


def is_temporary(name: str) -> bool:
    """Whether a file of that name is one that is being written, or that a killed writer left."""
    return name.startswith(TEMPORARY_PREFIX) and name.endswith(TEMPORARY_SUFFIX)


def clear_cache(older_than_days: float = 0.0) -> tuple[int, int, int]:
    """Remove cached files, while others may use them: what a process has open stays readable to it, and what it does not find it computes again.

    Args:
        older_than_days: Keep what was used within so many days.

    Returns:
        How many files were removed, their bytes, and how many could not be removed.
    """
    count = total = kept = 0
    latest = time.time() - 86400 * older_than_days
    for file in cache_files():
        if older_than_days and file.used > latest:
            continue
        try:
            file.path.unlink()
        except FileNotFoundError:
            continue
        except OSError:
            # In use on Windows, or another user's.
            kept += 1
            continue
        count, total = count + 1, total + file.size
    return count, total, kept

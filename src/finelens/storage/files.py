"""Writing files so that a reader finds the old content or the new, never a part; lines appended whole or not at all; strict JSON."""

from __future__ import annotations

import codecs
import errno
import hashlib
import json
import math
import os
import stat
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from finelens.errors import UserError

T = TypeVar("T")


# Files of this form are ours and left over from a killed process: nothing else may be deleted as rubbish.
TEMPORARY_PREFIX = ".finelens-"
TEMPORARY_SUFFIX = ".tmp"

# A run folder may come from somebody else, and a link in it may point at anything. Windows has no such flag.
NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0)

_REMEDIES = {
    errno.ENOSPC: "free some space and run the same command again",
    errno.EDQUOT: "your quota is used up: free some space and run the same command again",
    errno.EACCES: "make the folder writable or choose another one",
    errno.EPERM: "make the folder writable or choose another one",
    errno.EROFS: "the file system is read-only: choose another folder",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ENOENT: "create the folder first or choose another one",
    errno.ENOTDIR: "choose a path whose parents are folders",
    errno.EISDIR: "a folder stands where the file belongs: choose another path",
}


def write_error(path: Path, error: OSError) -> UserError:
    """The line a user reads when a file cannot be written: the file, the system's reason, the remedy."""
    reason = error.strerror or str(error)
    return UserError(f"cannot write {path}: {reason}; {_REMEDIES.get(error.errno or 0, 'check the disk and run the same command again')}")


@contextmanager
def atomic_writer(path: Path) -> Iterator[BinaryIO]:
    """A binary file that takes the place of ``path`` when the block ends without an error, and leaves no trace otherwise.

    The content goes to a temporary file in the same folder, is synchronised to disk, and is renamed; the folder is synchronised after that, so that
    the new name survives a power cut.

    Raises:
        UserError: The file cannot be written, or is a pipe or a device; what stood at ``path`` is untouched.
    """
    path = Path(path)
    refuse_special(path)
    temporary = path.parent / f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}{TEMPORARY_SUFFIX}"
    try:
        with open(temporary, "x+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise write_error(path, error) from error
    finally:
        # After a successful rename there is nothing left to remove.
        with suppress(OSError):
            temporary.unlink()
    sync_folder(path.parent)


def refuse_special(path: Path) -> None:
    """Refuse a pipe, a socket or a device, which a rename would put a file in the place of: for root, of ``/dev/null`` too.

    Raises:
        UserError: It is one, or a link to one.
    """
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise UserError(f"{path} is a pipe or a device, which nothing is written to; give the name of a file")


HTML_START = "<!doctype html><!-- finelens -->"
"""How every page that finelens writes begins."""


def check_target(path: Path, *starts: str) -> None:
    """Refuse, before the work, a file that could not be written after it, or that something else wrote.

    Args:
        path: The file to be.
        *starts: How files that finelens wrote there begin, with a byte-order mark or without; such a file is replaced.

    Raises:
        UserError: No such parent folder, a folder, pipe or device in its place, or a file that begins otherwise.
    """
    refuse_special(path)
    if path.is_dir():
        raise UserError(f"{path} is a folder; give the name of a file")
    if not path.absolute().parent.is_dir():
        raise UserError(f"{path.absolute().parent} does not exist; make that folder first")
    if not path.exists():
        return
    try:
        with path.open("rb") as file:
            wanted = [start.encode().removeprefix(codecs.BOM_UTF8) for start in starts]
            found = file.read(len(codecs.BOM_UTF8) + max(map(len, wanted))).removeprefix(codecs.BOM_UTF8)
            ours = not found or any(found.startswith(start) for start in wanted)
    except OSError as error:
        raise write_error(path, error) from error
    if not ours:
        raise UserError(f"{path} exists and was not written by finelens; choose another name")


def check_json_target(path: Path, keys: Collection[str]) -> None:
    """As :func:`check_target` for a JSON object of ours, known by its keys.

    Raises:
        UserError: As there, or a document without these keys.
    """
    check_target(path, "{")
    if path.exists() and path.stat().st_size and not set(keys) <= set(read_json(path)):
        raise UserError(f"{path} exists and was not written by finelens; choose another name")


def append(path: Path, line: bytes, *, durable: bool) -> int:
    """Append a line whole or not at all; a link is not followed.

    Args:
        path: The file; made where it is missing.
        line: With its line end.
        durable: Whether the line is on the disk when this returns.

    Returns:
        The new length of the file.

    Raises:
        UserError: The file cannot be written.
    """
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | NO_FOLLOW, 0o666)
        try:
            start = os.fstat(descriptor).st_size
            try:
                _write_all(descriptor, line)
                if durable:
                    os.fsync(descriptor)
            except OSError:
                os.ftruncate(descriptor, start)
                raise
        finally:
            os.close(descriptor)
    except OSError as error:
        raise write_error(path, error) from error
    return start + len(line)


def _write_all(descriptor: int, data: bytes) -> None:
    # A nearly full disk takes a part first and reports the error on the next call.
    while data:
        data = data[os.write(descriptor, data) :]


def sync_folder(folder: Path) -> None:
    """Make names created in or removed from a folder survive a power cut."""
    if os.name != "posix":
        return
    # Some network file systems refuse to synchronise a folder; the rename has happened all the same.
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal.

    Raises:
        UserError: It cannot be read.
    """
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}; check the path and its permissions") from error
    return digest.hexdigest()


def write_bytes(path: Path, data: bytes) -> None:
    """Replace a file atomically. Raises UserError, see :func:`atomic_writer`."""
    with atomic_writer(path) as file:
        file.write(data)


def write_text(path: Path, text: str) -> None:
    r"""Replace a text file atomically, in UTF-8 with line ends as given; bytes of undecodable file names appear as ``\udcXX``."""
    write_bytes(path, text_bytes(text))


def text_bytes(text: str) -> bytes:
    r"""UTF-8 with line ends as given; bytes of undecodable file names appear as ``\udcXX``."""
    return text.encode("utf-8", "backslashreplace")


def write_json(path: Path, document: Any) -> None:
    """Replace a JSON file atomically, indented, in the order of the keys. Raises UserError, see :func:`atomic_writer`."""
    write_text(path, json_text(document, indent=2) + "\n")


_PLAIN = frozenset({str, int, bool, type(None)})


def json_text(document: Any, indent: int | None = None) -> str:
    """Strict JSON: numpy scalars become numbers, paths texts, and numbers that JSON lacks the texts ``nan``, ``inf`` and ``-inf``."""
    return json.dumps(_jsonable(document), indent=indent, ensure_ascii=False, allow_nan=False)


def _jsonable(value: Any) -> Any:
    # Most of what is written, as it is.
    if type(value) in _PLAIN or (type(value) is float and math.isfinite(value)):
        return value
    if isinstance(value, Mapping):
        return {str(key): _jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(float(value))
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, "item") and not isinstance(value, type):
        return _jsonable(value.item())
    return value


def read_saved(path: Path, build: Callable[[Any], T]) -> T | None:
    """What ``build`` makes of a JSON file of a run folder; None where there is no such file.

    Raises:
        UserError: The file is unreadable, or ``build`` finds a key missing or a value of the wrong kind.
    """
    if not path.is_file():
        return None
    document = read_json(path)
    try:
        return build(document)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is damaged ({error}); start a new run") from error


def read_json(path: Path) -> Any:
    """Parse a JSON file.

    Raises:
        UserError: The file is missing, unreadable or not JSON.
    """
    try:
        return json.loads(Path(path).read_bytes().decode("utf-8-sig"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}; check the path and its permissions") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON ({error}); restore it or delete it and run again") from error

"""Find the files of a photograph folder: every regular file once, in an order that depends on names only."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from finelens.errors import UserError
from finelens.images.signatures import archive_kind

# Left behind by operating systems and archivers; nobody means them as photographs.
IGNORED_NAMES = frozenset({"__macosx", "thumbs.db", "desktop.ini"})


@dataclass(frozen=True)
class ImageFile:
    """One file to read.

    Attributes:
        path: Absolute path.
        name: Path relative to the folder, with forward slashes; bytes that are not UTF-8 are written ``\\xNN``, so it can be printed and stored.
    """

    path: Path
    name: str


def display_name(path: str | os.PathLike[str]) -> str:
    """A path as one line of valid text: forward slashes, bytes that are not UTF-8 and control characters escaped, all else untouched."""
    text = os.fsencode(path).decode("utf-8", "backslashreplace").replace(os.sep, "/")
    return "".join(c.encode("unicode_escape").decode("ascii") if unicodedata.category(c) == "Cc" else c for c in text)


def discover(root: Path, exclude: Path | None = None) -> list[ImageFile]:
    """List all regular files under ``root``, sorted by name.

    Sub-folder names mean nothing. Hidden files and folders and operating-system leftovers are ignored; links to folders are not followed; a file that
    several links reach is listed once, under its own name if it lies in the folder and else under the first link in sort order.

    Args:
        root: The folder.
        exclude: A folder inside ``root`` to leave out (the run folder, when it lies among the photographs).

    Raises:
        UserError: ``root`` is missing, is not a folder, cannot be listed, or holds no file.
    """
    root = Path(root)
    if not root.exists():
        raise UserError(f"photograph folder {display_name(root)} does not exist; check the path")
    if not root.is_dir():
        kind = archive_kind(root)
        if kind is not None:
            raise UserError(f"{display_name(root)} is {kind}, which is not unpacked; unpack it into a new folder and give that folder")
        raise UserError(f"{display_name(root)} is a file; give the folder that holds the photographs, here {display_name(root.parent)}")
    root = Path(os.path.abspath(root))
    excluded = None if exclude is None else os.path.realpath(exclude)
    found = [ImageFile(Path(path), display_name(os.path.relpath(path, root))) for path in _walk(root, excluded)]
    files = _drop_aliases(sorted(found, key=lambda file: (file.name, os.fsencode(file.path))))
    if not files:
        raise UserError(f"no photographs in {display_name(root)}: it holds no visible file; give a folder with images")
    return files


def _walk(root: Path, excluded: str | None) -> Iterator[str]:
    def fail(error: OSError) -> None:
        raise UserError(f"cannot list folder {display_name(error.filename or root)}: {error.strerror}; make it readable or move it away") from error

    for folder, subfolders, names in os.walk(root, followlinks=False, onerror=fail):
        subfolders[:] = [name for name in subfolders if not _ignored(name) and os.path.realpath(os.path.join(folder, name)) != excluded]
        for name in names:
            path = os.path.join(folder, name)
            if not _ignored(name) and _is_candidate(path):
                yield path


def _ignored(name: str) -> bool:
    return name.startswith(".") or name.lower() in IGNORED_NAMES


def _is_candidate(path: str) -> bool:
    """Regular files, and links that are broken: those get a row that says so. Pipes, sockets and devices are no files to read."""
    return os.path.isfile(path) or (os.path.islink(path) and not os.path.exists(path))


def _drop_aliases(files: list[ImageFile]) -> list[ImageFile]:
    """Keep one name per file: real entries first, then the first link in sort order. ``files`` is sorted by name and stays so."""
    seen: set[str] = set()
    kept: set[Path] = set()
    for file in sorted(files, key=lambda file: file.path.is_symlink()):
        # Links that lead nowhere are no aliases of a file: each keeps its row.
        target = os.path.realpath(file.path) if file.path.exists() else os.fspath(file.path)
        if target not in seen:
            seen.add(target)
            kept.add(file.path)
    return [file for file in files if file.path in kept]

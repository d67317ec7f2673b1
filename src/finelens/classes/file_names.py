"""Files by what people and other tools write for them: exactly, or else in another spelling where exactly one file is meant."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable
from functools import cached_property
from pathlib import Path, PurePath, PurePosixPath, PureWindowsPath
from urllib.parse import unquote

from finelens.images.discover import display_name
from finelens.storage.cells import unescape_cell


class FileNames:
    """Names of files below a folder, forward slashes, spelled as image records spell them.

    Args:
        names: The names.
        folder: The folder, for absolute paths inside it; None where there is none.
    """

    def __init__(self, names: Iterable[str], folder: Path | None = None) -> None:
        self._names, self._folder = frozenset(names), folder

    def find(self, text: str) -> list[str]:
        """The files that a text may mean: the one that it names as it stands, else those that it names in another spelling.

        Other spellings: Unicode composed or decomposed, ``%20`` and the like, backslashes, blanks around it, an absolute path inside the folder, a
        path that begins with the folder's own name.
        """
        # Tables of finelens have the apostrophe: where files of both names are there, it is the table's.
        written = dict.fromkeys((unescape_cell(text), text))
        for own in written:
            for name in (_plain(own), display_name(_plain(own))):
                if name in self._names:
                    return [name]
        changes: tuple[Callable[[str], str], ...] = (str.strip, unquote, lambda own: own.replace("\\", "/"), self._inside)
        for change in changes:
            written |= {change(own): None for own in written}
        return sorted({name for own in written for name in self._composed.get(_key(_plain(own)), ())})

    @cached_property
    def _composed(self) -> dict[str, list[str]]:
        groups: dict[str, list[str]] = {}
        for name in self._names:
            groups.setdefault(_key(name), []).append(name)
        return groups

    def _inside(self, text: str) -> str:
        """The text without the path of the folder, or without its name, at the start."""
        if self._folder is None or ".." in PurePosixPath(text).parts:
            return text
        for start in (self._folder, self._folder.absolute(), self._folder.resolve(), Path(self._folder.absolute().name)):
            if PurePosixPath(text).is_relative_to(start.as_posix()):
                return PurePosixPath(text).relative_to(start.as_posix()).as_posix()
        return text


def leaves(text: str) -> bool:
    """Whether a path is absolute, of whatever system, or climbs."""
    systems: tuple[PurePath, ...] = (PurePosixPath(text), PureWindowsPath(text))
    return any(own.is_absolute() or ".." in own.parts for own in systems)


def _plain(text: str) -> str:
    return PurePosixPath(text).as_posix()


def _key(name: str) -> str:
    return unicodedata.normalize("NFC", name)

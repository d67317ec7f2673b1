"""Find the files of a photograph folder: every file is a row, in an order that depends on names only, and what is left out is counted."""

from __future__ import annotations

import os
import re
import stat
import unicodedata
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from finelens.core.beside import check_the_path
from finelens.errors import UserError
from finelens.images.boxes import Box
from finelens.images.signatures import archive_kind

# Left behind by operating systems, archivers, network storage and recycle bins; nobody means them as photographs. Lower case.
LEFTOVERS = frozenset(
    {
        "__macosx",
        "thumbs.db",
        "ehthumbs.db",
        "ehthumbs_vista.db",
        "desktop.ini",
        "picasa.ini",
        "zbthumbnail.info",
        "icon\r",
        "@eadir",
        "@tmp",
        "@recycle",
        "@recently-snapshot",
        "@sharesnap",
        "#recycle",
        "#snapshot",
        "~snapshot",
        "$recycle.bin",
        "recycler",
        "recycled",
        "system volume information",
        "network trash folder",
        "temporary items",
        "lost+found",
        "lost.dir",
    }
)
# Files of many photographs, in one of which or in a folder of which they may lie.
SHARDS = (".tar", ".tar.gz", ".tgz", ".parquet")
# Says beside the shards of CLIP_benchmark how many there are.
COUNT_FILE = "nshards.txt"
_RECOVERED = re.compile(r"found\.\d{3}", re.IGNORECASE)


# What stands for a list of paths on standard input in the place of a folder.
STANDARD_INPUT = "-"


@dataclass(frozen=True, slots=True)
class ImageFile:
    """One file to read, or a part of it. There may be millions, so there is no more to it than two texts.

    Attributes:
        place: Absolute path, as text.
        name: Path relative to the folder, with forward slashes; bytes that are not UTF-8 are written ``\\xNN``, so it can be printed and stored. That
            of a part ends in its number, ``a.jpg#1``.
        box: The part that is meant; None for the whole photograph.
    """

    place: str
    name: str
    box: Box | None = None

    @property
    def path(self) -> Path:
        """Absolute path."""
        return Path(self.place)


class FoundFiles(list[ImageFile]):
    """The files of a folder.

    Attributes:
        remarks: What was left out or followed on the way, a line each with a count and a first example; for the terminal.
    """

    def __init__(self, files: Iterable[ImageFile], remarks: Iterable[str] = ()) -> None:
        super().__init__(files)
        self.remarks = tuple(remarks)


def display_name(path: str | os.PathLike[str]) -> str:
    """A path as one line of valid text: forward slashes, bytes that are not UTF-8 and control characters escaped, all else untouched."""
    text = os.fsencode(path).decode("utf-8", "backslashreplace").replace(os.sep, "/")
    if text.isascii() and text.isprintable():
        return text
    return "".join(c.encode("unicode_escape").decode("ascii") if unicodedata.category(c) == "Cc" else c for c in text)


def is_leftover(name: str) -> bool:
    """Whether a file or folder of this name is hidden, or something that a system left behind."""
    return name.startswith(".") or name.lower() in LEFTOVERS or _RECOVERED.fullmatch(name) is not None


def discover(root: Path) -> FoundFiles:
    """List all regular files under ``root``, sorted by name.

    Sub-folder names mean nothing. A link to a file is a row of its own, as a copy would be: stores of contents (of the Hugging Face hub, DVC,
    git-annex) hold every file so. A link to a folder is followed, each real folder once; one that leads back, to what is listed anyway or to a folder
    around ``root``, is not. Hidden files and leftovers of systems are no photographs. What was left out or followed is in ``remarks``.

    Args:
        root: The folder.

    Raises:
        UserError: ``root`` is missing, is not a folder, cannot be listed, or holds no file.
    """
    root = Path(root)
    check_folder(root)
    walk = _Walk(Path(os.path.abspath(root)))
    if not walk.files:
        seen = "".join(f"; {remark}" for remark in walk.remarks())
        raise UserError(f"no photographs in {display_name(root)}: it holds no visible file; give a folder with images{seen}")
    return FoundFiles(_sorted(walk.files), walk.remarks())


def check_folder(root: Path) -> None:
    """Refuse what is no folder; nothing is listed.

    Raises:
        UserError: It is missing, or a file.
    """
    if not root.exists():
        raise UserError(f"photograph folder {display_name(root)} does not exist; {check_the_path(root)}")
    if not root.is_dir():
        kind = archive_kind(root)
        if kind is not None:
            raise UserError(f"{display_name(root)} is {kind}, which is not unpacked; unpack it into a new folder and give that folder")
        raise UserError(f"{display_name(root)} is a file; give the folder that holds the photographs, here {display_name(root.parent)}")


def shards_at(path: Path) -> list[Path]:
    """Tar or Parquet files that stand for photographs: the file itself, or those of a folder that holds nothing else; empty for anything else."""
    if path.is_file():
        return [path] if path.name.lower().endswith(SHARDS) else []
    if not path.is_dir():
        return []
    shards: list[Path] = []
    kinds = set[bool]()
    with os.scandir(path) as entries:
        for entry in entries:
            if is_leftover(entry.name) or entry.name == COUNT_FILE:
                continue
            # The first other thing decides, so that a folder of millions of photographs is not looked through for this.
            if not entry.name.lower().endswith(SHARDS) or not entry.is_file():
                return []
            shards.append(Path(entry.path))
            kinds.add(entry.name.lower().endswith(".parquet"))
    return sorted(shards) if len(kinds) == 1 else []


def visible_files(root: Path) -> list[ImageFile]:
    """The files that :func:`discover` finds in a folder; none is no error.

    Raises:
        UserError: A folder cannot be listed.
    """
    return _sorted(_Walk(Path(os.path.abspath(root))).files)


def _sorted(files: list[ImageFile]) -> list[ImageFile]:
    return sorted(files, key=lambda file: (file.name, os.fsencode(file.place)))


class _Walk:
    """One look through a folder.

    Args:
        root: The folder, absolute.
    """

    def __init__(self, root: Path) -> None:
        self._root, self.files = root, list[ImageFile]()
        self._hidden, self._special, self._back, self._followed = list[str](), list[str](), list[str](), list[str]()
        self._seen = set[str]()
        self._links: deque[str] = deque()
        self._below(os.fspath(root))
        # Linked folders after all real ones, in the order of their names: what lies in the folder itself keeps its own name.
        while self._links:
            link = self._links.popleft()
            target = os.path.realpath(link)
            if target in self._seen or Path(os.path.realpath(root)).is_relative_to(target):
                self._back.append(link)
            else:
                self._followed.append(link)
                self._below(link)
        self.files = self._apart()

    def _apart(self) -> list[ImageFile]:
        """The files, where two would have one name under different names: a backslash in a name may look like what stands for another character."""
        alike: dict[str, list[ImageFile]] = {}
        for file in self.files:
            if "\\" in file.name:
                alike.setdefault(file.name, []).append(file)
        other: dict[str, str] = {}
        for name in [name for name, files in alike.items() if len(files) > 1]:
            for file in alike[name]:
                own = os.path.relpath(file.place, self._root)
                # That of the file with the backslashes is written with more of them, until nothing else is called so.
                while "\\" in own and file.place not in other:
                    own = own.replace("\\", 2 * "\\")
                    if (longer := display_name(own)) not in alike and longer not in other.values():
                        other[file.place] = longer
        return [ImageFile(file.place, other.get(file.place, file.name)) for file in self.files] if other else self.files

    def _below(self, start: str) -> None:
        for folder, subfolders, names in os.walk(start, followlinks=False, onerror=self._fail):
            self._seen.add(os.path.realpath(folder))
            self._hidden += [os.path.join(folder, name) for name in (*subfolders, *names) if is_leftover(name)]
            visible = sorted(name for name in subfolders if not is_leftover(name))
            self._links.extend(path for name in visible if os.path.islink(path := os.path.join(folder, name)))
            real = [name for name in visible if not os.path.islink(os.path.join(folder, name))]
            # A folder may be reached by a link to it as well as by one to a folder around it.
            subfolders[:] = [name for name in real if os.path.realpath(os.path.join(folder, name)) not in self._seen]
            for name in names:
                if not is_leftover(name):
                    self._take(os.path.join(folder, name))

    def _take(self, path: str) -> None:
        # What cannot be looked at gets a row that says why: a link that leads nowhere, a folder that one may list and not enter. Pipes, sockets and
        # devices are no files to read.
        try:
            readable = stat.S_ISREG(os.stat(path).st_mode)
        except OSError:
            readable = True
        if readable:
            self.files.append(ImageFile(path, self._name(path)))
        else:
            self._special.append(path)

    def _name(self, path: str) -> str:
        return display_name(os.path.relpath(path, self._root))

    def _fail(self, error: OSError) -> None:
        where = display_name(error.filename or self._root)
        raise UserError(f"cannot list folder {where}: {error.strerror}; make it readable or move it away") from error

    def remarks(self) -> list[str]:
        """A line for each kind of entry that is no plain file, with its number and the first by name."""
        kinds = (
            (self._hidden, "left out: {} hidden or left by a system"),
            (self._special, "left out: {} pipes, sockets or devices"),
            (self._back, "linked folders: {} not followed, as they lead back or are read already"),
            (self._followed, "linked folders: {} followed"),
        )
        return [f"{what.format(len(found))} (first {min(map(self._name, found))})" for found, what in kinds if found]

"""Files that grow with a long piece of work and survive its end at any moment: what was written is kept, and the same work goes on behind it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from finelens.errors import UserError
from finelens.storage.files import check_target, read_json, refuse_special, sync_folder, write_error, write_json
from finelens.storage.lock import Lock

PART, JOURNAL, LOCK = ".part", ".part.json", ".part.lock"


class GrowingFiles:
    """Files that get their lines block by block, and their names when all are there. Use as a context manager, which claims and releases them.

    Until then they are called ``NAME.part``. A journal beside the first of them says how much of each is whole, and of what work; it is written after
    its block has reached the disk, so that what a killed process wrote behind it is cut off.

    Args:
        paths: The files to be, in one folder or several.
        starts: What each begins with: its header.
        key: Everything that decides the content. A part of another key is started anew.

    Attributes:
        done: Units of work that earlier processes of the same key have written.
        parts: What the files are called until they are whole.
    """

    def __init__(self, paths: Sequence[Path], starts: Sequence[bytes], key: str) -> None:
        self._paths, self._starts, self._key = [Path(path) for path in paths], list(starts), key
        self.parts = [path.with_name(path.name + PART) for path in self._paths]
        self._journal = self._paths[0].with_name(self._paths[0].name + JOURNAL)
        self._lock = Lock(self._paths[0].with_name(self._paths[0].name + LOCK))
        self._open: list[int] = []
        self.done = 0

    def __enter__(self) -> GrowingFiles:
        """Claim the files and take up what is there.

        Raises:
            UserError: They cannot be written, another process writes them, or something else lies in their place.
        """
        for path, part, start in zip(self._paths, self.parts, self._starts, strict=True):
            refuse_special(path)
            check_target(part, start.decode())
        self._lock.acquire()
        try:
            self.done, sizes = self._kept()
            for part in self.parts:
                self._open.append(_open(part))
            for descriptor, part, size, start in zip(self._open, self.parts, sizes, self._starts, strict=True):
                self._cut(descriptor, part, size, start)
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._close()

    def add(self, blocks: Sequence[bytes], done: int) -> None:
        """Append a block to each file; ``done`` units are whole then.

        Raises:
            UserError: The disk is full or the like; what was whole before stays so.
        """
        sizes = [_append(descriptor, part, block) for descriptor, part, block in zip(self._open, self.parts, blocks, strict=True)]
        write_json(self._journal, {"key": self._key, "done": done, "sizes": sizes})
        self.done = done

    def finish(self) -> None:
        """Give the files their names.

        Raises:
            UserError: They cannot be renamed.
        """
        # The first goes last: as long as it is a part, the same command tries again.
        for descriptor, part, path in reversed(list(zip(self._open, self.parts, self._paths, strict=True))):
            try:
                os.fsync(descriptor)
                os.replace(part, path)
            except OSError as error:
                raise write_error(path, error) from error
            sync_folder(path.parent)
        self._journal.unlink(missing_ok=True)

    def _kept(self) -> tuple[int, list[int]]:
        """Units that are whole, and the size of each file then; nothing where the journal is of other work or lies."""
        fresh = 0, [0] * len(self.parts)
        try:
            journal = read_json(self._journal)
            done, sizes = journal["done"], journal["sizes"]
            same = journal["key"] == self._key and len(sizes) == len(self.parts) and type(done) is int and done > 0
            whole = same and all(type(size) is int and part.stat().st_size >= size for part, size in zip(self.parts, sizes, strict=True))
        except (UserError, OSError, KeyError, TypeError):
            return fresh
        return (done, sizes) if whole else fresh

    def _cut(self, descriptor: int, part: Path, size: int, start: bytes) -> None:
        try:
            os.ftruncate(descriptor, size)
        except OSError as error:
            raise write_error(part, error) from error
        if not size:
            _append(descriptor, part, start)

    def _close(self) -> None:
        while self._open:
            os.close(self._open.pop())
        self._lock.release()


def _open(path: Path) -> int:
    try:
        # A link in its place may point at anything. Windows has no such flag.
        return os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
    except OSError as error:
        raise write_error(path, error) from error


def _append(descriptor: int, path: Path, data: bytes) -> int:
    """Write all of it to the disk; returns the size of the file."""
    try:
        while data:
            data = data[os.write(descriptor, data) :]
        os.fsync(descriptor)
        return os.fstat(descriptor).st_size
    except OSError as error:
        raise write_error(path, error) from error

"""Tar files read where they lie: members in one pass, bytes of a member when asked for. Compressed ones are read as a stream, within bounds."""

from __future__ import annotations

import gzip
import io
import tarfile
import zlib
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Self, cast

from finelens.errors import UserError
from finelens.images.decode import DecodeLimits

PLAIN, GZIP = (".tar",), (".tar.gz", ".tgz")
# Known, and not read: there is no reader for them on every Python.
OTHERS = (".tar.zst", ".tar.xz", ".tar.bz2", ".tzst", ".txz", ".tbz2")
# A gzip stream may be a thousand times its file. Photographs hardly shrink; what grows further than this is no set of them.
MOST_GROWTH, FREE_BYTES = 100, 64 << 20
# Long names and extended headers, which tarfile reads whole.
MOST_HEADER_BYTES = 1 << 20
_HEADERS = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)


class _Member(tarfile.TarInfo):
    """A member whose headers are of a size that makes sense. A damaged one is an error: tarfile takes it for the end, and what follows is lost."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> Self:
        try:
            return super().fromtarfile(archive)
        except (tarfile.InvalidHeaderError, tarfile.TruncatedHeaderError) as error:  # type: ignore[attr-defined]
            raise tarfile.ReadError(f"{error} at byte {archive.offset}") from error

    def _proc_member(self, archive: tarfile.TarFile) -> Any:
        if self.type in _HEADERS and self.size > MOST_HEADER_BYTES:
            raise UserError(f"{archive.name!s}: a header of {self.size} bytes; this is no archive of photographs")
        return super()._proc_member(archive)  # type: ignore[misc]


class _Bounded(io.RawIOBase):
    """A decompressed stream that ends in an error once it is far longer than its file."""

    def __init__(self, path: Path) -> None:
        self._path, self._file, self._left = path, gzip.GzipFile(path), FREE_BYTES + MOST_GROWTH * path.stat().st_size

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        self._left -= len(data)
        if self._left < 0:
            raise UserError(f"{self._path} unpacks to more than {MOST_GROWTH} times its size; this is no archive of photographs")
        return data

    def close(self) -> None:
        self._file.close()
        super().close()


class Archives:
    """Bytes of members by place, best asked for in their order: a compressed file is read from its start again for every step back."""

    def __init__(self) -> None:
        self._open: tuple[Path, IO[bytes]] | None = None

    def read(self, shard: Path, start: int, size: int) -> bytes:
        """Some bytes of a shard's content, from ``start`` on; an image that no decoder would take is cut.

        Raises:
            UserError: The shard cannot be read any more.
        """
        with _errors(shard):
            if self._open is None or self._open[0] != shard:
                self.close()
                self._open = shard, cast(IO[bytes], gzip.GzipFile(shard) if _is_packed(shard) else shard.open("rb"))
            file = self._open[1]
            file.seek(start)
            return file.read(min(size, DecodeLimits().max_bytes + 1))

    def close(self) -> None:
        """Close the file that was read last."""
        if self._open is not None:
            self._open[1].close()
            self._open = None


def members(shard: Path, wanted: Collection[str], most: int, others: list[str] | None = None) -> Iterator[tuple[str, int, int, bytes]]:
    """Regular members of a tar file in one pass. Nothing is unpacked.

    Args:
        shard: Plain or gzip-compressed tar file.
        wanted: Endings of names, without dot, whose content is read on the way.
        most: Bytes of a content at most; the rest is left out.
        others: Takes the names of links, devices and sparse files, which are no samples.

    Yields:
        Name; first byte of the content in the file, as it is without compression; its size; the content, empty for other endings.

    Raises:
        UserError: The file is damaged, cut short, or unpacks to far more than it is.
    """
    packed = _is_packed(shard)
    with _errors(shard), _Bounded(shard) if packed else shard.open("rb") as file:
        end = None if packed else shard.stat().st_size
        # In a plain file contents are passed over; a stream cannot be.
        mode: Any = "r|" if packed else "r:"
        with tarfile.open(str(shard), mode, fileobj=cast(IO[bytes], file), tarinfo=_Member) as archive:
            for member in archive:
                if not member.isreg() or member.issparse():
                    if others is not None and not member.isdir():
                        others.append(member.name)
                    continue
                if end is not None and member.offset_data + member.size > end:
                    raise UserError(f"{shard} ends inside {member.name}; download it again")
                found = archive.extractfile(member) if member.name.rpartition(".")[2].lower() in wanted else None
                yield member.name, member.offset_data, member.size, b"" if found is None else found.read(most)
        # What stands after the last member holds the checksum of a compressed file.
        while packed and file.read(1 << 16):
            pass


def _is_packed(shard: Path) -> bool:
    """Whether a shard is compressed; as when shards are looked for, case does not count."""
    return shard.name.lower().endswith(GZIP)


@contextmanager
def _errors(shard: Path) -> Iterator[None]:
    try:
        yield
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise UserError(f"cannot read {shard}: {error or type(error).__name__}; download it again") from error

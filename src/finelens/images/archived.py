"""Photographs in zip archives, and in base64 in the cells of a table: read where they lie, nothing is unpacked."""

from __future__ import annotations

import base64
import binascii
import zipfile
from collections.abc import Sequence
from pathlib import Path

from finelens.errors import UserError
from finelens.images.decode import DecodeLimits
from finelens.images.discover import display_name
from finelens.images.indices import IN_ARCHIVE
from finelens.images.store import EncodedImage
from finelens.images.tar_shards import FREE_BYTES, MOST_GROWTH


class TableImages:
    """Images in base64 at places in a table, read when asked for.

    Args:
        table: The file.
        places: First byte and length of each.
    """

    remarks: tuple[str, ...] = ()

    def __init__(self, table: Path, places: Sequence[tuple[int, int]]) -> None:
        self._table, self._places, self.files = table, list(places), [table]
        self.names = [f"{table.name}[{i}].jpg" for i in range(len(places))]

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int, /) -> EncodedImage:
        """The image's bytes; none where the cell is no base64, which makes it an image that cannot be read."""
        start, size = self._places[index]
        with self._table.open("rb") as stream:
            stream.seek(start)
            cell = stream.read(size)
        try:
            return EncodedImage(base64.b64decode(cell, validate=True), self.names[index])
        except binascii.Error:
            return EncodedImage(b"", self.names[index])


class ArchiveImages:
    """Images in zip archives, read when asked for; nothing is unpacked.

    Args:
        folder: Holds the archives.
        paths: ``ARCHIVE.zip@PATH`` of each.
        where: What listed them, for messages.

    Raises:
        UserError: An archive is missing or damaged, or has no such member.
    """

    remarks: tuple[str, ...] = ()

    def __init__(self, folder: Path, paths: Sequence[str], where: str) -> None:
        self.names = [display_name(path) for path in paths]
        self._places: list[tuple[Path, str]] = []
        self._open: tuple[Path, zipfile.ZipFile] | None = None
        members: dict[str, set[str]] = {}
        for path in paths:
            start, _, member = path.partition(IN_ARCHIVE)
            archive = f"{start}.zip"
            if Path(archive).name != archive:
                raise UserError(f"{where}: archive {display_name(archive)} is not in {folder} itself")
            if archive not in members:
                members[archive] = set(self._archive(folder / archive).namelist())
            if member not in members[archive]:
                raise UserError(f"{where}: {folder / archive} has no {display_name(member)}; download it again")
            self._places.append((folder / archive, member))
        self.files = [folder / archive for archive in members]

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int, /) -> EncodedImage:
        """The image's bytes; one that no decoder would take is cut."""
        path, member = self._places[index]
        try:
            archive = self._archive(path)
            info = archive.getinfo(member)
            if info.file_size > FREE_BYTES + MOST_GROWTH * info.compress_size:
                raise UserError(
                    f"{path}: {display_name(member)} unpacks to more than {MOST_GROWTH} times its size; this is no archive of photographs"
                )
            with archive.open(info) as stream:
                return EncodedImage(stream.read(DecodeLimits().max_bytes + 1), self.names[index])
        except (zipfile.BadZipFile, RuntimeError, NotImplementedError, OSError, EOFError) as error:
            raise UserError(f"cannot read {display_name(member)} in {path}: {error}; download it again") from error

    def _archive(self, path: Path) -> zipfile.ZipFile:
        """An archive; the one that was asked last stays open."""
        if self._open is None or self._open[0] != path:
            try:
                self._open = path, zipfile.ZipFile(path)
            except (OSError, zipfile.BadZipFile) as error:
                raise UserError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}; put the set's archives there, packed") from error
        return self._open[1]

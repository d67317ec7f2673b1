"""Archives are never unpacked: whatever one holds, it is refused in one line, or is one row among the photographs."""

from __future__ import annotations

import io
import os
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from finelens.errors import UserError
from finelens.images.discover import discover
from finelens.images.signatures import archive_kind
from finelens.images.store import load_images


def zipped(path: Path, members: dict[str, bytes], *, twice: str | None = None) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
        if twice is not None:
            with pytest.warns(UserWarning, match="Duplicate"):
                archive.writestr(twice, b"second")
    return path


def encrypted(path: Path) -> Path:
    """The flag that says a member is encrypted, set by hand."""
    content = bytearray(zipped(path, {"a.png": b"secret"}).read_bytes())
    content[6] |= 1
    content[content.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(content)
    return path


def tarred(path: Path, kind: bytes, name: str = "a.png", link: str = "") -> Path:
    with tarfile.open(path, "w") as archive:
        member = tarfile.TarInfo(name)
        member.type, member.linkname = kind, link
        archive.addfile(member, io.BytesIO(b""))
    return path


def bomb(path: Path) -> Path:
    """100 MB of zeros in 100 kB."""
    return zipped(path, {"zeros.png": bytes(100_000_000)})


HOSTILE: dict[str, Callable[[Path], Path]] = {
    "zip-slip": lambda folder: zipped(folder / "a.zip", {"../../escaped.png": b"x"}),
    "absolute path": lambda folder: zipped(folder / "a.zip", {str(folder.parent / "escaped.png"): b"x"}),
    "bomb": lambda folder: bomb(folder / "a.zip"),
    "duplicate members": lambda folder: zipped(folder / "a.zip", {"a.png": b"first"}, twice="a.png"),
    "encrypted": lambda folder: encrypted(folder / "a.zip"),
    "symbolic link": lambda folder: tarred(folder / "a.tar", tarfile.SYMTYPE, link="/etc"),
    "hard link": lambda folder: tarred(folder / "a.tar", tarfile.LNKTYPE, link="../../etc/passwd"),
    "device": lambda folder: tarred(folder / "a.tar", tarfile.CHRTYPE),
    "pipe": lambda folder: tarred(folder / "a.tar", tarfile.FIFOTYPE),
    "slip in a tar": lambda folder: tarred(folder / "a.tar", tarfile.REGTYPE, name="../../escaped.png"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_archive_as_photographs_is_refused_and_nothing_is_unpacked(kind, tmp_path):
    folder = tmp_path / "in" / "deep"
    folder.mkdir(parents=True)
    archive = HOSTILE[kind](folder)
    with pytest.raises(UserError) as refusal:
        discover(archive)
    message = str(refusal.value)
    assert "\n" not in message
    assert "archive, which is not unpacked; unpack it into a new folder and give that folder" in message
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [archive]


@pytest.mark.parametrize("kind", HOSTILE)
def test_archive_among_photographs_is_one_row(kind, tmp_path):
    folder = tmp_path / "in" / "deep"
    folder.mkdir(parents=True)
    archive = HOSTILE[kind](folder)
    (record,) = load_images(discover(folder)).records
    assert (record.name, record.status) == (archive.name, "unsupported")
    assert "archive, which is not read" in record.reason
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [archive]


def test_archives_of_every_kind_are_known(tmp_path):
    heads = {
        "ZIP": b"PK\x05\x06",
        "gzip": b"\x1f\x8b",
        "bzip2": b"BZh9",
        "xz": b"\xfd7zXZ\x00",
        "zstd": b"(\xb5/\xfd",
        "7z": b"7z\xbc\xaf'\x1c",
        "RAR": b"Rar!\x1a\x07\x00",
    }
    for name, head in heads.items():
        (tmp_path / "file").write_bytes(head + os.urandom(20))
        assert name in str(archive_kind(tmp_path / "file"))
    (tmp_path / "file").write_bytes(b"plain")
    assert archive_kind(tmp_path / "file") is None
    # An empty or damaged archive is still known by its name; a missing file is none.
    (tmp_path / "photos.tar.gz").write_bytes(b"")
    assert archive_kind(tmp_path / "photos.tar.gz") == "an archive"
    (tmp_path / "page.html").write_bytes(b"<html>")
    assert archive_kind(tmp_path / "page.html") is None
    assert archive_kind(tmp_path / "nothing") is None
    os.mkfifo(tmp_path / "pipe.zip")
    assert archive_kind(tmp_path / "pipe.zip") is None

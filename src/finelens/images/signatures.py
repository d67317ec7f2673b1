"""What a file name promises and what the first bytes are: used only to explain a file that could not be read."""

from __future__ import annotations

from pathlib import Path

IMAGE_SUFFIXES = frozenset(
    {
        ".jpg",
        ".jpeg",
        ".jpe",
        ".jfif",
        ".mpo",
        ".png",
        ".apng",
        ".webp",
        ".gif",
        ".bmp",
        ".dib",
        ".tif",
        ".tiff",
        ".ppm",
        ".pgm",
        ".pbm",
        ".pnm",
        ".pfm",
        ".avif",
        ".heic",
        ".heif",
        ".hif",
        ".jxl",
        ".dcm",
    }
)
_RAW_SUFFIXES = frozenset({".nef", ".cr2", ".cr3", ".crw", ".arw", ".dng", ".orf", ".rw2", ".pef", ".srw", ".raf", ".raw", ".nrw", ".3fr", ".iiq"})

_SIGNATURES = (
    (b"%!PS", "PostScript"),
    (b"\xc5\xd0\xd3\xc6", "PostScript"),
    (b"%PDF", "PDF"),
    (b"8BPS", "Photoshop"),
    (b"\x00\x00\x00\x0cjP  ", "JPEG 2000"),
    (b"\xff\x4f\xff\x51", "JPEG 2000"),
    (b"\xff\x0a", "JPEG XL"),
    (b"\x00\x00\x00\x0cJXL ", "JPEG XL"),
    (b"PK\x03\x04", "a ZIP archive"),
    (b"PK\x05\x06", "a ZIP archive"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"BZh", "a bzip2 archive"),
    (b"\xfd7zXZ\x00", "an xz archive"),
    (b"(\xb5/\xfd", "a zstd archive"),
    (b"7z\xbc\xaf'\x1c", "a 7z archive"),
    (b"Rar!\x1a\x07", "a RAR archive"),
)
_ARCHIVE_SUFFIXES = (".zip", ".tar", ".tgz", ".tbz2", ".txz", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst", ".7z", ".rar", ".cbz")
_TAR_MAGIC = 257
_BRANDS = {b"avif": "AVIF", b"avis": "AVIF", b"heic": "HEIC", b"heix": "HEIC", b"hevc": "HEIC", b"mif1": "HEIF", b"msf1": "HEIF"}


def promises_image(path: Path) -> bool:
    """Whether the file name says that this is an image of a kind that is read; case is ignored."""
    return path.suffix.lower() in IMAGE_SUFFIXES


def is_camera_raw(path: Path) -> bool:
    """Whether the file name says that this is a camera's raw file."""
    return path.suffix.lower() in _RAW_SUFFIXES


def archive_kind(path: Path) -> str | None:
    """What kind of archive a file is, by its first bytes or, where they tell nothing, by its name; None for no archive."""
    if not path.is_file():
        return None
    try:
        with open(path, "rb") as file:
            found = foreign_format(file.read(512))
    except OSError:
        found = None
    if found is not None:
        return found if found.endswith("archive") else None
    return "an archive" if path.name.lower().endswith(_ARCHIVE_SUFFIXES) else None


def foreign_format(data: bytes) -> str | None:
    """Name of a well-known format that is not read, by its first bytes; None if they are of no such kind."""
    for signature, name in _SIGNATURES:
        if data.startswith(signature):
            return name
    if data[_TAR_MAGIC : _TAR_MAGIC + 5] == b"ustar":
        return "a tar archive"
    if data[4:8] == b"ftyp":
        return _BRANDS.get(data[8:12], "a video or another ISO media file")
    head = data[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if head.startswith((b"<svg", b"<?xml")):
        return "SVG or XML"
    return "HTML" if head.startswith((b"<!doctype html", b"<html")) else None

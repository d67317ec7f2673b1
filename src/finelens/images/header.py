"""What the header of a photograph says: its size and when it was taken. Pixels are decoded where no header says the size that is shown."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from PIL import Image
from PIL.ExifTags import IFD, Base

from finelens.images.containers import is_upright, open_image
from finelens.images.decode import DecodedImage, DecodeLimits, decode_bytes
from finelens.images.raw import is_raw
from finelens.images.signatures import is_camera_raw
from finelens.images.tiff import choose_page, pages, sub_pages
from finelens.images.unheard import unheard

_SIDEWAYS = (5, 6, 7, 8)
# A short side that no photograph has: nothing is reduced.
_WHOLE = DecodeLimits(short_side=1 << 20)


@dataclass(frozen=True)
class Header:
    """Attributes: width, height: As the photograph is shown, in pixels. taken: Local time of the camera, None where the file has none."""

    width: int
    height: int
    taken: datetime | None


def header(path: Path) -> Header | None:
    """Size and time of a photograph; None where it cannot be read."""
    data = _read(path)
    size, taken = _told(data, path)
    size = _decoded(data, path) if size is None else size
    return None if size is None else Header(*size, taken)


def time_taken(path: Path) -> datetime | None:
    """When a photograph was taken, as of :class:`Header`; nothing is decoded."""
    return _told(_read(path), path)[1]


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def _told(data: bytes, path: Path) -> tuple[tuple[int, int] | None, datetime | None]:
    """Size by the header, None where it is not that of what is shown; and the time."""
    try:
        with unheard(), open_image(data) as image:
            exif = image.getexif()
            taken, found = _taken(exif), pages(data)
            if is_camera_raw(path) or is_raw(data, [*found, *(page for top in found for page in sub_pages(data, top))]):
                # Its first page is a thumbnail.
                return None, taken
            page = choose_page(data, found)[0] if found else None
            width, height = image.size if page is None else (page.width, page.height)
            sideways = not is_upright(image) and exif.get(Base.Orientation) in _SIDEWAYS
            return ((height, width) if sideways else (width, height)), taken
    except Exception:
        return None, None


def _decoded(data: bytes, path: Path) -> tuple[int, int] | None:
    found = decode_bytes(data, path.name, _WHOLE)
    return (found.pixels.shape[2], found.pixels.shape[1]) if isinstance(found, DecodedImage) else None


def _taken(exif: Image.Exif) -> datetime | None:
    text = exif.get_ifd(IFD.Exif).get(Base.DateTimeOriginal) or exif.get(Base.DateTime)
    try:
        return datetime.strptime(str(text).strip("\0 "), "%Y:%m:%d %H:%M:%S")
    except ValueError:
        return None

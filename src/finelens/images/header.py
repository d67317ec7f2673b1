"""What the header of a photograph says: its size and when it was taken. Pixels are not decoded."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from PIL import Image
from PIL.ExifTags import IFD, Base

from finelens.images.containers import open_image

_SIDEWAYS = (5, 6, 7, 8)


@dataclass(frozen=True)
class Header:
    """Attributes: width, height: As the photograph is shown, in pixels. taken: Local time of the camera, None where the file has none."""

    width: int
    height: int
    taken: datetime | None


def header(path: Path) -> Header | None:
    """Size and time of a photograph; None where its header cannot be read by Pillow."""
    try:
        with open_image(path.read_bytes()) as image:
            exif = image.getexif()
            width, height = image.size
            if exif.get(Base.Orientation) in _SIDEWAYS:
                width, height = height, width
            return Header(width, height, _taken(exif))
    except Exception:
        return None


def _taken(exif: Image.Exif) -> datetime | None:
    text = exif.get_ifd(IFD.Exif).get(Base.DateTimeOriginal) or exif.get(Base.DateTime)
    try:
        return datetime.strptime(str(text).strip("\0 "), "%Y:%m:%d %H:%M:%S")
    except ValueError:
        return None

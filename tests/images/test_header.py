"""The size that is said of a photograph is that at which it is shown, whatever its format."""

from __future__ import annotations

import io
from datetime import datetime

import pytest
from PIL import Image

from finelens.images.decode import DecodedImage, DecodeLimits, decode
from finelens.images.header import Header, header, time_taken

from .helpers import dicom, dng, picture


def saved(kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112], exif[0x0132] = 6, "2026:05:04 03:02:01"
    Image.fromarray(picture()).save(buffer, kind, exif=exif, **options)
    return buffer.getvalue()


def thumbnail_first() -> bytes:
    """A TIFF whose first page is a small copy, as some scanners write it."""
    tifffile = pytest.importorskip("tifffile")
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer) as file:
        file.write(picture(0, 12, 16), photometric="rgb", subfiletype=1)
        file.write(picture(), photometric="rgb")
    return buffer.getvalue()


def heic() -> bytes:
    heif = pytest.importorskip("pillow_heif")
    buffer = io.BytesIO()
    heif.from_pillow(Image.open(io.BytesIO(saved("PNG")))).save(buffer)
    return buffer.getvalue()


def raw() -> bytes:
    pytest.importorskip("rawpy")
    return dng(picture(0, 240, 320), 6)


def scan() -> bytes:
    pytest.importorskip("pydicom")
    return dicom(picture(0, 40, 70)[:, :, 0])


MADE = {
    "a.png": lambda: saved("PNG"),
    "a.jpg": lambda: saved("JPEG"),
    "a.webp": lambda: saved("WEBP"),
    "a.tif": lambda: saved("TIFF"),
    "two.tif": thumbnail_first,
    "a.heic": heic,
    "a.dng": raw,
    "a.dcm": scan,
}


@pytest.mark.parametrize("name", MADE)
def test_the_size_is_that_of_the_picture_that_is_shown(tmp_path, name):
    """Camera raw and TIFF files were said to be of the size of their thumbnails, and DICOM of none: boxes of CVAT lay at 0 then."""
    path = tmp_path / name
    path.write_bytes(MADE[name]())
    shown = decode(path, DecodeLimits(short_side=10_000))
    assert isinstance(shown, DecodedImage)
    said = header(path)
    assert isinstance(said, Header)
    assert (said.height, said.width) == tuple(shown.pixels.shape[1:])
    assert said.taken == time_taken(path)
    if name in ("a.png", "a.jpg", "a.webp", "a.tif"):
        assert said.taken == datetime(2026, 5, 4, 3, 2, 1)


def test_what_is_no_photograph_has_none(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"no picture")
    for name in ("a.jpg", "gone.jpg"):
        assert header(tmp_path / name) is None
        assert time_taken(tmp_path / name) is None

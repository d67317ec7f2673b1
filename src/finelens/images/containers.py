"""Opening an image by its first bytes: which library reads it, without the limits and side effects of ``PIL.Image.open``."""

from __future__ import annotations

import io
import struct
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError, features

from finelens.images.pixels import UnsupportedModeError, eight_bits
from finelens.images.signatures import foreign_format

# What Pillow may try. MPO (several JPEGs in one file, from phones) comes with JPEG. Nothing here starts another program.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")
_FOURTEEN_BITS = 0x3F  # the largest high byte of a sample of 14 bits in a 16-bit word
_JXL_BOX, _JXL_STREAM = b"\0\0\0\x0cJXL \r\n\x87\n", b"\xff\n"


def open_image(data: bytes) -> Image.Image:
    """An image whose header is read and whose pixels are not yet decoded.

    Raises:
        UnidentifiedImageError: No reader knows the content.
        UnsupportedModeError: A reader for it is not installed.
    """
    kind = foreign_format(data)
    if kind in ("HEIC", "HEIF"):
        return _open_heif(data)
    if kind == "JPEG XL":
        return _open_jxl(data)
    # Image.open would refuse large images by a limit of its own, before a JPEG can be reduced.
    Image.init()
    for name in FORMATS:
        factory, accept = Image.OPEN.get(name, (None, None))
        if factory is None or (accept is not None and accept(data[:16]) is not True):
            continue
        try:
            return factory(io.BytesIO(data), "")
        except (SyntaxError, IndexError, TypeError, struct.error):
            continue
    if kind == "AVIF" and features.check("avif"):
        raise ValueError("the content is AVIF, which is damaged or ends early")
    if kind == "AVIF":
        raise UnsupportedModeError("AVIF, which this Pillow is built without; install Pillow's own wheel, or convert it to JPEG")
    raise UnidentifiedImageError


def _open_heif(data: bytes) -> Image.Image:
    try:
        from pillow_heif import HeifImageFile
    except ImportError:
        raise UnsupportedModeError("HEIC; pip install pillow-heif, or convert it to JPEG") from None
    try:
        return HeifImageFile(io.BytesIO(data), "")
    except (SyntaxError, ValueError, OSError, EOFError, RuntimeError) as error:
        raise ValueError(f"the content is HEIC, which is damaged or ends early ({error})") from error


def _open_jxl(data: bytes) -> Image.Image:
    try:
        from pillow_jxl.JpegXLImagePlugin import JXLImageFile
    except ImportError:
        raise UnsupportedModeError("JPEG XL; pip install 'finelens[jxl]', or convert it to JPEG") from None
    return JXLImageFile(io.BytesIO(data), "")


def jxl_size(data: bytes) -> tuple[int, int] | None:
    """Width and height of a JPEG XL file by its header, because its reader decodes all of it at once; None for other files.

    Raises:
        ValueError: The header ends early.
    """
    stream = data if data[:2] == _JXL_STREAM else _jxl_codestream(data) if data[:12] == _JXL_BOX else None
    if stream is None:
        return None
    if len(stream) < 14:
        raise ValueError("the file ends early")
    bits = _Bits(int.from_bytes(stream[2:14], "little"))
    small = bits.take(1)
    height = 8 * (bits.take(5) + 1) if small else bits.size()
    ratio = bits.take(3)
    if not ratio:
        return (8 * (bits.take(5) + 1) if small else bits.size()), height
    over, under = ((1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))[ratio - 1]
    return height * over // under, height


class _Bits:
    """Whole numbers from a stream whose lowest bit comes first.

    Args:
        value: The stream.
    """

    def __init__(self, value: int) -> None:
        self._value = value

    def take(self, count: int) -> int:
        """The next bits."""
        found, self._value = self._value & ((1 << count) - 1), self._value >> count
        return found

    def size(self) -> int:
        """A side, by ISO/IEC 18181-1 D.2."""
        return 1 + self.take((9, 13, 18, 30)[self.take(2)])


def _jxl_codestream(data: bytes) -> bytes | None:
    at = 12
    while at + 8 <= len(data):
        length, kind, head = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8], 8
        if length == 1:
            length, head = int.from_bytes(data[at + 8 : at + 16], "big"), 16
        if kind in (b"jxlc", b"jxlp"):
            return data[at + head + 4 * (kind == b"jxlp") :][:64]
        if length < head:
            break
        at += length
    return None


def brighten_png(image: Image.Image, data: bytes) -> list[str]:
    """Give a loaded PNG of 16-bit colours, of which Pillow has the high bytes, those of its own full scale where they are nearly black; notes."""
    if data[:8] != b"\x89PNG\r\n\x1a\n" or data[24] != 16 or image.mode not in ("RGB", "RGBA"):
        return []
    high = np.asarray(image)[:, :, :3]
    if data[25] not in (2, 6) or high.max() > _FOURTEEN_BITS:
        return []
    with open_image(data) as other:
        # Read as if its bytes were swapped, what Pillow takes for the high byte is the low one.
        other.tile = [tile._replace(args=str(tile.args).replace("16B", "16L")) for tile in other.tile]
        low = np.asarray(other)[:, :, :3]
    pixels, notes = eight_bits(high.astype(np.uint16) << 8 | low)
    if image.mode == "RGBA":
        pixels = np.dstack([pixels, np.asarray(image)[:, :, 3]])
    image.im = Image.fromarray(pixels).im
    return notes


def is_upright(image: Any) -> bool:
    """Whether the reader has turned the image by what the container says; EXIF data beside it does not count then."""
    return image.format == "HEIF" or (image.format == "JXL" and not image.jpeg)

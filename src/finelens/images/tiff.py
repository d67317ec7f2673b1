"""TIFF files whose samples Pillow does not show as they are meant: read here from their tags, with Pillow's libtiff for the compression alone.

Pillow reads the usual kinds right and keeps them (:func:`read_tiff` returns None). Of the others it takes white for black (16 bits and floats with
PhotometricInterpretation 0), a fourth band for transparency, a reduced copy for the photograph, 16-bit planes for 8-bit ones, or refuses them.

The rules for bands: three gray or colour bands are red, green and blue; an extra sample is alpha only where ExtraSamples says so and it looks like
one (:func:`_is_alpha`), else it is left out; more than four bands without a colour space are a measurement and no picture.
"""

from __future__ import annotations

import io
import json
import lzma
import re
import struct
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image, TiffImagePlugin

from finelens.images.pixels import UnsupportedModeError, blend, eight_bits

_BIG_MOTOROLA = b"MM\0+"
MAGICS = (b"II*\0", b"MM\0*", b"II+\0", _BIG_MOTOROLA)
# Compressions that keep samples as they are: none, LZW, deflate (two numbers), PackBits, LZMA, zstd. All others are left to Pillow.
_NONE, _LZW, _DEFLATE, _PACKBITS, _LZMA, _ZSTD = 1, 5, (8, 32946), 32773, 34925, 50000
_PLAIN = (_NONE, _LZW, *_DEFLATE, _PACKBITS, _LZMA, _ZSTD)
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _PALETTE, _MASK, _CMYK, _YCBCR = range(7)
RAW_COLOURS = (32803, 34892)  # colour filter array, linear raw
_MAX_PAGES = 4096
_LZMA_MEMORY = 256 << 20
_BLOCK = 1 << 20  # samples unpacked at a time

Tags = Any  # Pillow's dictionary of tags


def is_tiff(data: bytes) -> bool:
    """Whether these are the first bytes of a TIFF file."""
    return data[:4] in MAGICS


class Page:
    """The tags of one page, as far as they say how its samples are stored.

    Args:
        tags: As read.
    """

    def __init__(self, tags: Tags) -> None:
        self.tags = tags
        self.width, self.height = self.number(256, 0), self.number(257, 0)
        self.samples = self.number(277, 1)
        bits = self.numbers(258) or (1,)
        self.bits = bits[0] if len(set(bits)) == 1 else 0
        formats = self.numbers(339) or (1,)
        self.format = formats[0] if len(set(formats)) == 1 else 0
        self.compression, self.photometric = self.number(259, 1), self.number(262, -1)
        self.planar = self.number(284, 1) == 2 and self.samples > 1
        self.extra = self.numbers(338)
        kind, old = self.number(254, 0), self.number(255, 1)
        self.reduced, self.mask = bool(kind & 1) or old == 2, bool(kind & 4) or self.photometric == _MASK

    def numbers(self, tag: int) -> tuple[int, ...]:
        """Values of a tag of whole numbers; empty where it is missing."""
        value = self.tags.get(tag, ())
        return tuple(int(x) for x in (value if isinstance(value, tuple) else (value,)))

    def number(self, tag: int, default: int) -> int:
        """The first value of a tag."""
        return next(iter(self.numbers(tag)), default)

    def text(self, tag: int) -> str:
        """Value of a tag of text."""
        value = self.tags.get(tag, "")
        value = value[0] if isinstance(value, tuple) and value else value
        return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value or "")

    @property
    def shape(self) -> tuple[Any, ...]:
        """What frames of one stack have in common."""
        return self.width, self.height, self.samples, self.bits, self.format, self.photometric


def pages(data: bytes) -> list[Page]:
    """The pages of a file in their order, without those that hang below others; none where it is no TIFF file or damaged."""
    return list(_pages(data, None)) if is_tiff(data) else []


def sub_pages(data: bytes, page: Page) -> list[Page]:
    """The pages below a page."""
    return [below for start in page.numbers(330)[:_MAX_PAGES] for below in _pages(data, start)]


def _pages(data: bytes, start: int | None) -> Iterator[Page]:
    """Pages from an offset, or from the first on; they end where one is damaged."""
    file, seen = io.BytesIO(data), set[int]()
    try:
        where = _tags(data).next if start is None else start
        while 0 < where < len(data) and where not in seen and len(seen) < _MAX_PAGES:
            seen.add(where)
            tags = _tags(data)
            file.seek(where)
            tags.load(file)
            page = Page(tags)
            if page.width < 1 or page.height < 1 or page.samples < 1:
                return
            yield page
            where = tags.next if start is None else 0
    except (ValueError, TypeError, OSError, struct.error, SyntaxError, OverflowError):
        return


def _tags(data: bytes) -> Tags:
    if data[:4] == _BIG_MOTOROLA:
        # Pillow looks for the mark of BigTIFF where little-endian files have it.
        tags: Tags = TiffImagePlugin.ImageFileDirectory_v2(b"MM\0*\0\0\0\0")
        tags._bigtiff, tags.next = True, int.from_bytes(data[8:16], "big")
        return tags
    return TiffImagePlugin.ImageFileDirectory_v2(data[:16] if 43 in data[2:4] else data[:8])


def choose_page(data: bytes, found: list[Page]) -> tuple[Page, list[str]]:
    """The photograph among the pages: the first that is neither a reduced copy nor a mask; with notes."""
    whole = [page for page in found if not (page.reduced or page.mask)]
    if found[0].reduced and not whole:
        whole = [page for page in sub_pages(data, found[0]) if not (page.reduced or page.mask)]
    if not whole:
        return found[0], []
    first = whole[0]
    # A writer of thumbnails may not say that the first page is one.
    larger = max(whole, key=lambda page: page.width * page.height)
    same_form = abs(first.width * larger.height - first.height * larger.width) <= 0.02 * first.width * larger.height
    if first.width * 4 <= larger.width and same_form:
        first = larger
    notes = ["several frames or pages: only the first is used"] if len(whole) > 1 and first is whole[0] else []
    if first is not found[0]:
        notes.append(f"the first page is a reduced copy or a mask: the page of {first.width} x {first.height} pixels is used")
    return first, notes


def read_tiff(data: bytes, found: list[Page], page: Page) -> tuple[np.ndarray, list[str]] | None:
    """Decode the chosen page by the rules of the module.

    Args:
        data: The file.
        found: Its pages.
        page: The one to read.

    Returns:
        Pixels (H, W, 3) uint8, upright, and notes; None where Pillow shows the same.

    Raises:
        UnsupportedModeError: A kind of samples without a defined way to RGB.
        ValueError: The file ends early or its tags contradict each other.
    """
    channels = [] if page is not found[0] else _channels(found)
    unread = data[:4] == _BIG_MOTOROLA
    if page.compression not in _PLAIN or not (channels or page is not found[0] or unread or _is_odd(page)):
        _refuse(page, keeps_samples=page.compression in _PLAIN)
        if unread:
            raise UnsupportedModeError(f"big-endian BigTIFF in compression {page.compression} is not read; save it as a plain TIFF")
        return None
    _refuse(page, keeps_samples=True)
    if channels:
        values = np.concatenate([_samples(data, each, 1) for each in channels], axis=2)
        rgb, notes = eight_bits(values, full=_full(page))
        notes.append("three gray pages that are channels taken as red, green and blue")
    else:
        rgb, notes = _picture(data, page)
    return turned(rgb, _orientation(page)), notes


def _is_odd(page: Page) -> bool:
    """Whether Pillow reads something else than is meant, or may."""
    if page.format != 1 or page.bits > 8 or page.bits in (0, 3, 5, 6, 7) or page.planar or page.extra:
        return True
    usual = {_WHITE_IS_ZERO: 1, _BLACK_IS_ZERO: 1, _RGB: 3, _PALETTE: 1, _CMYK: 4}
    return page.samples != usual.get(page.photometric, page.samples)


def _refuse(page: Page, *, keeps_samples: bool) -> None:
    many = page.photometric in (-1, _WHITE_IS_ZERO, _BLACK_IS_ZERO) and page.samples > 4
    if page.format in (5, 6):
        raise UnsupportedModeError("complex samples are a measurement and no picture")
    if many:
        raise UnsupportedModeError(f"{page.samples} samples a pixel are a measurement and no picture; export red, green and blue as an RGB TIFF")
    if page.photometric in RAW_COLOURS:
        raise UnsupportedModeError("the samples of a camera's sensor; export it as JPEG")
    if page.photometric not in (-1, *range(7)):
        raise UnsupportedModeError(f"colour space {page.photometric} (TIFF PhotometricInterpretation) is not read; save it as an RGB TIFF")
    if page.photometric == _CMYK and page.number(332, 1) != 1:
        raise UnsupportedModeError("inks that are not CMYK; save it as an RGB TIFF")
    if page.bits == 0 or page.bits > 64 or page.format not in (1, 2, 3, 4):
        raise UnsupportedModeError(f"samples of {page.numbers(258)} bits are not read; save it as an RGB TIFF")
    if page.bits not in (16, 32, 64) and page.format == 3:
        raise UnsupportedModeError(f"floats of {page.bits} bits are not read; save it as an RGB TIFF")
    if page.photometric == _YCBCR and keeps_samples and (page.bits != 8 or page.planar):
        raise UnsupportedModeError("YCbCr in planes or of more than 8 bits is not read; save it as an RGB TIFF")
    if page.photometric == _PALETTE and (page.samples != 1 or page.bits > 16) and keeps_samples:
        raise UnsupportedModeError(f"a palette with {page.samples} samples a pixel is not read; save it as an RGB TIFF")
    if not keeps_samples and (page.bits > 8 or page.samples > {_RGB: 3, _YCBCR: 3, _CMYK: 4}.get(page.photometric, 1)):
        what = f"{page.samples} samples of {page.bits} bits in compression {page.compression}"
        raise UnsupportedModeError(f"{what} are not read; save it as an RGB TIFF")


def _channels(found: list[Page]) -> list[Page]:
    """Three gray pages that the file's own description calls channels: ImageJ's, OME's or tifffile's axes; else none."""
    first = found[0]
    if len(found) != 3 or len({page.shape for page in found}) != 1 or first.samples != 1 or first.photometric not in (_WHITE_IS_ZERO, _BLACK_IS_ZERO):
        return []
    text = first.text(270)
    said = re.search(r"^channels=3\s*$", text, re.MULTILINE) if text.startswith("ImageJ=") else re.search(r'\bSizeC="3"', text)
    return found if said or _axes(text).startswith("C") else []


def _axes(text: str) -> str:
    try:
        return str(json.loads(text).get("axes", "")) if text.startswith("{") else ""
    except (ValueError, AttributeError, RecursionError):
        return ""


def _full(page: Page) -> int | None:
    """The value of full brightness by the file's own word, None where the samples must tell."""
    if page.format not in (1, 4):
        return None
    declared = page.number(281, 0)
    if page.bits > 8 and declared and page.bits <= 16:
        return declared
    return (1 << page.bits) - 1 if page.bits not in (16, 32, 64) else None


def _picture(data: bytes, page: Page) -> tuple[np.ndarray, list[str]]:
    colours = {_CMYK: 4, _RGB: 3, _YCBCR: 3, _PALETTE: 1}.get(page.photometric, 3 if page.samples - len(page.extra) >= 3 or page.samples >= 3 else 1)
    if page.samples < colours:
        raise ValueError(f"{page.samples} samples a pixel are too few for colour space {page.photometric}")
    alpha_said = page.samples > colours and colours != 4 and bool(page.extra) and page.extra[0] in (1, 2)
    values = _samples(data, page, colours + alpha_said)
    colour, notes = values[:, :, :colours], list[str]()
    if page.photometric == _PALETTE:
        table = np.array(page.numbers(320), dtype=np.int64).reshape(3, -1)
        colour = (table[:, colour[:, :, 0]] >> 8).clip(0, 255).astype(np.uint8).transpose(1, 2, 0)  # (H, W, 3)
    else:
        colour, notes = eight_bits(colour, full=_full(page), nodata=_nodata(page), invert=page.photometric == _WHITE_IS_ZERO)
    if page.photometric in (_CMYK, _YCBCR):
        mode = "CMYK" if page.photometric == _CMYK else "YCbCr"
        colour = np.asarray(Image.fromarray(np.ascontiguousarray(colour), mode).convert("RGB"))
        notes += ["CMYK converted without its colour profile"] if mode == "CMYK" else []
    rgb = np.repeat(colour, 3, axis=2) if colour.shape[2] == 1 else colour
    if page.photometric not in (_RGB, _CMYK, _YCBCR, _PALETTE) and colours == 3:
        notes.append("three gray samples a pixel taken as red, green and blue")
    if alpha_said:
        alpha = eight_bits(values[:, :, colours:], full=_full(page) or _top(values))[0][:, :, 0]
        if _is_alpha(alpha):
            rgb, blended = blend(rgb, alpha, premultiplied=page.extra[0] == 1)
            return rgb, notes + blended
    left = page.samples - colours
    if left:
        why = " (called alpha, but it does not look like one)" if alpha_said else ""
        notes.append(f"{left} further samples a pixel left out{why}")
    return rgb, notes


def _top(values: np.ndarray) -> float:
    """Full scale of an alpha channel beside colours of the same type."""
    if values.dtype.kind == "f":
        return 1.0 if float(np.nanmax(values[:, :, -1], initial=0.0)) <= 1 else 255.0
    return float(np.iinfo(values.dtype).max)


def _is_alpha(alpha: np.ndarray) -> bool:
    """Whether samples look like transparency: nearly all of them nothing or all, and some are all. An infrared band is neither."""
    whole = np.count_nonzero(alpha == 255)
    return bool(whole > 0 and whole + np.count_nonzero(alpha == 0) >= 0.9 * alpha.size)


def _nodata(page: Page) -> float | None:
    """GDAL's no-data value."""
    try:
        return float(page.text(42113).strip().strip("\0"))
    except ValueError:
        return None


# Samples


def _samples(data: bytes, page: Page, count: int) -> np.ndarray:
    """The first samples of each pixel, (H, W, count)."""
    big = data[:2] == b"MM"
    whole = page.bits in (8, 16, 32, 64)
    kind = {2: "i", 3: "f"}.get(page.format, "u")
    dtype = np.dtype(f"{kind}{page.bits // 8}" if whole else np.uint16 if page.bits <= 16 else np.uint64)
    if page.format == 2 and not whole:
        raise UnsupportedModeError(f"signed samples of {page.bits} bits are not read; save it as an RGB TIFF")
    tiled = 322 in page.tags
    strip = min(page.number(278, page.height) or page.height, page.height)
    high, wide = (page.number(323, 0), page.number(322, 0)) if tiled else (strip, page.width)
    if not (high > 0 and wide > 0):
        raise ValueError("tiles or strips without a size")
    if high * wide > 4 * (page.height + 4096) * (page.width + 4096):
        raise ValueError("tiles far larger than the picture")
    starts, sizes = (page.numbers(324), page.numbers(325)) if tiled else (page.numbers(273), page.numbers(279))
    down, across = -(-page.height // high), -(-page.width // wide)
    planes, each = (count, 1) if page.planar else (1, page.samples)
    if len(starts) < planes * down * across:
        raise ValueError("tiles or strips are missing")
    result = np.zeros((page.height, page.width, count), dtype)
    for number in range(planes * down * across):
        plane, place = divmod(number, down * across)
        y, x = (place // across) * high, (place % across) * wide
        rows = high if tiled else min(high, page.height - y)
        need = rows * -(-wide * each * page.bits // 8)
        size = sizes[number] if number < len(sizes) else need
        if not starts[number] and not size:
            continue  # a hole, by the convention of GDAL
        block = _unpacked(data[starts[number] : starts[number] + size], page, need, rows)
        values = _decode_block(block, page, (rows, wide, each), big, dtype)
        part = values[: page.height - y, : page.width - x, : 1 if page.planar else count]
        result[y : y + part.shape[0], x : x + part.shape[1], plane if page.planar else slice(None)] = part[:, :, 0] if page.planar else part
    return result


def _unpacked(block: bytes, page: Page, need: int, rows: int) -> bytes:
    """Bytes of a strip or tile without its compression."""
    if page.number(266, 1) == 2:
        block = np.packbits(np.unpackbits(np.frombuffer(block, np.uint8)).reshape(-1, 8)[:, ::-1]).tobytes()
    if page.compression in _DEFLATE:
        block = zlib.decompressobj().decompress(block, need)
    elif page.compression == _LZMA:
        block = lzma.LZMADecompressor(memlimit=_LZMA_MEMORY).decompress(block, need)
    elif page.compression != _NONE:
        block = _by_libtiff(block, page.compression, need // rows, rows)
    if len(block) < need:
        raise ValueError("the file ends early, or a strip or tile is damaged")
    return block[:need]


def _by_libtiff(block: bytes, compression: int, width: int, height: int) -> bytes:
    """The same by Pillow's libtiff, to which the block is shown as a gray picture of 8 bits: its bytes come out as they were packed."""
    tags = {256: width, 257: height, 258: 8, 259: compression, 262: 1, 273: 134, 277: 1, 278: height, 279: len(block), 284: 1}
    head = b"II*\0" + struct.pack("<LH", 8, len(tags)) + b"".join(struct.pack("<HHLL", tag, 4, 1, value) for tag, value in tags.items())
    with TiffImagePlugin.TiffImageFile(io.BytesIO(head + bytes(4) + block)) as image:
        return image.tobytes()


def _decode_block(block: bytes, page: Page, shape: tuple[int, int, int], big: bool, dtype: np.dtype[Any]) -> np.ndarray:
    rows, wide, each = shape
    predictor = page.number(317, 1) if page.compression != _NONE else 1
    if page.bits not in (8, 16, 32, 64):
        if predictor != 1:
            raise UnsupportedModeError(f"a predictor on samples of {page.bits} bits is not read")
        return _unpack_bits(block, page.bits, shape, dtype)
    if predictor == 3:
        # Bytes of equal weight stand together, the highest first, and each is the difference to the one before.
        raw = np.frombuffer(block, np.uint8).reshape(rows, -1, each)
        raw = np.cumsum(raw, axis=1, dtype=np.uint8).reshape(rows, dtype.itemsize, wide * each)
        return np.ascontiguousarray(raw.transpose(0, 2, 1)).view(dtype.newbyteorder(">")).reshape(shape).astype(dtype)
    values = np.frombuffer(block, dtype.newbyteorder(">" if big else "<")).reshape(shape)
    if predictor == 2:
        unsigned = values.astype(dtype).view(f"u{dtype.itemsize}")
        return np.cumsum(unsigned, axis=1, dtype=unsigned.dtype).view(dtype)
    if predictor != 1:
        raise UnsupportedModeError(f"predictor {predictor} is not read")
    return values.astype(dtype)


def _unpack_bits(block: bytes, bits: int, shape: tuple[int, int, int], dtype: np.dtype[Any]) -> np.ndarray:
    """Samples of any number of bits, the highest first; each row begins at a byte."""
    rows, wide, each = shape
    packed = np.frombuffer(block, np.uint8).reshape(rows, -1)
    weights = (1 << np.arange(bits - 1, -1, -1)).astype(np.uint64)
    result, step = np.empty((rows, wide * each), dtype), max(1, _BLOCK // max(1, wide * each))
    for y in range(0, rows, step):
        flags = np.unpackbits(packed[y : y + step], axis=1)[:, : wide * each * bits]
        result[y : y + step] = (flags.reshape(len(flags), -1, bits) * weights).sum(-1, dtype=np.uint64)
    return result.reshape(shape)


# Orientation


def _orientation(page: Page) -> int:
    value = page.number(274, 0)
    if value:
        return value
    xmp = page.tags.get(700, b"")
    text = bytes(xmp) if isinstance(xmp, (bytes, tuple)) else str(xmp).encode()
    said = re.search(rb'tiff:Orientation(?:="|>)([0-9])', text)
    return int(said[1]) if said else 1


def turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """(H, W, 3) turned by an EXIF orientation of 1 to 8; any other number turns nothing."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.transpose(1, 0, 2)
    across, down = orientation in (2, 3, 6, 7), orientation in (3, 4, 7, 8)
    return np.ascontiguousarray(pixels[:: -1 if down else 1, :: -1 if across else 1])

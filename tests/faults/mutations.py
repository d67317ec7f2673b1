"""Sound image files of every format that is read, made here, and mutations of their bytes as recipes: what the fuzzer and its kept corpus share."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from PIL import Image, features

from tests.images.helpers import PNG, deep_png, dicom, dng

SIDE = 48


def picture() -> np.ndarray:
    y, x = np.mgrid[0:SIDE, 0:SIDE] * (255 / (SIDE - 1))
    return np.stack([x, y, (x + y) / 2], -1).astype(np.uint8)


def _saved(kind: str, mode: str = "RGB", **options) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture()).convert(mode).save(buffer, kind, **options)
    return buffer.getvalue()


def _tiff(values: np.ndarray, **options) -> bytes:
    import tifffile

    buffer = io.BytesIO()
    tifffile.imwrite(buffer, values, **options)
    return buffer.getvalue()


def _heif() -> bytes:
    import pillow_heif

    pillow_heif.register_heif_opener()
    return _saved("HEIF", quality=60)


def _jxl() -> bytes:
    import pillow_jxl  # noqa: F401

    return _saved("JXL")


def _preview() -> bytes:
    """As large as a preview must be to stand for the photograph."""
    buffer = io.BytesIO()
    Image.fromarray(picture()).resize((208, 208)).save(buffer, "JPEG")
    return buffer.getvalue()


def _developed() -> bytes:
    import rawpy  # noqa: F401

    return dng(picture())


def _dicom_rle() -> bytes:
    from pydicom.pixels.encoders.base import RLELosslessEncoder

    described = {"rows": SIDE, "columns": SIDE, "samples_per_pixel": 3, "number_of_frames": 1, "photometric_interpretation": "RGB"}
    described |= {"bits_allocated": 8, "bits_stored": 8, "pixel_representation": 0, "planar_configuration": 0}
    compressed = RLELosslessEncoder.encode(picture(), encoding_plugin="pydicom", **described)
    return dicom(picture(), compressed=compressed, syntax="1.2.840.10008.1.2.5")


def _wide() -> np.ndarray:
    return picture().astype(np.uint16) * 257


SOUND: dict[str, Callable[[], bytes]] = {
    "jpeg": lambda: _saved("JPEG"),
    "jpeg progressive": lambda: _saved("JPEG", progressive=True),
    "jpeg cmyk": lambda: _saved("JPEG", "CMYK"),
    "jpeg of two pictures": lambda: _saved("MPO", save_all=True, append_images=[Image.fromarray(picture()[::2, ::2])]),
    "png": lambda: _saved("PNG"),
    "png of 16 bits": lambda: deep_png(_wide() >> 4),
    "png palette": lambda: _saved("PNG", "P"),
    "webp": lambda: _saved("WEBP"),
    "webp lossless": lambda: _saved("WEBP", lossless=True),
    "gif": lambda: _saved("GIF", "P"),
    "bmp": lambda: _saved("BMP"),
    "ppm": lambda: _saved("PPM"),
    "tiff": lambda: _saved("TIFF"),
    "tiff lzw": lambda: _saved("TIFF", compression="tiff_lzw"),
    "tiff jpeg": lambda: _saved("TIFF", compression="jpeg"),
    "tiff float": lambda: _tiff(picture()[:, :, 0].astype(np.float32) / 255, photometric="minisblack"),
    "tiff planes": lambda: _tiff(np.ascontiguousarray(_wide().transpose(2, 0, 1)), photometric="rgb", planarconfig="separate"),
    "tiff tiles": lambda: _tiff(_wide(), photometric="rgb", tile=(16, 16), compression="zlib", predictor=True),
    "tiff big": lambda: _tiff(_wide(), photometric="rgb", bigtiff=True, byteorder=">"),
    "avif": lambda: _saved("AVIF", speed=10),
    "heif": _heif,
    "jxl": _jxl,
    "dicom": lambda: dicom(
        picture()[:, :, 0].astype(np.uint16) * 16, WindowCenter="2048", WindowWidth="4096", RescaleSlope="1", RescaleIntercept="0"
    ),
    "dicom rle": _dicom_rle,
    "dicom jpeg": lambda: dicom(picture(), compressed=_saved("JPEG"), syntax="1.2.840.10008.1.2.4.50", PhotometricInterpretation="YBR_FULL_422"),
    "raw preview": lambda: dng(preview=_preview()),
    "raw developed": _developed,
}
# Kinds whose pixels are not those of the picture: dithered, gray, larger, or as a sensor saw it.
OTHER_PIXELS = ("png palette", "gif", "tiff float", "dicom", "raw preview", "raw developed")


def sound(kind: str) -> bytes | None:
    """A sound file; None where it cannot be made here."""
    if kind == "avif" and not features.check("avif"):
        return None
    try:
        return SOUND[kind]()
    except (ImportError, pytest.skip.Exception):
        return None


Recipe = list[tuple[int, int]]
"""Places and new values of bytes; a place behind the end, or a value of -1, cuts the file there."""

_VALUES = (0, 1, 2, 3, 4, 7, 8, 16, 32, 64, 127, 128, 254, 255)


def recipes(data: bytes, rng: np.random.Generator) -> Iterator[Recipe]:
    """Mutations without end: mostly of the first and last bytes, where headers and directories lie."""
    while True:
        ends = [min(64, len(data)), min(512, len(data)), len(data)]
        recipe: Recipe = []
        for _ in range(int(rng.integers(1, 7))):
            reach = int(rng.choice(ends))
            place = int(rng.integers(0, reach))
            place = len(data) - 1 - place if rng.random() < 0.3 else place
            value = int(rng.choice(_VALUES)) if rng.random() < 0.6 else int(rng.integers(0, 256))
            recipe.append((place, -1 if rng.random() < 0.02 else value))
        yield recipe


def _with_checksums(data: bytearray) -> bytearray:
    """A PNG whose chunks have the checksums of what they hold: else a reader would look no further."""
    at = len(PNG)
    while (end := at + 8 + int.from_bytes(data[at : at + 4], "big")) + 4 <= len(data):
        data[end : end + 4] = struct.pack(">I", zlib.crc32(data[at + 4 : end]))
        at = end + 4
    return data


def mutated(data: bytes, recipe: Recipe) -> bytes:
    """The file of a recipe; of a PNG with its checksums mended where the recipe is of an odd length."""
    changed = bytearray(data)
    for place, value in recipe:
        if value < 0:
            del changed[place:]
        elif place < len(changed):
            changed[place] = value
    mended = changed.startswith(PNG) and len(recipe) % 2
    return bytes(_with_checksums(changed) if mended else changed)

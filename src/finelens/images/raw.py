"""Photographs in camera raw files: the preview that the camera put in, or what the ``raw`` extra makes of the sensor's samples."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np

from finelens.images.pixels import UnsupportedModeError
from finelens.images.tiff import RAW_COLOURS, Page

# Below this short side a preview is a thumbnail, in which fine differences are gone.
FEWEST_PIXELS = 200
_DNG_VERSION = 50706
_SOF = (0xC0, 0xC1, 0xC2)  # baseline, extended and progressive JPEG; 0xC3, lossless, holds the sensor's samples
# LibRaw's flips in the numbers of EXIF.
_FLIPS = {0: 1, 1: 2, 2: 4, 3: 3, 4: 5, 5: 8, 6: 6, 7: 7}


def is_raw(data: bytes, found: list[Page]) -> bool:
    """Whether the content is a camera's raw file, whatever it is called."""
    return data[8:10] == b"CR" or any(_DNG_VERSION in page.tags or page.photometric in RAW_COLOURS for page in found)


def preview(data: bytes, found: list[Page]) -> tuple[bytes, int, str] | None:
    """The largest JPEG in a raw file, the EXIF orientation that holds where it has none of its own, and a note; None without one.

    Args:
        data: The file.
        found: Its pages.
    """
    orientation = found[0].number(274, 1) if found else 1
    candidates = [block for page in found for block in _jpegs(data, page)]
    best = max(candidates, key=_area, default=b"")
    if min(_size(best)) < FEWEST_PIXELS:
        return _thumbnail_by_rawpy(data)
    return best, orientation, _note(best)


def _note(jpeg: bytes) -> str:
    width, height = _size(jpeg)
    return f"camera raw: its preview of {width} x {height} pixels is used"


def _jpegs(data: bytes, page: Page) -> list[bytes]:
    places = list(zip(page.numbers(513), page.numbers(514), strict=False))
    if page.compression in (6, 7) and len(page.numbers(273)) == 1 and page.photometric not in RAW_COLOURS:
        places += zip(page.numbers(273), page.numbers(279), strict=False)
    return [data[start : start + size] for start, size in places if data[start : start + 2] == b"\xff\xd8"]


def _size(jpeg: bytes) -> tuple[int, int]:
    """Width and height by the header of a lossy JPEG; zeros for anything else."""
    at = 2
    while at + 9 < len(jpeg) and jpeg[at] == 0xFF:
        marker, length = jpeg[at + 1], int.from_bytes(jpeg[at + 2 : at + 4], "big")
        if marker in _SOF:
            return int.from_bytes(jpeg[at + 7 : at + 9], "big"), int.from_bytes(jpeg[at + 5 : at + 7], "big")
        if marker in (0xC3, 0xDA) or length < 2:
            break
        at += 2 + length
    return 0, 0


def _area(jpeg: bytes) -> int:
    width, height = _size(jpeg)
    return width * height


def _rawpy() -> Any:
    try:
        import rawpy
    except ImportError:
        return None
    return rawpy


def _thumbnail_by_rawpy(data: bytes) -> tuple[bytes, int, str] | None:
    rawpy = _rawpy()
    if rawpy is None:
        return None
    try:
        with rawpy.imread(io.BytesIO(data)) as file:
            thumbnail = file.extract_thumb()
            jpeg = bytes(thumbnail.data) if thumbnail.format == rawpy.ThumbFormat.JPEG else b""
            flip = _FLIPS.get(file.sizes.flip, 1)
    except rawpy.LibRawError:
        return None
    return (jpeg, flip, _note(jpeg)) if min(_size(jpeg)) >= FEWEST_PIXELS else None


def developed(data: bytes, check: Callable[[int, int], None]) -> tuple[np.ndarray, list[str]]:
    """(H, W, 3) uint8, upright, from the sensor's samples, and notes.

    Args:
        data: The file.
        check: Refuses a width and height, before pixels are developed.

    Raises:
        UnsupportedModeError: rawpy is not installed, or does not know the file.
        ValueError: The file is damaged or ends early.
    """
    rawpy = _rawpy()
    if rawpy is None:
        raise UnsupportedModeError("camera raw without a preview of a useful size; pip install 'finelens[raw]', or export it as JPEG")
    try:
        with rawpy.imread(io.BytesIO(data)) as file:
            check(file.sizes.iwidth, file.sizes.iheight)
            return file.postprocess(use_camera_wb=True), ["camera raw: developed with the camera's white balance"]
    except (rawpy.LibRawIOError, rawpy.LibRawDataError) as error:
        raise ValueError("the content is camera raw, which is damaged or ends early") from error
    except (rawpy.LibRawError, rawpy.NotSupportedError) as error:
        said = error.args[0] if error.args else ""
        reason = said.decode("utf-8", "replace") if isinstance(said, bytes) else said
        raise UnsupportedModeError(f"camera raw that rawpy does not read ({reason}); export it as JPEG") from error

"""From a Pillow image of any mode to 8-bit RGB, by stated rules.

Pillow's own ``convert("RGB")`` clips 16-bit gray to white and floats to black, and shows the hidden colours of transparent pixels. The rules here:

===============================  =======================================================================================================
Samples                          Rule
===============================  =======================================================================================================
8 bits or fewer, palette         As they are; gray is repeated over the channels.
9 to 15 bits by the file         Scaled by that full scale.
16-bit words                     Full scale is the smallest of 255, 1023, 4095, 16383 and 65535 that holds the largest value, because cameras of 10,
                                 12 and 14 bits write 16-bit words that would be nearly black; noted with the largest value. The full scale that
                                 a TIFF states (MaxSampleValue) is believed instead. Of colour at 65535 the high byte is taken.
32-bit integers                  All within 0..255: as they are. Else all within 0..65535: as 16-bit words. Else: the picture's own minimum and
                                 maximum become 0 and 255.
Floats                           All within 0..1: ``round(255 v)``. Else all within 0..255 with a maximum of 16 or more: rounded. Else the picture's
                                 own minimum and maximum. NaN is 0 and infinities are the ends; all noted.
No data, lone extremes           Left out where the scale is chosen, and clipped; noted. A no-data value is what the file declares (GDAL's tag), or a
                                 single value farther from all others than these are wide; an extreme is lone where at most one sample in 1000
                                 lies so far out.
CMYK, YCbCr, HSV                 Pillow's conversion, which ignores colour profiles; CMYK is noted.
Transparency of any kind         Composited on ``BACKGROUND``; noted where a pixel is not opaque.
===============================  =======================================================================================================

All samples of a pixel share one scale. Which bands of a TIFF are colours is decided in :mod:`finelens.images.tiff`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

BACKGROUND = (255, 255, 255)

_CONVERTIBLE = frozenset({"1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", "HSV"})
_ALPHA = frozenset({"RGBA", "RGBa", "LA", "La", "PA"})
_MAY_DECLARE_TRANSPARENCY = frozenset({"1", "L", "P", "RGB"})
# Formats whose integer mode "I" always holds 16-bit samples.
_SIXTEEN_BIT_FORMATS = frozenset({"PNG", "PPM"})
_FULL_SCALES = (255, 1023, 4095, 16383)
_FEWEST_VALUES = 16


class UnsupportedModeError(ValueError):
    """A pixel format without a defined way to RGB."""


def to_rgb(image: Image.Image) -> tuple[np.ndarray, list[str]]:
    """Convert by the rules of the module.

    Args:
        image: A loaded image of any mode.

    Returns:
        Pixels (H, W, 3) uint8, and notes on what was done that the owner may not expect.

    Raises:
        UnsupportedModeError: No rule for the mode.
    """
    if image.mode in _ALPHA or (image.mode in _MAY_DECLARE_TRANSPARENCY and "transparency" in image.info):
        return _composite(image)
    if image.mode in _CONVERTIBLE:
        notes = ["CMYK converted without its colour profile"] if image.mode == "CMYK" else []
        return np.asarray(image.convert("RGB")), notes
    if image.mode not in ("I", "F") and not image.mode.startswith("I;16"):
        raise UnsupportedModeError(f"pixel format {image.mode} has no defined conversion to RGB; save it as an RGB PNG")
    values = np.asarray(image)[:, :, None]
    words = image.mode == "I" and image.format in _SIXTEEN_BIT_FORMATS
    gray, notes = eight_bits(values.astype(np.uint16) if words else values)
    return np.repeat(gray, 3, axis=2), notes


def eight_bits(values: np.ndarray, *, full: float | None = None, nodata: float | None = None, invert: bool = False) -> tuple[np.ndarray, list[str]]:
    """Samples of any type as 8 bits, by the rules of the module.

    Args:
        values: (H, W, C) of whole or floating numbers.
        full: Full scale by the file's own word.
        nodata: Value that stands for no data.
        invert: Whether the lowest value is white.

    Returns:
        (H, W, C) uint8, and notes.
    """
    if full is not None:
        scaled, notes = (values.astype(np.uint8) if full == 255 else _scale(values, full)), []
        if full > 255:
            notes = [f"samples with a full scale of {full:g} scaled to 8 bits"]
    elif values.dtype == np.uint8:
        scaled, notes = values, []
    elif values.dtype.kind == "f":
        scaled, notes = _from_floats(values, nodata)
    else:
        scaled, notes = _from_integers(values, nodata)
    return 255 - scaled if invert else scaled, notes


def blend(rgb: np.ndarray, alpha: np.ndarray, *, premultiplied: bool = False) -> tuple[np.ndarray, list[str]]:
    """(H, W, 3) uint8 on the background where (H, W) uint8 alpha lets it through, and a note if it does anywhere."""
    height, width = alpha.shape
    return _composite(Image.frombytes("RGBa" if premultiplied else "RGBA", (width, height), np.dstack([rgb, alpha]).tobytes()))


def _composite(image: Image.Image) -> tuple[np.ndarray, list[str]]:
    layer = image if image.mode == "RGBA" else image.convert("RGBA")
    if layer.getextrema()[3][0] == 255:
        return np.asarray(layer.convert("RGB")), []
    ground = Image.new("RGBA", layer.size, (*BACKGROUND, 255))
    return np.asarray(Image.alpha_composite(ground, layer).convert("RGB")), ["transparency composited on white"]


def _from_integers(values: np.ndarray, nodata: float | None) -> tuple[np.ndarray, list[str]]:
    low, high, notes = _extent(values, nodata)
    words = values.dtype.itemsize == 2
    if low < 0 or high > 65535:
        return _stretch(values.astype(np.float64), low, high), [f"integer samples {low} to {high} stretched to 8 bits", *notes]
    if high <= 255 and not words:
        return values.clip(0, 255).astype(np.uint8), notes
    # Signed words reach half as far.
    whole = 32767 if words and values.dtype.kind == "i" else 65535
    full = next((top for top in _FULL_SCALES if high <= top), whole) if high else whole
    if full < whole:
        return _scale(values, full), [f"16-bit words hold at most {high}: scaled as samples of {full.bit_length()} bits", *notes]
    if values.shape[2] > 1 and whole == 65535:
        return (values.clip(0, whole) >> 8).astype(np.uint8), notes
    return _scale(values, whole), ["16-bit gray scaled to 8 bits", *notes]


def _from_floats(values: np.ndarray, nodata: float | None) -> tuple[np.ndarray, list[str]]:
    values = values.astype(np.float64)
    low, high, notes = _extent(values, nodata)
    if not np.isfinite(values).all():
        notes.append("samples that are not finite replaced")
        values = np.nan_to_num(values, nan=max(low, 0.0), posinf=high, neginf=low)
    if low >= 0 and high <= 1:
        return _scale(values, 1.0), ["float samples 0 to 1 scaled to 8 bits", *notes]
    if low >= 0 and 16 <= high <= 255:
        return _scale(values, 255.0), ["float samples rounded to 8 bits", *notes]
    return _stretch(values, low, high), [f"float samples {low:g} to {high:g} stretched to 8 bits", *notes]


def _extent(values: np.ndarray, nodata: float | None) -> tuple[Any, Any, list[str]]:
    """Smallest and largest value of the picture proper, without no data and lone extremes, and notes on these."""
    flat, notes = values.reshape(-1), list[str]()
    if flat.dtype.kind == "f":
        flat = flat[np.isfinite(flat)]
    if nodata is not None and (proper := flat[flat != nodata]).size < flat.size:
        notes.append(f"no-data value {nodata:g} left out of the scale")
        flat = proper
    if not flat.size:
        return 0, 0, notes
    low, high = flat.min().item(), flat.max().item()
    for end in (high, low):
        rest = flat[flat != end]
        if rest.size and _is_varied(rest):
            inner_low, inner_high = rest.min().item(), rest.max().item()
            if max(end - inner_high, inner_low - end) > inner_high - inner_low:
                notes.append(f"value {end:g} far from all others left out of the scale as no data")
                flat, low, high = rest, inner_low, inner_high
    few = flat.size // 1000
    if few:
        ends = np.partition(flat, [few, flat.size - 1 - few])
        inner_low, inner_high = ends[few].item(), ends[flat.size - 1 - few].item()
        width = inner_high - inner_low
        if width > 0 and max(high - inner_high, inner_low - low) > width:
            notes.append(f"lone extremes ({low:g} to {high:g}) left out of the scale")
            low, high = (inner_low if inner_low - low > width else low), (inner_high if high - inner_high > width else high)
    return low, high, notes


def _is_varied(values: np.ndarray) -> bool:
    """Whether these are the samples of a picture: a mask or a drawing has few values, and none of them stands for no data."""
    return len(np.unique(values[:: max(1, values.size // 65536)])) >= _FEWEST_VALUES


def _scale(values: np.ndarray, full: float) -> np.ndarray:
    return np.rint(values * (255.0 / full)).clip(0, 255).astype(np.uint8)


def _stretch(values: np.ndarray, low: float, high: float) -> np.ndarray:
    # Halved first: the difference of two large floats of opposite sign can overflow.
    span = max(high / 2 - low / 2, np.finfo(np.float64).tiny)
    return np.rint((values / 2 - low / 2) / span * 255.0).clip(0, 255).astype(np.uint8)

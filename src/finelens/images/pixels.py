"""From a Pillow image of any mode to 8-bit RGB, by stated rules.

Pillow's own ``convert("RGB")`` clips 16-bit gray to white and floats to black, and shows the hidden colours of transparent pixels. The rules here:

===============================  =======================================================================================================
Samples                          Rule
===============================  =======================================================================================================
8 bits or fewer, palette         As they are; gray is repeated over the channels.
16-bit gray (by the file)        ``round(v * 255 / 65535)``: the full scale of the type, whatever part of it the picture uses.
32-bit integers                  No full scale that anyone uses. All within 0..255: as they are. Else all within 0..65535: as 16-bit. Else: the
                                 picture's own minimum and maximum become 0 and 255. The last two are noted.
Floats                           All within 0..1: ``round(255 v)``. Else all within 0..255: rounded. Else the picture's own minimum and maximum.
                                 NaN is 0 and infinities are the ends; all noted.
16 bits per channel in colour    The high byte, by Pillow's reader.
CMYK, YCbCr, HSV                 Pillow's conversion, which ignores colour profiles; CMYK is noted.
Transparency of any kind         Composited on ``BACKGROUND``; noted where a pixel is not opaque.
===============================  =======================================================================================================
"""

from __future__ import annotations

import numpy as np
from PIL import Image

BACKGROUND = (255, 255, 255)

_CONVERTIBLE = frozenset({"1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", "HSV"})
_ALPHA = frozenset({"RGBA", "RGBa", "LA", "La", "PA"})
_MAY_DECLARE_TRANSPARENCY = frozenset({"1", "L", "P", "RGB"})
# Formats whose integer mode "I" always holds 16-bit samples.
_SIXTEEN_BIT_FORMATS = frozenset({"PNG", "PPM"})


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
    if image.mode.startswith("I;16"):
        gray, notes = _scale(np.asarray(image), 65535.0), ["16-bit gray scaled to 8 bits"]
    elif image.mode == "I":
        gray, notes = _from_integers(np.asarray(image), image.format in _SIXTEEN_BIT_FORMATS)
    elif image.mode == "F":
        gray, notes = _from_floats(np.asarray(image))
    else:
        raise UnsupportedModeError(f"pixel format {image.mode} has no defined conversion to RGB; save it as an RGB PNG")
    return np.repeat(gray[:, :, None], 3, axis=2), notes


def _composite(image: Image.Image) -> tuple[np.ndarray, list[str]]:
    layer = image if image.mode == "RGBA" else image.convert("RGBA")
    if layer.getextrema()[3][0] == 255:
        return np.asarray(layer.convert("RGB")), []
    ground = Image.new("RGBA", layer.size, (*BACKGROUND, 255))
    return np.asarray(Image.alpha_composite(ground, layer).convert("RGB")), ["transparency composited on white"]


def _from_integers(values: np.ndarray, sixteen_bit: bool) -> tuple[np.ndarray, list[str]]:
    low, high = int(values.min()), int(values.max())
    if sixteen_bit or (low >= 0 and 255 < high <= 65535):
        return _scale(values, 65535.0), ["16-bit gray scaled to 8 bits"]
    if low >= 0 and high <= 255:
        return values.astype(np.uint8), []
    return _stretch(values.astype(np.float64), low, high), [f"integer samples {low} to {high} stretched to 8 bits"]


def _from_floats(values: np.ndarray) -> tuple[np.ndarray, list[str]]:
    finite = values[np.isfinite(values)].astype(np.float64)
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    notes = [] if finite.size == values.size else ["samples that are not finite replaced"]
    values = np.nan_to_num(values.astype(np.float64), nan=max(low, 0.0), posinf=high, neginf=low)
    if low >= 0 and high <= 1:
        return _scale(values, 1.0), ["float samples 0 to 1 scaled to 8 bits", *notes]
    if low >= 0 and high <= 255:
        return _scale(values, 255.0), ["float samples rounded to 8 bits", *notes]
    return _stretch(values, low, high), [f"float samples {low:g} to {high:g} stretched to 8 bits", *notes]


def _scale(values: np.ndarray, full: float) -> np.ndarray:
    return np.rint(values * (255.0 / full)).clip(0, 255).astype(np.uint8)


def _stretch(values: np.ndarray, low: float, high: float) -> np.ndarray:
    # Halved first: the difference of two large floats of opposite sign can overflow.
    span = max(high / 2 - low / 2, np.finfo(np.float64).tiny)
    return np.rint((values / 2 - low / 2) / span * 255.0).clip(0, 255).astype(np.uint8)

"""DICOM images, with the ``dicom`` extra: the first frame, through the window that the file states."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np

from finelens.images.pixels import UnsupportedModeError, eight_bits

_MAGIC = 128


def is_dicom(data: bytes) -> bool:
    """Whether these are the first bytes of a DICOM file."""
    return data[_MAGIC : _MAGIC + 4] == b"DICM"


def read_dicom(data: bytes, check: Callable[[int, int], None]) -> tuple[np.ndarray, list[str]]:
    """(H, W, 3) uint8 and notes.

    Args:
        data: The file.
        check: Refuses a width and height, before pixels are decoded.

    Raises:
        UnsupportedModeError: pydicom is not installed, the file holds no image, or one in a compression that is not read.
    """
    try:
        import pydicom
        from pydicom.pixels import apply_modality_lut, convert_color_space
    except ImportError:
        raise UnsupportedModeError("DICOM; pip install 'finelens[dicom]', or export it as PNG") from None
    header = pydicom.dcmread(io.BytesIO(data), force=False)
    if not all(name in header for name in ("Rows", "Columns", "PixelData")):
        raise UnsupportedModeError("DICOM without an image")
    check(int(header.Columns), int(header.Rows))
    frames = int(header.get("NumberOfFrames") or 1)
    notes = ["several frames or pages: only the first is used"] if frames > 1 else []
    try:
        values = pydicom.pixels.pixel_array(io.BytesIO(data), index=0)
    except (RuntimeError, NotImplementedError) as error:
        raise UnsupportedModeError(f"DICOM in a compression that is not read ({error}); export it as PNG") from error
    colours = str(header.PhotometricInterpretation)
    if values.ndim == 3:
        values = convert_color_space(values, colours, "RGB") if colours.startswith("YBR") else values
        rgb, more = eight_bits(values, full=(1 << int(header.BitsStored)) - 1)
        return rgb, notes + more
    if not colours.startswith("MONOCHROME"):
        raise UnsupportedModeError(f"DICOM in the colours {colours}; export it as PNG")
    measured = np.asarray(apply_modality_lut(values, header), dtype=np.float64)[:, :, None]
    gray, more = _windowed(measured, header)
    gray = 255 - gray if colours == "MONOCHROME1" else gray
    return np.repeat(gray, 3, axis=2), notes + more


def _windowed(values: np.ndarray, header: Any) -> tuple[np.ndarray, list[str]]:
    """By PS3.3 C.11.2.1.2 of the standard; of several windows the first. Without one, the whole scale."""
    centre, width = (_first(header.get(name)) for name in ("WindowCenter", "WindowWidth"))
    if centre is not None and width is not None and width >= 1:
        scaled = ((values - (centre - 0.5)) / max(width - 1, 1e-9) + 0.5) * 255
        return np.rint(scaled.clip(0, 255)).astype(np.uint8), [f"DICOM window centre {centre:g}, width {width:g}"]
    plain = values.min() >= 0 and float(values.max()) < 1 << int(header.BitsStored)
    return eight_bits(values, full=(1 << int(header.BitsStored)) - 1) if plain else eight_bits(values)


def _first(value: Any) -> float | None:
    if value is None or value == "":
        return None
    return float(value) if isinstance(value, (int, float, str)) else float(value[0])

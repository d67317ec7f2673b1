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
    except ImportError:
        raise UnsupportedModeError("DICOM; pip install 'finelens[dicom]', or export it as PNG") from None
    header = pydicom.dcmread(io.BytesIO(data), force=False)
    if not all(name in header for name in ("Rows", "Columns", "PixelData")):
        raise UnsupportedModeError("DICOM without an image")
    check(int(header.Columns), int(header.Rows))
    frames = int(header.get("NumberOfFrames") or 1)
    notes = ["several frames or pages: only the first is used"] if frames > 1 else []
    try:
        stored = pydicom.pixels.pixel_array(io.BytesIO(data), index=0)
    except (RuntimeError, NotImplementedError) as error:
        raise UnsupportedModeError(f"DICOM in a compression that is not read ({error}); export it as PNG") from error
    pixels, more = _shown(stored, header)
    return pixels, notes + more


def _shown(stored: np.ndarray, header: Any) -> tuple[np.ndarray, list[str]]:
    from pydicom.pixels import apply_color_lut, apply_modality_lut

    colours = str(header.PhotometricInterpretation)
    if colours == "PALETTE COLOR":
        rgb = apply_color_lut(stored, header)[:, :, :3]
        return (rgb >> 8).astype(np.uint8) if rgb.dtype == np.uint16 else rgb, []
    if stored.ndim == 3:
        # The reader has turned every YBR into RGB already.
        return eight_bits(stored, full=(1 << int(header.BitsStored)) - 1)
    if not colours.startswith("MONOCHROME"):
        raise UnsupportedModeError(f"DICOM in the colours {colours}; export it as PNG")
    measured = np.asarray(apply_modality_lut(stored, header))[:, :, None]  # (H, W, 1)
    gray, notes = _windowed(measured, header) or _whole(stored[:, :, None], measured, header)
    gray = 255 - gray if colours == "MONOCHROME1" else gray
    return np.repeat(gray, 3, axis=2), notes


def _windowed(measured: np.ndarray, header: Any) -> tuple[np.ndarray, list[str]] | None:
    """By PS3.3 C.11.2 of the standard: the file's table, or of several windows the first; None without any."""
    from pydicom.pixels import apply_voi

    if header.get("VOILUTSequence"):
        top = (1 << int(header.VOILUTSequence[0].LUTDescriptor[2])) - 1
        return np.rint(apply_voi(measured, header) * (255 / top)).clip(0, 255).astype(np.uint8), ["DICOM table of values of interest"]
    centre, width = (_first(header.get(name)) for name in ("WindowCenter", "WindowWidth"))
    function = str(header.get("VOILUTFunction") or "LINEAR").upper()
    if centre is None or width is None or width <= 0 or (width < 1 and function == "LINEAR"):
        return None
    values = measured.astype(np.float64)
    if function == "SIGMOID":
        scaled = 1 / (1 + np.exp((-4 * (values - centre) / width).clip(-500, 500)))
    elif function == "LINEAR":
        scaled = (values - (centre - 0.5)) / max(width - 1, 1e-9) + 0.5
    else:
        scaled = (values - centre) / width + 0.5
    return np.rint(255 * scaled.clip(0, 1)).astype(np.uint8), [f"DICOM window centre {centre:g}, width {width:g}"]


def _whole(stored: np.ndarray, measured: np.ndarray, header: Any) -> tuple[np.ndarray, list[str]]:
    """The whole scale of a file without a window: that of the stored values, unless they are signed; measured ones can lie anywhere."""
    rising = not header.get("ModalityLUTSequence") and float(header.get("RescaleSlope") or 1) > 0
    if stored.dtype.kind != "u" or not rising:
        return eight_bits(measured)
    bits = int(header.BitsStored)
    # Writers that know no better state the whole word.
    return eight_bits(stored, full=None if bits == 8 * stored.dtype.itemsize else (1 << bits) - 1)


def _first(value: Any) -> float | None:
    if value is None or value == "":
        return None
    return float(value) if isinstance(value, (int, float, str)) else float(value[0])

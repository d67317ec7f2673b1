"""Small deterministic pictures."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from finelens.images.store import PixelStore

PNG = b"\x89PNG\r\n\x1a\n"


def picture(seed: int = 0, height: int = 60, width: int = 80) -> np.ndarray:
    """A smooth colour picture with some noise, (H, W, 3) uint8."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    phase = rng.random((3, 3)) * 6
    channels = [127 + 90 * np.sin(x / 9 * p[0] / 3 + p[1]) * np.cos(y / 11 + p[2]) for p in phase]
    return np.clip(np.stack(channels, -1) + rng.normal(0, 8, (height, width, 3)), 0, 255).astype(np.uint8)


def tensor(seed: int = 0, height: int = 60, width: int = 80) -> torch.Tensor:
    """The same, (3, H, W)."""
    return torch.from_numpy(picture(seed, height, width)).permute(2, 0, 1)


def store(count: int, height: int = 60, width: int = 80) -> PixelStore:
    """A store of ``count`` pictures."""
    return PixelStore([f"id{i:03d}" for i in range(count)], [tensor(i, height + i % 7, width) for i in range(count)])


def save(path, seed: int = 0, **options) -> None:
    Image.fromarray(picture(seed)).save(path, **options)


def deep_png(values: np.ndarray) -> bytes:
    """A PNG of 16-bit colours (H, W, 3), which Pillow does not write."""
    height, width = values.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return PNG + b"".join(struct.pack(">I", len(d)) + t + d + struct.pack(">I", zlib.crc32(t + d)) for t, d in chunks)


def dng(rgb: np.ndarray | None = None, orientation: int = 1, preview: bytes | None = None) -> bytes:
    """A valid camera raw file: a thumbnail, below it the sensor's samples (a bright field without a picture of it) and perhaps a JPEG preview.

    Args:
        rgb: (H, W, 3) uint8 in sRGB that the sensor saw, of even sides, lying as the camera was held.
        orientation: EXIF orientation of the whole file.
        preview: A JPEG.
    """
    tifffile = pytest.importorskip("tifffile")
    if preview is not None:
        pytest.importorskip("imagecodecs", reason="tifffile writes no JPEG without it")
    rgb = np.full((64, 64, 3), 200, np.uint8) if rgb is None else rgb
    light = (rgb / 255.0) ** 2.2 * 4000 + 64
    mosaic = light[:, :, 1].astype(np.uint16)
    mosaic[0::2, 0::2], mosaic[1::2, 1::2] = light[0::2, 0::2, 0], light[1::2, 1::2, 2]
    # From XYZ to the camera, whose primaries are those of sRGB.
    matrix = [3.2406, -1.5372, -0.4986, -0.9689, 1.8758, 0.0415, 0.0557, -0.2040, 1.0570]
    ratios = [part for value in matrix for part in (round(value * 10000), 10000)]
    top = [(50706, "B", 4, b"\1\4\0\0"), (50707, "B", 4, b"\1\1\0\0"), (274, "H", 1, orientation), (271, "s", 0, "Made"), (272, "s", 0, "Made")]
    top += [(50708, "s", 0, "Made"), (50721, "2i", 9, ratios), (50778, "H", 1, 21), (50728, "2I", 3, [1] * 6)]
    sensor = [(33421, "H", 2, (2, 2)), (33422, "B", 4, b"\0\1\1\2"), (50714, "H", 1, 64), (50717, "H", 1, 4064)]
    file, plain = io.BytesIO(), {"metadata": None, "software": False}
    with tifffile.TiffWriter(file) as writer:
        below = 1 if preview is None else 2
        thumbnail = np.zeros((16, 16, 3), np.uint8)
        writer.write(thumbnail, photometric="rgb", subfiletype=1, subifds=below, extratags=[(*tag, True) for tag in top], **plain)
        writer.write(mosaic, photometric="cfa", extratags=[(*tag, True) for tag in sensor], **plain)
        if preview is not None:
            width, height = Image.open(io.BytesIO(preview)).size
            shown = {
                "shape": (height, width, 3),
                "dtype": np.uint8,
                "rowsperstrip": height,
                "photometric": "ycbcr",
                "compression": "jpeg",
                "subfiletype": 1,
            }
            writer.write(iter([preview]), **shown, **plain)
    return file.getvalue()


def dicom(values: np.ndarray, *, compressed: bytes | None = None, syntax: str = "1.2.840.10008.1.2.1", **tags) -> bytes:
    """A DICOM file of 12 bits in 16-bit words, unless the tags say otherwise.

    Args:
        values: (H, W) or (H, W, C) stored samples.
        compressed: The same, compressed as the syntax says.
        syntax: UID of the transfer syntax; uncompressed by default.
        **tags: Further elements by keyword.
    """
    pydicom = pytest.importorskip("pydicom")
    file = pydicom.Dataset()
    file.file_meta = pydicom.dataset.FileMetaDataset()
    file.file_meta.TransferSyntaxUID = pydicom.uid.UID(syntax)
    file.file_meta.MediaStorageSOPClassUID = file.SOPClassUID = pydicom.uid.SecondaryCaptureImageStorage
    file.file_meta.MediaStorageSOPInstanceUID = file.SOPInstanceUID = "1.2.3"
    file.Rows, file.Columns, file.SamplesPerPixel = *values.shape[:2], 1
    file.PhotometricInterpretation, file.PixelRepresentation = "MONOCHROME2", 0
    file.BitsAllocated, file.BitsStored, file.HighBit = 16, 12, 11
    if values.ndim == 3:
        file.SamplesPerPixel, file.PlanarConfiguration, file.PhotometricInterpretation = values.shape[2], 0, "RGB"
    if values.dtype == np.uint8:
        file.BitsAllocated, file.BitsStored, file.HighBit = 8, 8, 7
    for name, value in tags.items():
        setattr(file, name, value)
    file.PixelData = values.tobytes() if compressed is None else pydicom.encaps.encapsulate([compressed])
    file["PixelData"].VR = "OB" if compressed is not None or values.dtype == np.uint8 else "OW"
    file["PixelData"].is_undefined_length = compressed is not None
    buffer = io.BytesIO()
    pydicom.dcmwrite(buffer, file, enforce_file_format=True)
    return buffer.getvalue()

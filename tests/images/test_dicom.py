"""DICOM: colours in every coding that the reader converts, tables and windows of the standard, whole scales without a window."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from finelens.images.decode import DecodedImage, DecodeLimits, Failure, decode_bytes

from .helpers import dicom

pydicom = pytest.importorskip("pydicom")

RAMP = np.tile(np.arange(0, 4096, 16, dtype="<u2"), (64, 1))


def colours() -> np.ndarray:
    y, x = np.mgrid[0:60, 0:80]
    return np.stack([x * (255 / 79), y * (255 / 59), 255 - x * (255 / 79)], -1).astype(np.uint8)


def read(data: bytes) -> tuple[np.ndarray, tuple[str, ...]]:
    result = decode_bytes(data, "a.dcm", DecodeLimits())
    assert isinstance(result, DecodedImage), result
    return result.pixels.permute(1, 2, 0).numpy().astype(int), result.notes


def saved(kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(colours()).save(buffer, kind, **options)
    return buffer.getvalue()


def halved(ycc: np.ndarray) -> np.ndarray:
    """(H, W, 3) as YBR_FULL_422 stores it: two luminances, then the colours of the first."""
    return np.stack([ycc[:, 0::2, 0], ycc[:, 1::2, 0], ycc[:, 0::2, 1], ycc[:, 0::2, 2]], -1)


YCC = np.asarray(Image.fromarray(colours()).convert("YCbCr"))


@pytest.mark.parametrize(
    ("make", "within"),
    [
        (lambda: dicom(colours()), 0),
        (lambda: dicom(YCC, PhotometricInterpretation="YBR_FULL"), 3),
        (lambda: dicom(halved(YCC), PhotometricInterpretation="YBR_FULL_422", Rows=60, Columns=80, SamplesPerPixel=3), 8),
        (
            lambda: dicom(colours(), compressed=saved("JPEG", quality=95), syntax="1.2.840.10008.1.2.4.50", PhotometricInterpretation="YBR_FULL_422"),
            16,
        ),
        (lambda: dicom(colours(), compressed=saved("JPEG2000"), syntax="1.2.840.10008.1.2.4.90", PhotometricInterpretation="YBR_RCT"), 0),
        (lambda: dicom(colours(), compressed=saved("JPEG2000"), syntax="1.2.840.10008.1.2.4.90"), 0),
    ],
    ids=["RGB", "YBR_FULL", "YBR_FULL_422", "JPEG", "JPEG 2000 YBR_RCT", "JPEG 2000 RGB"],
)
def test_colours_are_converted_once(make, within):
    pixels, notes = read(make())
    assert np.abs(pixels - colours()).max() <= within
    assert notes == ()


def test_palette():
    index = np.arange(48, dtype=np.uint8).reshape(6, 8).repeat(8, 0).repeat(8, 1)
    table = {f"{name}PaletteColorLookupTableDescriptor": [256, 0, 16] for name in ("Red", "Green", "Blue")}
    values = {"Red": np.arange(256) << 8, "Green": np.arange(255, -1, -1) << 8, "Blue": np.full(256, 7 << 8)}
    table |= {f"{name}PaletteColorLookupTableData": own.astype("<u2").tobytes() for name, own in values.items()}
    pixels, _ = read(dicom(index, PhotometricInterpretation="PALETTE COLOR", **table))
    np.testing.assert_array_equal(pixels, np.stack([index, 255 - index, np.full_like(index, 7)], -1))


def test_functions_and_tables_of_values_of_interest():
    window = {"WindowCenter": "2000", "WindowWidth": "1000"}
    gray, _ = read(dicom(RAMP, VOILUTFunction="SIGMOID", **window))
    np.testing.assert_allclose(gray[0, :, 0], 255 / (1 + np.exp(-4 * (RAMP[0] - 2000.0) / 1000)), atol=1)
    gray, _ = read(dicom(RAMP, VOILUTFunction="LINEAR_EXACT", **window))
    np.testing.assert_allclose(gray[0, :, 0], 255 * ((RAMP[0] - 2000.0) / 1000 + 0.5).clip(0, 1), atol=1)
    item = pydicom.Dataset()
    item.add_new("LUTDescriptor", "US", [4096, 0, 10])
    item.add_new("LUTData", "US", (1023 - np.arange(4096) // 4).tolist())
    gray, notes = read(dicom(RAMP, VOILUTSequence=[item], **window))
    np.testing.assert_allclose(gray[0, :, 0], (1023 - RAMP[0] // 4) * (255 / 1023), atol=1)
    assert notes == ("DICOM table of values of interest",)


@pytest.mark.parametrize("slope", ["1", "0.001", "1000"])
def test_without_a_window_the_scale_is_that_of_the_stored_values(slope):
    gray, notes = read(dicom(RAMP, RescaleSlope=slope, RescaleIntercept="-1024"))
    np.testing.assert_allclose(gray[0, :, 0], RAMP[0] * (255 / 4095), atol=1)
    assert notes == ("samples with a full scale of 4095 scaled to 8 bits",)
    # A writer that states the whole word for samples of fewer bits.
    gray, notes = read(dicom(RAMP, BitsStored=16, HighBit=15, RescaleSlope=slope, RescaleIntercept="-1024"))
    np.testing.assert_allclose(gray[0, :, 0], RAMP[0] * (255 / 4095), atol=1)
    assert notes == ("16-bit words hold at most 4080: scaled as samples of 12 bits",)


def test_signed_values():
    signed = (RAMP.astype("<i4") - 2048).astype("<i2")
    gray, notes = read(dicom(signed, PixelRepresentation=1, BitsStored=16, HighBit=15))
    np.testing.assert_allclose(gray[0, :, 0], RAMP[0] * (255 / RAMP.max()), atol=1)
    assert notes == ("integer samples -2048 to 2032 stretched to 8 bits",)


def test_further_frames_and_files_without_an_image():
    both = np.stack([RAMP, RAMP[:, ::-1]])
    gray, notes = read(dicom(both.reshape(128, 256), Rows=64, NumberOfFrames=2))
    np.testing.assert_allclose(gray[0, :, 0], RAMP[0] * (255 / 4095), atol=1)
    assert notes[0] == "several frames or pages: only the first is used"
    file = pydicom.dcmread(io.BytesIO(dicom(RAMP)))
    del file.PixelData
    buffer = io.BytesIO()
    file.save_as(buffer)
    result = decode_bytes(buffer.getvalue(), "a.dcm", DecodeLimits())
    assert isinstance(result, Failure)
    assert (result.status, result.reason) == ("unsupported", "DICOM without an image")

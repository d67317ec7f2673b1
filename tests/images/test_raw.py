"""Camera raw files developed by rawpy: valid DNGs made here, upright once, of the right colours and sizes."""

from __future__ import annotations

import io
import warnings

import numpy as np
import pytest
from PIL import Image

from finelens.images.decode import DecodedImage, DecodeLimits, Failure, decode_bytes
from finelens.images.raw import preview

from .helpers import dng
from .test_formats import TURNS, exif

rawpy = pytest.importorskip("rawpy")

UPRIGHT = np.asarray(Image.fromarray(TURNS[1]).resize((320, 240), Image.Resampling.NEAREST))


def lying(orientation: int) -> np.ndarray:
    """The picture as the sensor of a camera held that way sees it."""
    height, width = TURNS[orientation].shape[:2]
    return np.asarray(Image.fromarray(np.ascontiguousarray(TURNS[orientation])).resize((2 * width, 2 * height), Image.Resampling.NEAREST))


def jpeg(pixels: np.ndarray, **options) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=95, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("orientation", TURNS)
@pytest.mark.parametrize("name", ["a.dng", "a.jpg"])
def test_developed_upright_once(orientation, name):
    result = decode_bytes(dng(lying(orientation), orientation), name, DecodeLimits())
    assert isinstance(result, DecodedImage), result
    assert result.notes == ("camera raw: developed with the camera's white balance",)
    pixels = result.pixels.permute(1, 2, 0).numpy().astype(int)
    assert pixels.shape == UPRIGHT.shape
    assert np.abs(pixels - UPRIGHT).mean() < 2


def test_our_files_are_what_libraw_takes_for_a_raw_file():
    with rawpy.imread(io.BytesIO(dng(UPRIGHT, preview=jpeg(UPRIGHT)))) as file:
        assert (file.sizes.width, file.sizes.height, file.white_level) == (320, 240, 4064)
        assert file.black_level_per_channel == [64] * 4
        assert bytes(file.extract_thumb().data)[:2] == b"\xff\xd8"


@pytest.mark.parametrize("orientation", TURNS)
@pytest.mark.parametrize("own", [False, True])
def test_a_preview_that_only_libraw_finds_is_turned_once(monkeypatch, orientation, own):
    """As in containers that are no TIFF."""
    tags = {"exif": exif(orientation)} if own else {}
    data = dng(lying(orientation), orientation, jpeg(lying(orientation), **tags))
    monkeypatch.setattr("finelens.images.decode.pages", lambda _: [])
    found = preview(data, [])
    assert found is not None
    result = decode_bytes(data, "a.raf", DecodeLimits())
    assert isinstance(result, DecodedImage), result
    pixels = result.pixels.permute(1, 2, 0).numpy().astype(int)
    assert pixels.shape == UPRIGHT.shape
    assert np.abs(pixels - UPRIGHT).mean() < 6


def test_a_large_one_is_refused():
    result = decode_bytes(dng(UPRIGHT), "a.dng", DecodeLimits(max_pixels=1000))
    assert isinstance(result, Failure)
    assert (result.status, result.reason[:16]) == ("too_large", "320 x 240 pixels")


def test_cut_and_foreign_files():
    data = dng(UPRIGHT)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for cut in (len(data) * 3 // 4, len(data) - 200):
            result = decode_bytes(data[:cut], "a.dng", DecodeLimits())
            assert isinstance(result, Failure), cut
            assert (result.status, result.reason) == ("corrupt", "the content is camera raw, which is damaged or ends early")
    result = decode_bytes(b"no raw file at all" * 100, "a.nef", DecodeLimits())
    assert isinstance(result, Failure)
    assert result.status == "unsupported"
    assert "rawpy does not read (Unsupported file format" in result.reason

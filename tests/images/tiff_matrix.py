"""Every combination of samples, planes, colours, further samples and compression that tifffile writes and reads back, and how it is decoded."""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
import tifffile

from finelens.images.decode import DecodedImage, DecodeLimits, Failure, decode_bytes

from .helpers import picture

DTYPES = ("u1", "u2", "i2", "u4", "i4", "f2", "f4", "f8", "c8")
COMPRESSIONS = {"none": {}, "zlib": {"compression": "zlib"}, "zlib predicted": {"compression": "zlib", "predictor": True}}
CODECS = {"lzw": {"compression": "lzw", "predictor": True}, "packbits": {"compression": "packbits"}, "zstd": {"compression": "zstd"}}
CODECS |= {"lzma": {"compression": "lzma", "compressionargs": {"level": 0}}, "jpeg": {"compression": "jpeg", "compressionargs": {"level": 100}}}
try:
    import imagecodecs  # noqa: F401
except ImportError:
    pass
else:
    COMPRESSIONS |= CODECS


@cache
def three_pictures() -> np.ndarray:
    """(H, W, 9) uint8."""
    return np.concatenate([picture(seed) for seed in range(3)], axis=2)


def content(bands: int) -> np.ndarray:
    """(H, W, S) uint8 over the whole scale, so that every way to choose the scale comes to the same."""
    values = three_pictures()[:, :, :bands].copy()
    values[0, :8], values[1, :8] = 0, 255
    return values


def stored(values: np.ndarray, dtype: str) -> np.ndarray:
    """8-bit values as samples of a type."""
    if dtype[0] in "fc":
        return (values / 255).astype(dtype)
    return np.rint(values * (np.iinfo(dtype).max / 255)).astype(dtype)


def written(values: np.ndarray, **options) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, values, **options)
    return buffer.getvalue()


def read(data: bytes) -> DecodedImage | Failure:
    return decode_bytes(data, "a.tif", DecodeLimits())


def difference(result: DecodedImage, expected: np.ndarray) -> int:
    shown = result.pixels.permute(1, 2, 0).numpy().astype(int)
    expected = np.repeat(expected, 3, axis=2) if expected.shape[2] == 1 else expected
    return int(np.abs(shown - expected).max()) if shown.shape == expected.shape else 999


def combinations():
    """Type, samples, planes, colours, what the further samples are called and hold."""
    for dtype in DTYPES:
        for bands, planar in itertools.product((1, 2, 3, 4, 5, 7), (False, True)):
            for photometric in ("minisblack", "miniswhite", "rgb"):
                colours = 3 if photometric == "rgb" else 1
                extra = bands - colours
                if extra < 0 or (planar and bands == 1):
                    continue
                for called in (None, "unspecified", "unassalpha", "assocalpha") if extra else (None,):
                    for looks in ("infrared", "mask") if called in ("unassalpha", "assocalpha") else ("infrared",):
                        yield dtype, bands, planar, photometric, called, looks


def expected_picture(values: np.ndarray, photometric: str, called: str | None, looks: str) -> np.ndarray | None:
    """What a person sees, or None where these samples are no picture."""
    bands = values.shape[2]
    if photometric == "rgb":
        colour = values[:, :, :3].astype(int)
    elif bands > 4:
        return None
    else:
        colour = values[:, :, : 3 if bands >= 3 else 1].astype(int)
        colour = 255 - colour if photometric == "miniswhite" else colour
    further = colour.shape[2]
    if looks == "mask" and further < bands and (photometric == "rgb" or bands == 2):
        alpha = values[:, :, further : further + 1].astype(int)
        blended = colour if called == "assocalpha" else colour * alpha // 255
        return (blended + 255 - alpha).clip(0, 255)
    return colour


def sound_file(case: tuple[Any, ...], compression: str, number: int) -> tuple[bytes, np.ndarray] | None:
    """A file and its 8-bit values; None for a combination that tifffile does not write and read back."""
    dtype, bands, planar, photometric, called, looks = case
    values = content(bands)
    colours = 3 if photometric == "rgb" else 1
    if looks == "mask":
        values[:, :, colours] = np.where(np.arange(80) < 50, 255, 0)
        if called == "assocalpha":
            values[:, :, :colours] *= values[:, :, colours : colours + 1] // 255
            values[1, :8, :colours] = 255
    samples = stored(values, dtype)
    options = {"photometric": photometric, "planarconfig": "separate" if planar else "contig", **COMPRESSIONS[compression]}
    if called:
        options["extrasamples"] = [called, *["unspecified"] * (bands - colours - 1)]
    samples = samples[:, :, 0] if bands == 1 else samples.transpose(2, 0, 1) if planar else samples
    if bands == 1:
        del options["planarconfig"]
    options |= ({"tile": (16, 32)}, {"rowsperstrip": 7}, {"rowsperstrip": 7, "byteorder": ">"})[number % 3]
    try:
        data = written(np.ascontiguousarray(samples), **options)
        with tifffile.TiffFile(io.BytesIO(data)) as file:
            page = file.pages[0]
            assert (page.samplesperpixel, page.photometric.name.lower()) == (bands, photometric)
            assert (page.asarray().squeeze() == samples).all() or compression == "jpeg"
    except (ValueError, NotImplementedError, AssertionError, TypeError, RuntimeError, KeyError):
        return None
    return data, values


def outcomes(compression: str, every: int = 1) -> Iterator[tuple[tuple[Any, ...], str, str]]:
    """Each sound combination with ``right``, ``noted`` (and right), ``unsupported`` or ``wrong``, and what was said; perhaps of every n-th only."""
    for number, case in itertools.islice(enumerate(combinations()), None, None, every):
        made = sound_file(case, compression, number)
        if made is None:
            continue
        dtype, bands, _, photometric, called, looks = case
        result, expected = read(made[0]), expected_picture(made[1], photometric, called, looks)
        if isinstance(result, Failure):
            may = result.status == "unsupported" and (expected is None or dtype == "c8" or compression == "jpeg")
            yield case, "unsupported" if may else "wrong", f"{result.status}: {result.reason}"
        elif expected is None or (off := difference(result, expected)) > (14 if compression == "jpeg" else 1):
            yield case, "wrong", "no picture" if expected is None else f"off by {off}"
        elif result.notes:
            yield case, "noted", "; ".join(result.notes)
        else:
            usual = dtype in ("u1", "u2") and bands in (1, 3) and (photometric == "rgb" or bands == 1)
            yield case, "right" if usual else "wrong", "" if usual else "not noted"

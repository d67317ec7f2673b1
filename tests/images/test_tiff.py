"""TIFF: what tifffile writes and reads back is right, noted and right, or refused by its kind; none is silently wrong and none sound one corrupt."""

from __future__ import annotations

import io
import itertools
from functools import cache

import numpy as np
import pytest

from finelens.images.decode import DecodedImage, DecodeLimits, Failure, decode_bytes

from .helpers import picture

tifffile = pytest.importorskip("tifffile")

DTYPES = ("u1", "u2", "i2", "u4", "i4", "f2", "f4", "f8", "c8")
COMPRESSIONS = {"none": {}, "zlib": {"compression": "zlib"}, "zlib predicted": {"compression": "zlib", "predictor": True}}
CODECS = {"lzw": {"compression": "lzw", "predictor": True}, "packbits": {"compression": "packbits"}, "zstd": {"compression": "zstd"}}
CODECS |= {"lzma": {"compression": "lzma"}, "jpeg": {"compression": "jpeg", "compressionargs": {"level": 100}}}
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


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_every_combination(compression):
    counts = {"right": 0, "noted and right": 0, "unsupported": 0}
    for number, (dtype, bands, planar, photometric, called, looks) in enumerate(combinations()):
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
            continue  # not a file that tifffile writes and reads back
        what = (dtype, bands, planar, photometric, called, looks, compression)
        result, expected = read(data), expected_picture(values, photometric, called, looks)
        if isinstance(result, Failure):
            assert result.status == "unsupported", (what, result)
            assert expected is None or dtype == "c8" or compression == "jpeg", (what, result)
            counts["unsupported"] += 1
            continue
        assert expected is not None, what
        assert difference(result, expected) <= (14 if compression == "jpeg" else 1), (what, result.notes, difference(result, expected))
        usual = dtype in ("u1", "u2") and bands in (1, 3) and (photometric == "rgb" or bands == 1)
        assert result.notes or usual, what
        counts["noted and right" if result.notes else "right"] += 1
    print(compression, counts)
    assert counts["right"] > 0
    # tifffile predicts floats only with imagecodecs beside it.
    assert counts["noted and right"] > (200 if compression == "zlib predicted" else 500) or compression == "jpeg"


@pytest.mark.parametrize("options", [{}, {"bigtiff": True}, {"byteorder": ">"}, {"bigtiff": True, "byteorder": ">"}])
def test_every_byte_order_and_width_of_offsets(options):
    result = read(written(content(3), photometric="rgb", **options))
    assert difference(result, content(3)) == 0
    assert result.notes == ()


def test_12_bits_by_the_files_own_word():
    codes = pytest.importorskip("imagecodecs")
    values = content(1)[:, :, 0]
    data = written(np.rint(values * (4095 / 255)).astype("u2"), photometric="minisblack", bitspersample=12)
    assert codes is not None
    result = read(data)
    assert difference(result, values[:, :, None]) <= 1
    assert result.notes == ("samples with a full scale of 4095 scaled to 8 bits",)


@pytest.mark.parametrize("bits", [10, 12, 14])
def test_colour_in_words_of_fewer_bits(bits):
    values = content(3)
    result = read(written(np.rint(values * (((1 << bits) - 1) / 255)).astype("u2"), photometric="rgb"))
    assert difference(result, values) <= 1
    assert result.notes == (f"16-bit words hold at most {(1 << bits) - 1}: scaled as samples of {bits} bits",)


def test_a_full_scale_that_the_file_states_is_believed():
    result = read(written(content(1)[:, :, 0].astype("u2") * 16, photometric="minisblack", extratags=[(281, 3, 1, 65535, True)]))
    assert int(result.pixels.max()) == 16


def test_no_data_and_lone_extremes_do_not_darken_the_picture():
    values = content(1)[:, :, 0]
    elevation = values.astype("f4") * 10
    for missing, tags in ((-9999, []), (-32768, []), (1e20, []), (-1, [(42113, 2, 3, "-1", True)])):
        holed = elevation.copy()
        holed[20:40] = missing
        result = read(written(holed, photometric="minisblack", extratags=tags))
        assert np.abs(result.pixels[0].numpy().astype(int) - values)[np.r_[0:20, 40:60]].max() <= 1, missing
        assert any("left out of the scale" in note for note in result.notes)
    twelve = np.rint(values * (4095 / 255)).astype("u2")
    twelve[30, 30:33] = 65535, 60000, 55000
    result = read(written(twelve, photometric="minisblack"))
    assert np.abs(result.pixels[0].numpy().astype(int) - values)[31:].max() <= 1
    assert any("lone extremes" in note for note in result.notes)
    mask = np.zeros((60, 80), "u2")
    mask[20:40] = 65535
    assert set(read(written(mask, photometric="minisblack")).pixels.unique().tolist()) == {0, 255}


def test_first_page_that_is_a_reduced_copy():
    large, small = picture(0, 240, 320), picture(0, 240, 320)[::4, ::4]
    for flags in ({"subfiletype": 1}, {}):
        buffer = io.BytesIO()
        with tifffile.TiffWriter(buffer) as file:
            file.write(np.ascontiguousarray(small), photometric="rgb", **flags)
            file.write(large, photometric="rgb")
        result = read(buffer.getvalue())
        assert difference(result, large) == 0
        assert "reduced copy" in result.notes[-1]


def test_three_gray_pages_that_are_channels():
    values = content(3)
    planes = np.ascontiguousarray(values.transpose(2, 0, 1))
    declared = (
        written(planes, photometric="minisblack", imagej=True, metadata={"axes": "CYX"}),
        written(planes, photometric="minisblack", metadata={"axes": "CYX"}),
        written(planes, photometric="minisblack", ome=True, metadata={"axes": "CYX"}),
    )
    for data in declared:
        result = read(data)
        assert difference(result, values) == 0
        assert "channels" in result.notes[-1]
    # Three frames of a stack are not.
    result = read(written(planes, photometric="minisblack", metadata={"axes": "TYX"}))
    assert difference(result, values[:, :, :1]) == 0
    assert result.notes == ("several frames or pages: only the first is used",)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("dtype", ["u1", "u2"])
def test_upright_once_whoever_reads_the_samples(orientation, dtype):
    upright = picture()
    turns = {1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1], 5: upright.transpose(1, 0, 2)}
    turns |= {6: np.rot90(upright), 7: upright[::-1, ::-1].transpose(1, 0, 2), 8: np.rot90(upright, -1)}
    lying = stored(np.ascontiguousarray(turns[orientation]), dtype)
    planes = np.ascontiguousarray(lying.transpose(2, 0, 1))
    packet = f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf tiff:Orientation="{orientation}"/></x:xmpmeta>'.encode()
    for tags in ([(274, 3, 1, orientation, True)], [(700, 1, len(packet), packet, True)]):
        for data in (written(lying, photometric="rgb", extratags=tags), written(planes, photometric="rgb", planarconfig="separate", extratags=tags)):
            assert difference(read(data), upright) <= 1


def test_cut_files_are_corrupt_and_say_so():
    data = written(stored(content(3), "u2"), photometric="rgb", compression="zlib", planarconfig=None)
    for cut in (40, len(data) // 2, len(data) - 40):
        result = read(data[:cut])
        assert isinstance(result, Failure)
        assert result.status == "corrupt"

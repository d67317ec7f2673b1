"""TIFF: what tifffile writes and reads back is right, noted and right, or refused by its kind; none is silently wrong and none sound one corrupt."""

from __future__ import annotations

import io
from collections import Counter

import numpy as np
import pytest
import tifffile

from finelens.images.decode import Failure

from .helpers import picture
from .tiff_matrix import CODECS, COMPRESSIONS, content, difference, outcomes, read, stored, written


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_every_combination(compression):
    """Of the codecs every fifth, in a second each; scripts/tiff_matrix.py tries them all."""
    every = 5 if compression in CODECS else 1
    found = list(outcomes(compression, every))
    assert not [(case, said) for case, verdict, said in found if verdict == "wrong"]
    counts = Counter(verdict for _, verdict, _ in found)
    assert counts["right"] > 0
    # tifffile predicts floats only with imagecodecs beside it.
    assert counts["noted"] > (200 if compression == "zlib predicted" else 500) // every or compression == "jpeg"


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

"""A box is a row of its own: its pixels are cut out of the upright photograph, and its identity is its own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from finelens.images.boxes import Box
from finelens.images.decode import DecodedImage, DecodeLimits, Failure, decode
from finelens.images.discover import ImageFile
from finelens.images.store import load_images

LIMITS = DecodeLimits(short_side=64)
# 80 wide, 40 high: left half red, right half of two greens, one above the other.
PIXELS = np.zeros((40, 80, 3), np.uint8)
PIXELS[:, :40], PIXELS[:20, 40:], PIXELS[20:, 40:] = (200, 0, 0), (0, 200, 0), (0, 100, 0)


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(PIXELS).save(path)
    return path


def test_a_box_is_cut_by_its_shares(photo):
    found = decode(photo, LIMITS, Box(0.5, 0.5, 0.5, 0.5))
    assert isinstance(found, DecodedImage)
    assert torch.equal(found.pixels, torch.from_numpy(PIXELS[20:, 40:]).permute(2, 0, 1))


def test_a_box_is_one_of_the_upright_photograph(tmp_path):
    # Lying, with orientation 6: shown upright, its first row is the left column from below.
    upright = np.rot90(PIXELS, -1)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(PIXELS).save(tmp_path / "a.png", exif=exif)
    found = decode(tmp_path / "a.png", LIMITS, Box(0.0, 0.0, 0.5, 0.25))
    assert isinstance(found, DecodedImage)
    assert torch.equal(found.pixels, torch.from_numpy(upright[:20, :20].copy()).permute(2, 0, 1))


def test_a_small_box_of_a_large_jpeg_keeps_its_size(tmp_path):
    wide = np.asarray(Image.fromarray(PIXELS).resize((1600, 800), Image.Resampling.NEAREST))
    Image.fromarray(wide).save(tmp_path / "a.jpg", quality=95)
    found = decode(tmp_path / "a.jpg", LIMITS, Box(0.875, 0.75, 0.125, 0.25))
    assert isinstance(found, DecodedImage)
    # 200 x 200 of 1600 x 800, although the whole would be read at 128 x 64.
    assert found.pixels.shape == (3, 64, 64)
    assert (found.pixels.float().mean((1, 2)) - torch.tensor([0.0, 100.0, 0.0])).abs().max() < 4


def test_equal_photographs_with_other_boxes_are_other_images(photo, tmp_path):
    copy = tmp_path / "b.png"
    copy.write_bytes(photo.read_bytes())
    left, right = Box(0.0, 0.0, 0.5, 1.0), Box(0.5, 0.0, 0.5, 1.0)
    files = [ImageFile(str(photo), "a.png#1", left), ImageFile(str(photo), "a.png#2", right), ImageFile(str(copy), "b.png#1", left)]
    loaded = load_images([*files, ImageFile(str(photo), "a.png")], LIMITS)
    first, second, same, whole = (str(record.sample_id) for record in loaded.records)
    assert len({first, second, whole}) == 3
    assert same == f"{first}-1"
    assert [loaded.store[record.index].shape[2] for record in loaded.records if record.index is not None] == [40, 40, 40, 80]


@pytest.mark.parametrize(("box", "status"), [(Box(0.0, 0.0, 0.05, 0.5), "degenerate"), (Box(0.999, 0.999, 0.001, 0.001), "degenerate")])
def test_a_box_without_enough_pixels(photo, box, status):
    found = decode(photo, LIMITS, box)
    assert isinstance(found, Failure)
    assert found.status == status


def test_a_box_of_a_panorama_is_judged_by_its_own_sides(tmp_path):
    """As a photograph it is too wide to be shown in a square; a tile of it is not."""
    path = tmp_path / "wide.png"
    Image.fromarray(np.tile(PIXELS, (1, 30, 1))).save(path)  # 2400 wide, 40 high
    whole = decode(path, LIMITS)
    assert isinstance(whole, Failure)
    assert "aspect ratio" in whole.reason
    part = decode(path, LIMITS, Box(0.5, 0.0, 1 / 30, 1.0))
    assert isinstance(part, DecodedImage)
    assert torch.equal(part.pixels, torch.from_numpy(PIXELS).permute(2, 0, 1))


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ((-0.25, 0.5, 0.5, 1.0), (0.0, 0.5, 0.25, 0.5)),
        ((0.5, 0.5, 0.0, 0.5), None),
        ((1.0, 0.0, 0.5, 0.5), None),
        ((0.5, float("nan"), 0.5, 0.5), None),
        ((0.0, 0.0, float("inf"), 0.5), None),
    ],
)
def test_a_box_is_what_of_it_lies_inside(given, kept):
    box = Box.clipped(*given)
    assert (None if box is None else box.values) == kept

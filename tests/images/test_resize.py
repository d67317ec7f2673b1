"""The resizing of views against torchvision's, bit for bit."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from finelens.images.resize import centre_crop, resize

MODES = {"bicubic": InterpolationMode.BICUBIC, "bilinear": InterpolationMode.BILINEAR, "nearest": InterpolationMode.NEAREST}
SIDES = st.integers(1, 40)
# To a single pixel, torch's bilinear kernel for bytes stops at an assertion of its own, by either way.
SIZES = st.one_of(st.tuples(st.integers(2, 40)), st.tuples(st.integers(2, 40), st.integers(2, 40)))


def picture(height: int, width: int, layout: str, dtype: torch.dtype) -> torch.Tensor:
    pixels = torch.randint(0, 256, (3, height + 2, width + 2), generator=torch.Generator().manual_seed(height * width)).to(dtype)
    if layout == "channels first":
        return pixels[:, 1:-1, 1:-1].contiguous()
    last = pixels.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    return last[:, 1:-1, 1:-1] if layout == "region" else last


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize("mode", MODES)
@given(SIDES, SIDES, SIZES, st.sampled_from(["channels first", "channels last", "region"]), st.booleans())
def test_resize(mode, dtype, height, width, size, layout, antialias):
    image = picture(height, width, layout, dtype)
    if len(size) == 1 and int(size[0] * max(image.shape[1:]) / min(image.shape[1:])) > 2000:
        return
    expected = F.resize(image, list(size), interpolation=MODES[mode], antialias=antialias)
    found = resize(image, list(size), mode, antialias=antialias)
    assert found.dtype is dtype
    assert torch.equal(found, expected)
    if layout != "region":
        assert found.stride() == expected.stride()


@given(SIDES, SIDES, SIDES, SIDES)
def test_centre_crop(height, width, rows, columns):
    image = picture(height, width, "channels first", torch.uint8)
    assert torch.equal(centre_crop(image, rows, columns), F.center_crop(image, [rows, columns]))

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from finelens.errors import UserError
from finelens.images.randomness import below, generator, normal, permutation, uniform
from finelens.images.view_config import ViewConfig
from finelens.images.views import _random_region, centre_view, crop_views, strong_view, weak_view
from finelens.protocol import Preprocess

from .helpers import picture, tensor

KEY = (0, 3, "sample")
PINNED = [0.44315023810373344, 0.39628949894852117, 0.40370151626097006]


def gradient(height: int, width: int) -> torch.Tensor:
    """Red holds the column and green the row, so a view shows where it was taken."""
    rows = torch.linspace(0, 255, height).round().view(-1, 1).expand(height, width)
    columns = torch.linspace(0, 255, width).round().expand(height, width)
    return torch.stack([columns, rows, torch.zeros(height, width)]).to(torch.uint8)


def all_views(image, preprocess, key):
    return [weak_view(image, preprocess, *key), strong_view(image, preprocess, *key), *crop_views(image, preprocess, *key, 4)]


# Randomness


def test_stream_is_pinned():
    # Changing these numbers changes every result and breaks resuming: it must be deliberate.
    assert generator(0, 0, "a", "weak").random(3).tolist() == pytest.approx(PINNED, abs=0)


def test_every_part_of_the_key_counts():
    keys = [(0, 0, "a", "weak"), (1, 0, "a", "weak"), (0, 1, "a", "weak"), (0, 0, "b", "weak"), (0, 0, "a", "strong"), (0, 0, "a1", "weak")]
    assert len({generator(*key).random() for key in keys}) == len(keys)


def test_distributions():
    rng = generator(0, 0, "", "test")
    normals = np.array([normal(rng, 9, 0.5) for _ in range(4000)])
    assert abs(normals.mean() - 9) < 0.03
    assert abs(normals.std() - 0.5) < 0.02
    counts = np.bincount([below(rng, 5) for _ in range(5000)], minlength=5)
    assert counts.min() > 900
    assert len(counts) == 5
    assert 2 <= min(uniform(rng, 2, 3) for _ in range(1000)) < 2.01
    assert sorted(permutation(rng, 100)) == list(range(100))


# Views


def test_same_key_same_bits_and_other_epochs_differ(preprocess):
    image = tensor(0, 90, 120)
    first, again, later = (all_views(image, preprocess, key) for key in (KEY, KEY, (0, 4, "sample")))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, later, strict=True))


def test_views_do_not_depend_on_memory_layout_and_leave_the_original_alone(preprocess):
    image = tensor(0, 90, 120)
    before = image.clone()
    a, b = all_views(image, preprocess, KEY), all_views(image.contiguous(), preprocess, KEY)
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    for epoch in range(40):
        strong_view(image, preprocess, 0, epoch, "sample")
    assert torch.equal(image, before)


@pytest.mark.parametrize("shape", [(90, 120), (120, 90), (64, 64), (20, 30), (8, 160), (448, 600)])
@pytest.mark.parametrize("mode", ["shortest", "squash"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear", "nearest"])
def test_shapes(preprocess, shape, mode, interpolation):
    preprocess = replace(preprocess, resize_mode=mode, interpolation=interpolation)
    image = tensor(0, *shape)
    for view in [centre_view(image, preprocess), *all_views(image, preprocess, KEY)]:
        assert view.shape == (3, 64, 64)
        assert view.dtype == torch.uint8
        assert view.is_contiguous()


def test_centre_view_equals_the_usual_transform():
    from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize

    preprocess = Preprocess(64, 72, (0.5,) * 3, (0.5,) * 3)
    image = Image.fromarray(picture(0, 200, 301))
    expected = Compose([Resize(72, InterpolationMode.BICUBIC), CenterCrop(64)])(image)
    got = centre_view(tensor(0, 200, 301), preprocess)
    assert np.abs(got.permute(1, 2, 0).numpy().astype(int) - np.asarray(expected)).max() <= 1


def test_weak_view_is_a_full_height_window_at_a_uniform_place(preprocess):
    image = gradient(64, 128)
    lefts = []
    for epoch in range(200):
        view = weak_view(image, preprocess, 0, epoch, "sample")
        assert torch.equal(view[1], image[1, :, :64])
        lefts.append(int(torch.nonzero(image[0, 0, :65] == view[0, 0, 0])[0]))
    assert min(lefts) < 4
    assert max(lefts) > 60
    assert abs(np.mean(lefts) - 32) < 4


def test_squash_shows_the_whole_image(preprocess):
    view = weak_view(gradient(64, 128), replace(preprocess, resize_mode="squash"), *KEY)
    assert view[0, 0, 0] <= 2
    assert view[0, 0, -1] >= 253


def test_crops_have_the_declared_sizes_and_places(preprocess):
    image = gradient(200, 300)
    views = torch.cat([crop_views(image, preprocess, 0, epoch, "sample", 8) for epoch in range(40)]).float()
    heights = (views[:, 1, -1, 0] - views[:, 1, 0, 0]) / 255 * 200
    widths = (views[:, 0, 0, -1] - views[:, 0, 0, 0]) / 255 * 300
    assert (heights - widths).abs().max() < 6  # square in the original
    assert 95 < heights.min() < 105
    assert 172 < heights.max() < 182
    assert views[:, 0, 0, 0].min() < 10
    assert views[:, 0, 0, -1].max() > 245


def test_first_crops_do_not_depend_on_the_count(preprocess):
    image = tensor(0, 90, 120)
    assert torch.equal(crop_views(image, preprocess, *KEY, 8)[:3], crop_views(image, preprocess, *KEY, 3))


def test_whole_short_side_crop(preprocess):
    image = tensor(0, 64, 64)
    assert torch.equal(crop_views(image, preprocess, *KEY, 1, low=1.0, high=1.0)[0], image)


def test_strong_regions_have_the_declared_areas_and_aspects():
    rng = generator(0, 0, "", "regions")
    regions = np.array([_random_region(300, 400, 0.3, 1.0, rng) for _ in range(2000)])
    top, left, height, width = regions.T
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (top + height <= 300).all()
    assert (left + width <= 400).all()
    area, ratio = height * width / 120000, width / height
    assert 0.29 < area.min() < 0.32
    assert 0.95 < area.max() <= 1
    assert 0.745 < ratio.min() < 0.77
    assert 1.3 < ratio.max() < 1.34


@pytest.mark.parametrize(("shape", "expected"), [((10, 200), (0, 93, 10, 13)), ((200, 10), (93, 0, 13, 10))])
def test_strong_region_of_a_stripe_falls_back_to_the_centre(shape, expected):
    assert _random_region(*shape, 0.9, 1.0, generator(0, 0, "", "regions")) == expected


def test_strong_view_flips_half_of_the_time(preprocess):
    image = gradient(90, 120)
    config = ViewConfig(rand_layers=0)
    flipped = [bool(v[0, 0, 0] > v[0, 0, -1]) for v in (strong_view(image, preprocess, 0, e, "sample", config) for e in range(300))]
    assert 120 < sum(flipped) < 180


@pytest.mark.parametrize(
    ("option", "value"),
    [("crop_low", 0), ("crop_high", 0.4), ("strong_scale_low", 1.5), ("rand_magnitude", 11), ("rand_layers", -1), ("store_short_side", 5)],
)
def test_options_out_of_range_are_refused(option, value):
    with pytest.raises(UserError, match=f"views.{option} must be"):
        ViewConfig(**{option: value})

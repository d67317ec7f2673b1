from __future__ import annotations

import numpy as np
import pytest

from finelens.errors import UserError
from finelens.images.corruptions import CORRUPTIONS, SIDE, Corruption, parse_corruption
from finelens.images.randomness import generator
from tests.toy import picture

PHOTO = picture(1, 0, 60, 80) / 255
RANDOM = {"gaussian_noise", "shot_noise", "impulse_noise", "glass_blur", "motion_blur", "snow", "frost", "fog", "elastic_transform"}


def changed(name: str, level: int, sample: str = "a") -> np.ndarray:
    return CORRUPTIONS[name](PHOTO, generator(0, 0, sample, "v"), level - 1)


def test_a_photograph_is_brought_to_one_size_and_is_the_same_each_time():
    pixels = picture(1, 0, 60, 80)
    once = Corruption("impulse_noise", 3).apply(pixels, "a")
    assert (once.shape, once.dtype) == ((SIDE, 299, 3), np.uint8)
    assert np.array_equal(once, Corruption("impulse_noise", 3).apply(pixels, "a"))
    assert not np.array_equal(once, Corruption("impulse_noise", 3).apply(pixels, "b"))
    assert Corruption("contrast", 3).apply(pixels[:, :3], "a").shape[1] == SIDE


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_each_changes_a_photograph_and_more_so_at_the_fifth_level(name):
    first, fifth = changed(name, 1), changed(name, 5)
    assert first.shape == PHOTO.shape
    assert fifth.std() > 0.01
    near, far = (np.abs(np.clip(x, 0, 1) - PHOTO).mean() for x in (first, fifth))
    assert 0.001 < near < far
    assert np.array_equal(first, changed(name, 1, "b")) == (name not in RANDOM)


def test_there_are_fifteen():
    assert len(CORRUPTIONS) == 15


def test_noise_has_its_size():
    grey = np.full((200, 200, 3), 0.5)
    rng = generator(0, 0, "s", "v")
    assert CORRUPTIONS["gaussian_noise"](grey, rng, 1).std() == pytest.approx(0.12, rel=0.02)
    shot = CORRUPTIONS["shot_noise"](grey, rng, 2)
    # Twelve photons at full brightness, six here: mean and variance of a Poisson number.
    assert (shot.mean(), shot.var()) == (pytest.approx(0.5, rel=0.01), pytest.approx(6 / 144, rel=0.03))
    assert np.allclose(12 * shot, np.round(12 * shot))
    salted = CORRUPTIONS["impulse_noise"](grey, rng, 4)
    assert ((salted == 0).mean(), (salted == 1).mean()) == (pytest.approx(0.135, abs=0.005), pytest.approx(0.135, abs=0.005))


@pytest.mark.parametrize("name", ["defocus_blur", "glass_blur", "motion_blur", "zoom_blur", "elastic_transform", "pixelate", "contrast"])
def test_what_only_moves_or_mixes_leaves_a_flat_photograph_alone(name):
    grey = np.full((60, 80, 3), 0.25)
    assert CORRUPTIONS[name](grey, generator(0, 0, "s", "v"), 3) == pytest.approx(grey, abs=0.003)


def test_contrast_and_brightness_do_what_they_say():
    x = np.linspace(0.1, 0.7, 300).reshape(10, 10, 3)
    assert CORRUPTIONS["contrast"](x, None, 2).std() == pytest.approx(0.2 * x.std(), rel=0.01)
    assert CORRUPTIONS["brightness"](x, None, 1).max(axis=2) == pytest.approx(x.max(axis=2) + 0.2)


@pytest.mark.parametrize(
    ("text", "message"),
    [("fogg:3", "did you mean fog"), ("fog", "a level from 1 to 5"), ("fog:6", "a level from 1 to 5"), ("xyzzy:1", "there are gaussian_noise")],
)
def test_what_is_no_corruption_is_refused(text, message):
    with pytest.raises(UserError, match=message):
        parse_corruption(text)
    assert str(parse_corruption("fog:3")) == "fog:3"

"""Each operation against timm's, which works on Pillow images, and the distribution of the whole."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import auto_augment as reference

from finelens.images import randaugment
from finelens.images.randaugment import OPERATIONS, rand_augment
from finelens.images.randomness import generator

from .helpers import picture

SIDE = 96
STRENGTH = 0.87

# (ours, timm's, arguments of timm's at STRENGTH and sign +1, at sign -1, greatest difference in levels)
POINTWISE = [
    ("auto_contrast", "auto_contrast", (), (), 1),
    ("equalize", "equalize", (), (), 0),
    ("invert", "invert", (), (), 0),
    ("posterize", "posterize", (1,), (1,), 0),
    ("solarize", "solarize", (34,), (34,), 0),
    ("solarize_add", "solarize_add", (95,), (95,), 0),
    ("colour", "color", (1.783,), (0.217,), 2),
    ("contrast", "contrast", (1.783,), (0.217,), 2),
    ("brightness", "brightness", (1.783,), (0.217,), 1),
    ("sharpness", "sharpness", (1.783,), (0.217,), 1),
]
GEOMETRIC = [
    ("rotate", "rotate", 26.1),
    ("shear_x", "shear_x", 0.261),
    ("shear_y", "shear_y", 0.261),
    ("translate_x", "translate_x_rel", 0.3915),
    ("translate_y", "translate_y_rel", 0.3915),
]


def images():
    low = (picture(3, SIDE, SIDE) // 3 + 40).astype(np.uint8)
    return [picture(1, SIDE, SIDE), low, np.full((SIDE, SIDE, 3), 77, np.uint8)]


def ours(name: str, image: np.ndarray, sign: float) -> np.ndarray:
    result = getattr(randaugment, name)(torch.from_numpy(image).permute(2, 0, 1).contiguous(), STRENGTH, sign)
    assert result.dtype == torch.uint8
    assert result.shape == (3, SIDE, SIDE)
    return result.permute(1, 2, 0).numpy().astype(int)


@pytest.mark.parametrize(("name", "theirs", "plus", "minus", "tolerance"), POINTWISE)
def test_operation_equals_timm(name, theirs, plus, minus, tolerance):
    for image in images():
        for sign, arguments in ((1.0, plus), (-1.0, minus)):
            expected = np.asarray(getattr(reference, theirs)(Image.fromarray(image), *arguments)).astype(int)
            assert np.abs(ours(name, image, sign) - expected).max() <= tolerance


@pytest.mark.parametrize(("name", "theirs", "argument"), GEOMETRIC)
def test_geometry_equals_timm(name, theirs, argument):
    for image in images():
        for sign in (1.0, -1.0):
            options = {"resample": Image.Resampling.BILINEAR, "fillcolor": (0, 0, 0)}
            expected = np.asarray(getattr(reference, theirs)(Image.fromarray(image), sign * argument, **options)).astype(int)
            difference = np.abs(ours(name, image, sign) - expected)
            # Only the seam to the black outside may differ: there ours blends.
            assert np.median(difference) <= 1
            assert (difference > 2).mean() < 0.05
            assert difference.mean() < 2


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda f: f.__name__)
def test_operations_leave_their_input_alone(operation):
    image = torch.from_numpy(picture(1, SIDE, SIDE)).permute(2, 0, 1).contiguous()
    before = image.clone()
    for strength in (0.0, 0.5, 1.0):
        operation(image, strength, -1.0)
    assert torch.equal(image, before)


def test_zero_strength_changes_nothing_where_the_operation_scales():
    image = torch.from_numpy(picture(1, SIDE, SIDE)).permute(2, 0, 1).contiguous()
    for name in ("rotate", "solarize", "solarize_add", "colour", "contrast", "brightness", "sharpness", "shear_x", "translate_y"):
        assert torch.equal(getattr(randaugment, name)(image, 0.0, 1.0), image), name


def test_draws_are_those_declared(monkeypatch):
    calls = []
    operations = tuple(lambda image, strength, sign, i=i: calls.append((i, strength, sign)) or image for i in range(15))
    monkeypatch.setattr(randaugment, "OPERATIONS", operations)
    image = torch.zeros(3, 8, 8, dtype=torch.uint8)
    for i in range(3000):
        rand_augment(image, generator(0, 0, str(i), "strong"))
    which, strengths, signs = (np.array(x) for x in zip(*calls, strict=True))
    assert abs(len(calls) - 3000) < 150  # two layers, each with probability 1/2
    assert np.bincount(which, minlength=15).min() > 140
    assert abs((signs > 0).mean() - 0.5) < 0.04
    assert abs(np.median(strengths) - 0.9) < 0.01
    assert strengths.max() <= 1.0
    assert ((strengths == 1.0).mean()) == pytest.approx(0.0228, abs=0.012)  # P(N(9, .5) > 10)


def test_set_equals_timm_increasing():
    assert len(reference._RAND_INCREASING_TRANSFORMS) == len(OPERATIONS) == 15

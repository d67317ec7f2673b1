"""RandAugment (Cubuk et al., arXiv 1909.13719) on square uint8 tensors, with the operations and magnitudes of timm's ``rand-m9-mstd0.5-inc1``.

Per layer one of 15 operations is drawn with replacement, applied with probability 0.5, at a magnitude m ~ N(9, 0.5^2) cut to [0, 10]. "Increasing"
means that a larger m is a stronger change for every operation. Pixels moved in from outside are black.

Deviations from timm, which works on Pillow images:

* Rotation, shears and translations interpolate bilinearly in floating point; timm uses bicubic there. Black blends into the outermost half pixel.
* Random numbers come from the caller's generator in our own order, so single images differ from timm's; the distribution is the same.
* Colour, contrast, brightness and sharpness round to the nearest level where Pillow truncates, and contrast takes its mean gray before rounding each
  pixel's gray: at most 2 levels apart.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

from finelens.images.randomness import below, coin, normal

MAX_MAGNITUDE = 10.0
MAGNITUDE_STD = 0.5
PROBABILITY = 0.5

_LEVELS = np.arange(256)
_GRAY = (0.299, 0.587, 0.114)

Operation = Callable[[Tensor, float, float], Tensor]
"""(image (3, S, S) uint8, strength in [0, 1], sign +1 or -1) -> image of the same shape."""


def rand_augment(image: Tensor, rng: np.random.Generator, magnitude: float = 9.0, layers: int = 2) -> Tensor:
    """Apply randomly drawn operations.

    Args:
        image: (3, S, S) uint8, square.
        rng: Source of the draws; four numbers per layer whatever is drawn, so layers do not shift one another.
        magnitude: Mean strength, 0 to 10.
        layers: Operations drawn in sequence.

    Returns:
        (3, S, S) uint8; the input is not changed.
    """
    for _ in range(layers):
        operation = OPERATIONS[below(rng, len(OPERATIONS))]
        applied = coin(rng, PROBABILITY)
        strength = min(max(normal(rng, magnitude, MAGNITUDE_STD), 0.0), MAX_MAGNITUDE) / MAX_MAGNITUDE
        sign = -1.0 if coin(rng) else 1.0
        if applied:
            image = operation(image, strength, sign)
    return image


# Operations on the levels of each channel: one table of 256 entries.


def _look_up(image: Tensor, tables: np.ndarray) -> Tensor:
    """Replace levels by a table (256,) or by one per channel (3, 256)."""
    pixels = image.numpy()
    if tables.ndim == 1:
        return torch.from_numpy(np.take(tables, pixels))
    return torch.from_numpy(np.stack([np.take(table, channel) for table, channel in zip(tables, pixels, strict=True)]))  # (3, S, S)


def _to_table(values: np.ndarray) -> np.ndarray:
    return np.rint(values).clip(0, 255).astype(np.uint8)


def _histograms(image: Tensor) -> np.ndarray:
    return np.stack([np.bincount(channel.reshape(-1), minlength=256) for channel in image.numpy()])  # (3, 256)


def auto_contrast(image: Tensor, strength: float, sign: float) -> Tensor:
    """Stretch each channel to the full range; a flat channel stays."""
    flat = image.reshape(3, -1)
    low, high = (x.numpy().astype(np.float64)[:, None] for x in torch.aminmax(flat, dim=1))  # (3, 1) each
    stretched = np.floor((_LEVELS - low) * 255.0 / np.maximum(high - low, 1.0) + 1e-9)
    return _look_up(image, np.where(high > low, stretched, _LEVELS).clip(0, 255).astype(np.uint8))


def equalize(image: Tensor, strength: float, sign: float) -> Tensor:
    """Flatten each channel's histogram by its cumulative counts (the integer rule of Pillow)."""
    counts = _histograms(image)
    cumulative = np.cumsum(counts, axis=1) - counts  # (3, 256): pixels strictly darker
    last = np.array([row[np.flatnonzero(row)[-1]] for row in counts])
    step = (counts.sum(axis=1) - last) // 255
    tables = (cumulative + step[:, None] // 2) // np.maximum(step, 1)[:, None]
    return _look_up(image, np.where(step[:, None] > 0, tables, _LEVELS).clip(0, 255).astype(np.uint8))


def invert(image: Tensor, strength: float, sign: float) -> Tensor:
    """255 minus each level."""
    return 255 - image


def posterize(image: Tensor, strength: float, sign: float) -> Tensor:
    """Keep the 4 to 0 highest bits."""
    bits = 4 - int(strength * 4)
    return image & (0xFF << (8 - bits) & 0xFF)


def solarize(image: Tensor, strength: float, sign: float) -> Tensor:
    """Invert the levels from a threshold of 256 down to 0 upwards."""
    threshold = 256 - min(256, int(strength * 256))
    return _look_up(image, _to_table(np.where(threshold > _LEVELS, _LEVELS, 255 - _LEVELS)))


def solarize_add(image: Tensor, strength: float, sign: float) -> Tensor:
    """Add 0 to 110 to the levels under 128."""
    return _look_up(image, _to_table(np.where(_LEVELS < 128, _LEVELS + min(128, int(strength * 110)), _LEVELS)))


def _factor(strength: float, sign: float) -> float:
    """Blend factor of the enhancements: 1 changes nothing, 0.1 and 1.9 are the ends."""
    return max(0.1, 1.0 + sign * 0.9 * strength)


def brightness(image: Tensor, strength: float, sign: float) -> Tensor:
    """Scale the levels."""
    return _look_up(image, _to_table(_LEVELS * _factor(strength, sign)))


def contrast(image: Tensor, strength: float, sign: float) -> Tensor:
    """Move the levels away from or towards the mean gray."""
    sums = image.sum(dim=(1, 2)).tolist()  # (3,), exact integers
    gray = round(sum(weight * total for weight, total in zip(_GRAY, sums, strict=True)) / image[0].numel())
    return _look_up(image, _to_table(gray + (_LEVELS - gray) * _factor(strength, sign)))


# Operations that mix channels or neighbours.


def _blend(image: Tensor, base: Tensor, factor: float) -> Tensor:
    return torch.lerp(base, image.float(), factor).round_().clamp_(0, 255).to(torch.uint8)


def colour(image: Tensor, strength: float, sign: float) -> Tensor:
    """Move the colours away from or towards gray."""
    red, green, blue = image.float()
    gray = (_GRAY[0] * red + _GRAY[1] * green + _GRAY[2] * blue).round_()
    return _blend(image, gray.expand(3, -1, -1), _factor(strength, sign))


def sharpness(image: Tensor, strength: float, sign: float) -> Tensor:
    """Move away from or towards the image smoothed by (1 1 1; 1 5 1; 1 1 1) / 13; the outermost pixels stay."""
    x = image.to(torch.int16)
    rows = x[:, :-2] + x[:, 1:-1] + x[:, 2:]  # (3, S-2, S)
    box = rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:]  # (3, S-2, S-2)
    smooth = x.float()
    smooth[:, 1:-1, 1:-1] = (box + 4 * x[:, 1:-1, 1:-1]).float().div_(13).round_()
    return _blend(image, smooth, _factor(strength, sign))


# Geometric operations. Rows of ``theta`` give the source point in coordinates from -1 to 1 over the image: (u, v) -> (a u + b v + c, d u + e v + f).


def _warp(image: Tensor, theta: tuple[float, float, float, float, float, float]) -> Tensor:
    _, height, width = image.shape
    grid = affine_grid(torch.tensor(theta).view(1, 2, 3), [1, 3, height, width], align_corners=False)  # (1, S, S, 2)
    warped = grid_sample(image[None].float(), grid, mode="bilinear", padding_mode="zeros", align_corners=False)[0]  # (3, S, S)
    return warped.round_().clamp_(0, 255).to(torch.uint8)


def rotate(image: Tensor, strength: float, sign: float) -> Tensor:
    """Up to 30 degrees about the centre, counter-clockwise for sign +1."""
    angle = math.radians(sign * 30.0 * strength)
    cos, sin = math.cos(angle), math.sin(angle)
    return _warp(image, (cos, -sin, 0.0, sin, cos, 0.0))


def shear_x(image: Tensor, strength: float, sign: float) -> Tensor:
    """Source column = x + f y with f up to 0.3, the top edge fixed."""
    f = sign * 0.3 * strength
    return _warp(image, (1.0, f, f, 0.0, 1.0, 0.0))


def shear_y(image: Tensor, strength: float, sign: float) -> Tensor:
    """Source row = y + f x with f up to 0.3, the left edge fixed."""
    f = sign * 0.3 * strength
    return _warp(image, (1.0, 0.0, 0.0, f, 1.0, f))


def translate_x(image: Tensor, strength: float, sign: float) -> Tensor:
    """Source column = x + up to 45 % of the width."""
    return _warp(image, (1.0, 0.0, sign * 0.9 * strength, 0.0, 1.0, 0.0))


def translate_y(image: Tensor, strength: float, sign: float) -> Tensor:
    """Source row = y + up to 45 % of the height."""
    return _warp(image, (1.0, 0.0, 0.0, 0.0, 1.0, sign * 0.9 * strength))


OPERATIONS: tuple[Operation, ...] = (
    auto_contrast,
    equalize,
    invert,
    rotate,
    posterize,
    solarize,
    solarize_add,
    colour,
    contrast,
    brightness,
    sharpness,
    shear_x,
    shear_y,
    translate_x,
    translate_y,
)

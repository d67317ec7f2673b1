"""The fifteen common corruptions of photographs at five levels (Hendrycks and Dietterich, 2019), for measuring robustness.

Noise, most blurs, contrast, pixelate and jpeg follow that paper's definitions and levels; snow, frost, fog, motion and elastic are ours in the same
spirit: see docs/robustness.md. Levels are for photographs whose short side is :data:`SIDE`, to which they are brought first.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image
from scipy.ndimage import convolve, gaussian_filter, map_coordinates, zoom
from scipy.special import ndtri, pdtr

from finelens.core.options import nearest
from finelens.errors import UserError
from finelens.images.randomness import generator

SIDE = 224
LEVELS = 5
Random = np.random.Generator
# Pixels (H, W, 3) in [0, 1], random numbers and a level from 0 to 4, to pixels.
Change = Callable[[np.ndarray, Random, int], np.ndarray]


@dataclass(frozen=True)
class Corruption:
    """A corruption at a level.

    Attributes:
        name: One of :data:`CORRUPTIONS`.
        level: 1 to 5.
    """

    name: str
    level: int

    def __str__(self) -> str:
        return f"{self.name}:{self.level}"

    def apply(self, pixels: np.ndarray, sample_id: str) -> np.ndarray:
        """The corrupted photograph, (H, W, 3) uint8 with a short side of :data:`SIDE`; the same for the same sample.

        Args:
            pixels: (H, W, 3) uint8.
            sample_id: What its random numbers depend on.
        """
        height, width = pixels.shape[:2]
        scale = SIDE / min(height, width)
        size = max(SIDE, round(width * scale)), max(SIDE, round(height * scale))
        x = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC), dtype=np.float64) / 255
        changed = CORRUPTIONS[self.name](x, generator(0, 0, sample_id, f"corrupt {self}"), self.level - 1)
        return np.asarray(np.clip(255 * changed, 0, 255).round(), dtype=np.uint8)


def parse_corruption(text: str) -> Corruption:
    """Read ``NAME:LEVEL``.

    Raises:
        UserError: No such corruption or level.
    """
    name, _, level = text.partition(":")
    if name not in CORRUPTIONS:
        near = nearest(name, list(CORRUPTIONS))
        raise UserError(f"unknown corruption {name!r}; " + (f"did you mean {near}?" if near else f"there are {', '.join(CORRUPTIONS)}"))
    if not re.fullmatch(f"[1-{LEVELS}]", level):
        raise UserError(f"corruption {text!r}: give a level from 1 to {LEVELS}, e.g. {name}:3")
    return Corruption(name, int(level))


def _normal(rng: Random, shape: tuple[int, ...]) -> np.ndarray:
    return np.asarray(ndtri(np.clip(rng.random(shape), 1e-12, 1 - 1e-12)))


def gaussian_noise(x: np.ndarray, rng: Random, level: int) -> np.ndarray:
    """Normal noise on each value."""
    return x + (0.08, 0.12, 0.18, 0.26, 0.38)[level] * _normal(rng, x.shape)


def shot_noise(x: np.ndarray, rng: Random, level: int) -> np.ndarray:
    """Poisson counts of so many photons at full brightness."""
    photons = (60, 25, 12, 5, 3)[level]
    values, which = np.unique(x, return_inverse=True)
    counts, draws = np.zeros(x.shape), rng.random(x.shape)
    for i, value in enumerate(values):
        here = which.reshape(x.shape) == i
        # By inversion of the distribution function; more counts than these do not occur.
        below = pdtr(np.arange(20 + int(4 * photons)), photons * max(value, 0))
        counts[here] = np.searchsorted(below, draws[here])
    return counts / photons


def impulse_noise(x: np.ndarray, rng: Random, level: int) -> np.ndarray:
    """Salt and pepper."""
    draw, share = rng.random(x.shape), (0.03, 0.06, 0.09, 0.17, 0.27)[level]
    return np.where(draw < share / 2, 0.0, np.where(draw < share, 1.0, x))


def _blurred(x: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    return np.stack([convolve(x[..., c], kernel / kernel.sum(), mode="reflect") for c in range(3)], axis=2)


def defocus_blur(x: np.ndarray, rng: Random, level: int) -> np.ndarray:
    """A disc, softened at its edge."""
    radius, edge = ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5))[level]
    span = np.arange(-radius, radius + 1)
    disc = (span[:, None] ** 2 + span[None] ** 2 <= radius**2).astype(float)
    return _blurred(x, gaussian_filter(disc, edge, mode="constant"))


def glass_blur(x: np.ndarray, rng: Random, level: int) -> np.ndarray:
    """Pixels moved by a few places between two blurs."""
    sigma, far, times = ((0.7, 1, 2), (0.9, 2, 1), (1.0, 2, 3), (1.1, 3, 2), (1.5, 4, 2))[level]
    y = gaussian_filter(x, (sigma, sigma, 0))
    height, width = x.shape[:2]
    for _ in range(times):
        rows, columns = (
            np.clip(at + np.floor((2 * far + 1) * rng.random((height, width))).astype(int) - far, 0, end - 1)
            for at, end in zip(np.mgrid[:height, :width], (height, width), strict=True)
        )
        y = y[rows, columns]
    return np.asarray(gaussian_filter(y, (sigma, sigma, 0)))


def motion_blur(x: np.ndarray, rng: Random, level: int) -> np.ndarray:
    """A line of Gaussian weights in a random direction."""
    radius, sigma = ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15))[level]
    angle = np.pi * (rng.random() - 0.5) / 2
    kernel = np.zeros((2 * radius + 1, 2 * radius + 1))
    for step in np.linspace(0, radius, 4 * radius + 1):
        kernel[round(radius + step * np.sin(angle)), round(radius + step * np.cos(angle))] += np.exp(-(step**2) / (2 * sigma**2))
    return _blurred(x, kernel)


def zoom_blur(x: np.ndarray, rng: Random, level: int) -> np.ndarray:
    """The mean of larger and larger copies."""
    last, step = ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03))[level]
    factors = np.arange(1 + step, last, step)
    return (x + sum(_larger(x, factor) for factor in factors)) / (1 + len(factors))


def _larger(x: np.ndarray, factor: float) -> np.ndarray:
    """The middle of a larger copy, as large as before."""
    cut = [int(np.ceil(side / factor)) for side in x.shape[:2]]
    top, left = ((side - own) // 2 for side, own in zip(x.shape[:2], cut, strict=True))
    part = x[top : top + cut[0], left : left + cut[1]]
    return np.asarray(zoom(part, (x.shape[0] / cut[0], x.shape[1] / cut[1], 1), order=1, grid_mode=True, mode="nearest"))


def snow(x: np.ndarray, rng: Random, level: int) -> np.ndarray:
    """Bright flakes, drawn out by a motion, over a photograph that is whitened."""
    share, size, length, strength = ((0.02, 1.0, 6, 0.2), (0.04, 1.0, 8, 0.3), (0.06, 1.2, 10, 0.4), (0.08, 1.5, 12, 0.5), (0.1, 1.8, 14, 0.6))[level]
    flakes = gaussian_filter((rng.random(x.shape[:2]) < share).astype(float), size)
    kernel = np.zeros((2 * length + 1, 2 * length + 1))
    angle = np.pi * (0.25 + 0.5 * rng.random())
    for step in np.linspace(0, length, 4 * length + 1):
        kernel[round(length + step * np.sin(angle)), round(length + step * np.cos(angle))] = 1
    falling = convolve(flakes, kernel / kernel.sum(), mode="reflect")
    grey = x.mean(axis=2, keepdims=True)
    whitened = (1 - strength) * x + strength * np.maximum(x, 0.5 + grey / 2)
    return np.asarray(whitened + (falling / falling.max())[..., None] * 0.8)


def frost(x: np.ndarray, rng: Random, level: int) -> np.ndarray:
    """Bright crystals that grow from the edges."""
    kept, frozen = ((1.0, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75))[level]
    height, width = x.shape[:2]
    rows, columns = np.mgrid[:height, :width]
    edge = np.maximum(abs(2 * rows / height - 1), abs(2 * columns / width - 1))
    pattern = np.abs(_plasma(rng, (height, width), 1.6) - 0.5) * 2
    crystals = np.clip((1 - pattern) ** 4 + 0.5 * edge**2, 0, 1)
    return kept * x + frozen * crystals[..., None] * np.array([0.85, 0.93, 1.0])


def fog(x: np.ndarray, rng: Random, level: int) -> np.ndarray:
    """Clouds of all sizes added, and the brightest value kept."""
    thick, decay = ((1.5, 2.0), (2.0, 2.0), (2.5, 1.7), (2.5, 1.5), (3.0, 1.4))[level]
    brightest = x.max()
    return np.asarray((x + thick * _plasma(rng, x.shape[:2], decay)[..., None]) * brightest / (brightest + thick))


def _plasma(rng: Random, shape: tuple[int, ...], decay: float) -> np.ndarray:
    """Random clouds in [0, 1], (H, W): noise of ever finer grain, each finer one weaker by ``decay``."""
    total = np.zeros(shape)
    cells, weight = 2, 1.0
    while cells <= max(shape):
        coarse = rng.random((cells + 1, cells + 1))
        at = np.meshgrid(*(np.linspace(0, cells, side) for side in shape), indexing="ij")
        total += weight * map_coordinates(coarse, at, order=1, mode="nearest")
        cells, weight = 2 * cells, weight / decay
    return np.asarray((total - total.min()) / max(np.ptp(total), 1e-12))


def brightness(x: np.ndarray, rng: Random, level: int) -> np.ndarray:
    """The value of each colour raised."""
    value = x.max(axis=2, keepdims=True)
    raised = np.clip(value + (0.1, 0.2, 0.3, 0.4, 0.5)[level], 0, 1)
    # Black has no hue to keep.
    return np.where(value > 1e-6, x * raised / np.maximum(value, 1e-6), raised)


def contrast(x: np.ndarray, rng: Random, level: int) -> np.ndarray:
    """Nearer to the mean colour."""
    mean = x.mean(axis=(0, 1))
    return np.asarray((x - mean) * (0.4, 0.3, 0.2, 0.1, 0.05)[level] + mean)


def elastic_transform(x: np.ndarray, rng: Random, level: int) -> np.ndarray:
    """Smooth random displacements."""
    far, sigma = ((6.0, 12.0), (8.0, 10.0), (9.0, 8.0), (10.0, 7.0), (12.0, 6.0))[level]
    at = []
    for axis in np.mgrid[: x.shape[0], : x.shape[1]]:
        moved = gaussian_filter(2 * rng.random(x.shape[:2]) - 1, sigma, mode="reflect")
        at.append(axis + far * moved / max(abs(moved).max(), 1e-12))
    return np.stack([map_coordinates(x[..., c], at, order=1, mode="reflect") for c in range(3)], axis=2)


def pixelate(x: np.ndarray, rng: Random, level: int) -> np.ndarray:
    """Reduced, and enlarged again without smoothing."""
    share = (0.6, 0.5, 0.4, 0.3, 0.25)[level]
    image = Image.fromarray((255 * np.clip(x, 0, 1)).round().astype(np.uint8))
    small = image.resize((int(image.width * share), int(image.height * share)), Image.Resampling.BOX)
    return np.asarray(small.resize(image.size, Image.Resampling.NEAREST), dtype=np.float64) / 255


def jpeg_compression(x: np.ndarray, rng: Random, level: int) -> np.ndarray:
    """Written as JPEG of low quality and read again."""
    image, buffer = Image.fromarray((255 * np.clip(x, 0, 1)).round().astype(np.uint8)), io.BytesIO()
    image.save(buffer, "JPEG", quality=(25, 18, 15, 10, 7)[level])
    return np.asarray(Image.open(buffer), dtype=np.float64) / 255


CORRUPTIONS: dict[str, Change] = {
    change.__name__: change
    for change in (
        *(gaussian_noise, shot_noise, impulse_noise),
        *(defocus_blur, glass_blur, motion_blur, zoom_blur),
        *(snow, frost, fog, brightness),
        *(contrast, elastic_transform, pixelate, jpeg_compression),
    )
}

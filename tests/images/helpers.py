"""Small deterministic pictures."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from finelens.images.store import PixelStore


def picture(seed: int = 0, height: int = 60, width: int = 80) -> np.ndarray:
    """A smooth colour picture with some noise, (H, W, 3) uint8."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    phase = rng.random((3, 3)) * 6
    channels = [127 + 90 * np.sin(x / 9 * p[0] / 3 + p[1]) * np.cos(y / 11 + p[2]) for p in phase]
    return np.clip(np.stack(channels, -1) + rng.normal(0, 8, (height, width, 3)), 0, 255).astype(np.uint8)


def tensor(seed: int = 0, height: int = 60, width: int = 80) -> torch.Tensor:
    """The same, (3, H, W)."""
    return torch.from_numpy(picture(seed, height, width)).permute(2, 0, 1)


def store(count: int, height: int = 60, width: int = 80) -> PixelStore:
    """A store of ``count`` pictures."""
    return PixelStore([f"id{i:03d}" for i in range(count)], [tensor(i, height + i % 7, width) for i in range(count)])


def save(path, seed: int = 0, **options) -> None:
    Image.fromarray(picture(seed)).save(path, **options)

"""Resizing and centre crops of channel-first images: the same bits as torchvision's, whose import takes longer than most runs on features.

Both are a few lines around :func:`torch.nn.functional.interpolate`; a test compares them with torchvision's.
"""

from __future__ import annotations

import platform

import torch
import torch.nn.functional as F
from torch import Tensor

from finelens.protocol import Interpolation


def resize(image: Tensor, size: list[int], interpolation: Interpolation = "bicubic", *, antialias: bool = True) -> Tensor:
    """Resize (C, H, W), uint8 or floating.

    Args:
        image: The image.
        size: Height and width; one number means the short side.
        interpolation: How pixels are made of pixels.
        antialias: Whether a smaller image averages over what it leaves out.

    Returns:
        (C, h, w), of the type and the order in memory that the image has.
    """
    height, width = _full_size(image.shape[1], image.shape[2], size)
    if (height, width) == image.shape[1:]:
        return image
    dtype, smooth = image.dtype, interpolation != "nearest"
    batch = image[None]  # (1, C, H, W)
    if batch.is_contiguous(memory_format=torch.channels_last):
        # Of a single image interpolate() does not see that its channels come last, unless the stride of the batch says so.
        batch = image.as_strided(batch.shape, (image.numel(), *image.stride()))
    if cast := smooth and dtype is torch.uint8 and interpolation == "bilinear" and not _BILINEAR_OF_BYTES:
        batch = batch.float()
    out = F.interpolate(batch, (height, width), mode=interpolation, align_corners=False if smooth else None, antialias=antialias and smooth)[0]
    return out.round_().to(dtype) if cast else out


# Elsewhere the kernel for bytes is slower than the one for floats, and rounds otherwise.
_BILINEAR_OF_BYTES = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512") or platform.machine() in ("aarch64", "arm64")


def _full_size(height: int, width: int, size: list[int]) -> tuple[int, int]:
    if len(size) == 2:
        return size[0], size[1]
    (side,) = size
    return (side, int(side * width / height)) if height <= width else (int(side * height / width), side)


def centre_crop(image: Tensor, height: int, width: int) -> Tensor:
    """The middle (C, height, width) of an image (C, H, W); what it lacks is zero."""
    down, right = max(0, height - image.shape[1]), max(0, width - image.shape[2])
    if down or right:
        image = F.pad(image, (right // 2, (right + 1) // 2, down // 2, (down + 1) // 2))
    top, left = round((image.shape[1] - height) / 2), round((image.shape[2] - width) / 2)
    return image[:, top : top + height, left : left + width]

"""Views of an image as pure functions of (seed, epoch, sample): no state, so neither resume nor the number of workers can change one.

All take an original (3, H, W) uint8 and return uint8 on the side S = ``preprocess.image_size``. Regions are cropped before they are resized: the rest
of the original is not touched. Originals are kept at a capped short side (``ViewConfig.store_short_side``), so "original resolution" means that.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from finelens.images.randaugment import rand_augment
from finelens.images.randomness import below, coin, generator, uniform
from finelens.images.resize import centre_crop, resize
from finelens.images.view_config import ViewConfig
from finelens.protocol import InferenceViews, Preprocess

_STRONG_RATIO = (3 / 4, 4 / 3)
_STRONG_ATTEMPTS = 10
# Views that answers rest on do not depend on the seed of a run.
INFERENCE_SEED = 0


DEFAULT_VIEWS = ViewConfig()


def centre_view(image: Tensor, preprocess: Preprocess) -> Tensor:
    """The view that predictions and cached features use: the model's own resize and centre crop.

    Args:
        image: (3, H, W) uint8.
        preprocess: Geometry of the model.

    Returns:
        (3, S, S) uint8.
    """
    side, whole = preprocess.image_size, preprocess.resize_size
    resized = _resize(image, [whole, whole] if preprocess.resize_mode == "squash" else [whole], preprocess)
    return centre_crop(resized, side, side).contiguous()


def views_of_centre(views: Tensor, preprocess: Preprocess, plan: InferenceViews) -> Tensor:
    """Further views (B, M, 3, S, S) cut from centre views (B, 3, S, S), for a caller who holds nothing else; the same places in each."""
    return torch.stack([inference_views(view, preprocess, "", plan) for view in views.cpu()])


def weak_view(image: Tensor, preprocess: Preprocess, seed: int, epoch: int, sample_id: str) -> Tensor:
    """Resize the short side to S and crop S x S at a uniform position (microCLIP, weak view; no flip).

    With ``resize_mode`` "squash" the whole image becomes S x S, and there is nothing left to draw.

    Returns:
        (3, S, S) uint8.
    """
    side = preprocess.image_size
    if preprocess.resize_mode == "squash":
        return _resize(image, [side, side], preprocess)
    rng = generator(seed, epoch, sample_id, "weak")
    resized = _resize(image, [side], preprocess)
    top = below(rng, resized.shape[1] - side + 1)
    left = below(rng, resized.shape[2] - side + 1)
    return resized[:, top : top + side, left : left + side].contiguous()


def strong_view(image: Tensor, preprocess: Preprocess, seed: int, epoch: int, sample_id: str, config: ViewConfig = DEFAULT_VIEWS) -> Tensor:
    """Random resized crop, horizontal flip with probability 0.5, then RandAugment with black fill (microCLIP, strong view).

    Returns:
        (3, S, S) uint8.
    """
    rng = generator(seed, epoch, sample_id, "strong")
    view = _resized_crop(image, preprocess, rng, config.strong_scale_low, 1.0)
    return rand_augment(view, rng, config.rand_magnitude, config.rand_layers)


def _resized_crop(image: Tensor, preprocess: Preprocess, rng: np.random.Generator, low: float, high: float) -> Tensor:
    """Random resized crop of area U(low, high) of the image, flipped with probability 0.5; (3, S, S)."""
    top, left, height, width = _random_region(image.shape[1], image.shape[2], low, high, rng)
    region = image[:, top : top + height, left : left + width]
    view = _resize(region, [preprocess.image_size, preprocess.image_size], preprocess)
    return (view.flip(-1) if coin(rng) else view).contiguous()


def inference_views(image: Tensor, preprocess: Preprocess, sample_id: str, plan: InferenceViews) -> Tensor:
    """Views from which a method answers for one image.

    They belong to the content of the image: the run's seed has no part in them, nor has a second copy of the file.

    Args:
        image: (3, H, W) uint8.
        preprocess: Geometry of the model.
        sample_id: Identity of the image.
        plan: How many, and of which kind.

    Returns:
        (M, 3, S, S) uint8.
    """
    content, size = sample_id.partition("-")[0], preprocess.image_size
    if plan.kind == "crops":
        return crop_views(image, preprocess, INFERENCE_SEED, 0, content, plan.count, plan.low, plan.high)
    rng = generator(INFERENCE_SEED, 0, content, "resized")
    views = torch.empty(plan.count, 3, size, size, dtype=torch.uint8)
    for view in views:
        view.copy_(_resized_crop(image, preprocess, rng, plan.low, plan.high))
    return views


def crop_views(
    image: Tensor, preprocess: Preprocess, seed: int, epoch: int, sample_id: str, count: int, low: float = 0.5, high: float = 0.9
) -> Tensor:
    """Square crops of random size and uniform position (WCA, Li et al., ICML 2024; microCLIP, section 7): side int(U(low, high) * short side).

    Args:
        image: (3, H, W) uint8.
        preprocess: Geometry of the model.
        seed: Seed of the run.
        epoch: Epoch; each has its own crops.
        sample_id: Identity of the image.
        count: Crops M. The first crops do not depend on it.
        low: Smallest side as a share of the short side.
        high: Largest.

    Returns:
        (M, 3, S, S) uint8.
    """
    size = preprocess.image_size
    views = torch.empty(count, 3, size, size, dtype=torch.uint8)
    for view, (top, left, side) in zip(views, crop_regions(image.shape[1], image.shape[2], seed, epoch, sample_id, count, low, high), strict=True):
        view.copy_(_resize(image[:, top : top + side, left : left + side], [size, size], preprocess))
    return views


def crop_regions(
    height: int, width: int, seed: int, epoch: int, sample_id: str, count: int, low: float = 0.5, high: float = 0.9
) -> list[tuple[int, int, int]]:
    """Top, left and side of each of the :func:`crop_views` of an image of that size."""
    rng = generator(seed, epoch, sample_id, "crops")
    regions = []
    for _ in range(count):
        side = max(1, int(uniform(rng, low, high) * min(height, width)))
        regions.append((below(rng, height - side + 1), below(rng, width - side + 1), side))
    return regions


def _resize(image: Tensor, size: list[int], preprocess: Preprocess) -> Tensor:
    """Resize (3, H, W) uint8; one number means the short side. Antialiased, as training pipelines are."""
    return resize(image, size, preprocess.interpolation).contiguous()


def _random_region(height: int, width: int, scale_low: float, scale_high: float, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """Inception crop (Szegedy et al., arXiv 1409.4842): area U(scale_low, scale_high) of the image, aspect log-uniform in 3/4 to 4/3.

    Returns:
        Top, left, height, width. When ten draws do not fit, the largest centred region of an allowed aspect.
    """
    low, high = _STRONG_RATIO
    for _ in range(_STRONG_ATTEMPTS):
        area = uniform(rng, scale_low, scale_high) * height * width
        ratio = math.exp(uniform(rng, math.log(low), math.log(high)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return below(rng, height - h + 1), below(rng, width - w + 1), h, w
    w, h = min(width, round(height * high)), min(height, round(width / low))
    return (height - h) // 2, (width - w) // 2, h, w

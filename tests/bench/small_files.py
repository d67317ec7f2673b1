"""What the tests of the loaders share: pictures as bytes, and what became of a part's images."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from finelens.images.store import load_images


def statuses(part) -> list[str]:
    images = [image.path for image in part.images] if isinstance(part.images, list) else part.images
    return [record.status for record in load_images(images).records]


def jpeg(seed=0, form="JPEG") -> bytes:
    data = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(data, form)
    return data.getvalue()

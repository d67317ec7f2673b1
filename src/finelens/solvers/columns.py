"""Feature spaces whose columns lie side by side."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def split_views(x: Tensor, widths: Sequence[int]) -> tuple[Tensor, ...]:
    """The views of rows (N, D_1 + ... + D_V); rows (N, D_1) are the first alone."""
    return x.split(list(widths), 1) if x.shape[1] == sum(widths) else (x,)


def silenced(x: Tensor, views: Sequence[int], widths: Sequence[int]) -> Tensor:
    """Rows with some of their views at zero: no cosine, no likelihood and no head sees those. Rows of the first view alone stay as they are."""
    if not views or x.shape[1] != sum(widths):
        return x
    return torch.cat([torch.zeros_like(part) if v in views else part for v, part in enumerate(split_views(x, widths))], 1)


def centred_views(x: Tensor, centre: Tensor, widths: Sequence[int]) -> Tensor:
    """Each view less its part of ``centre`` (D_1 + ... + D_V,), unit, over the root of V: products of rows with all views are mean cosines."""
    parts = zip(split_views(x, widths), centre.to(x).split(list(widths)), strict=False)
    directions = torch.cat([F.normalize(view - mean, dim=1) for view, mean in parts], 1)
    return directions / math.sqrt(len(widths))

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


def searched_columns(looks: Tensor, searched: Sequence[int], widths: Sequence[int]) -> Tensor:
    """The centred views that neighbours are looked for in, side by side and unit.

    Args:
        looks: Centred views (N, D_1 + ... + D_V) of :func:`centred_views`, or the first alone.
        searched: 1 for each view that is, else 0, (V,); where only others come, the first stands in.
        widths: D_1 to D_V.
    """
    given = split_views(looks, widths)
    parts = [part for part, wanted in zip(given, searched, strict=False) if wanted] or [given[0]]
    return looks if len(parts) == len(given) else torch.cat(parts, 1) * math.sqrt(len(widths) / len(parts))

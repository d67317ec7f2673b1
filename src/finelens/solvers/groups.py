"""Images that can be named at one look: the asked one and those most like it."""

from __future__ import annotations

import torch
from torch import Tensor

SIZE = 12


@torch.no_grad()
def group_around(looks: Tensor, row: int, free: Tensor, *, size: int = SIZE, copy: float = 0.97) -> Tensor:
    """Positions (g,) of an image and of the free ones nearest to it, nearest first, near-copies of a member passed over; g <= ``size``.

    Args:
        looks: Centred unit features, (N, D).
        row: The image that is asked about.
        free: Whether an image may be shown, (N,), bool.
        size: Most images at a look.
        copy: Cosine from which on two images are one question.
    """
    cosine = looks @ looks[row]  # (N,)
    cosine = cosine.masked_fill(~free, -torch.inf)
    cosine[row] = torch.inf
    chosen: list[int] = []
    for i in cosine.topk(min(4 * size, len(looks))).indices.tolist():
        if len(chosen) < size and (i == row or (bool(free[i]) and bool((looks[chosen] @ looks[i] < copy).all()))):
            chosen.append(i)
    return torch.tensor(chosen, dtype=torch.int64)

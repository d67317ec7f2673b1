"""Nearest neighbours among the images themselves, each pair compared once: half of the products, for processors without units for bfloat16."""

from __future__ import annotations

import torch
from torch import Tensor

# Below, a search takes no time worth saving.
MANY = 4096
# Rows and columns of the products, which stay in the cache until they have been looked through.
TILE = 1024


def neighbours_by_pairs(x: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k others of largest cosine for every row.

    A tile of cosines serves its rows and its columns. Soon few of them find anything better than they have, so most are only looked at for their
    largest value.

    Args:
        x: Unit rows (N, D).
        k: Neighbours, fewer than N.

    Returns:
        Cosines (N, k) in falling order, and positions (N, k).
    """
    n = len(x)
    values, index = x.new_full((n, k), -torch.inf), torch.zeros(n, k, dtype=torch.long, device=x.device)
    # One memory for all tiles: the system hands out fresh pages one by one.
    memory = x.new_empty(min(TILE, n) ** 2)
    for row in range(0, n, TILE):
        own = x[row : row + TILE]
        for column in range(row, n, TILE):
            others = x[column : column + TILE]
            tile = torch.mm(own, others.T, out=memory[: len(own) * len(others)].view(len(own), len(others)))
            if row == column:
                tile.fill_diagonal_(-torch.inf)
            else:
                _keep(values[column : column + TILE], index[column : column + TILE], tile.T, row)
            _keep(values[row : row + TILE], index[row : row + TILE], tile, column)
    return values, index


def _keep(values: Tensor, index: Tensor, cosines: Tensor, first: int) -> None:
    """Take what is nearer among further keys, in place.

    Args:
        values: Largest cosines so far (M, k), falling.
        index: Their positions (M, k).
        cosines: With the further keys, (M, B).
        first: Position of the first of these.
    """
    k = values.shape[1]
    rows = (cosines.amax(1) > values[:, -1]).nonzero()[:, 0]
    found, place = cosines[rows].topk(min(k, cosines.shape[1]), dim=1)
    best, chosen = torch.cat([values[rows], found], 1).topk(k, dim=1)  # (m, k)
    values[rows] = best
    index[rows] = torch.cat([index[rows], place + first], 1).gather(1, chosen)

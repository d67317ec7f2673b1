"""Nearest neighbours by a rough search in bfloat16 and an exact comparison of what it found: the same answer, in a fraction of the products' time.

The rough cosines of all keys only choose candidates. The true cosine of a row outside of them is at most the rough one of the last candidate plus
what rounding can have taken away, which is known from the rounded rows; where the exact k-th candidate does not lie above that, the whole row is
compared exactly.
"""

from __future__ import annotations

import torch
from torch import Tensor

from finelens.core.private_torch import bfloat16_units

# Below, an exact search takes no time worth saving.
MANY_KEYS = 4096
# Candidates beyond the neighbours, keys of which one maximum is kept, and queries at a time.
SPARE, STRIDE, CHUNK = 6, 32, 512
# A product is rounded to 8 bits.
PRODUCT = 2**-8


def is_worth_it(queries: Tensor, keys: Tensor, k: int) -> bool:
    """Whether this processor searches faster so."""
    many = len(keys) >= max(MANY_KEYS, STRIDE * (k + SPARE)) and queries.shape[0] >= MANY_KEYS
    return bool(k and many and queries.dtype is keys.dtype is torch.float32 and queries.device.type == "cpu" and bfloat16_units())


def certified_neighbours(queries: Tensor, keys: Tensor, k: int, rows: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Cosines (M, k), positions (M, k), and which queries (M',) have to be compared exactly; arguments as for ``top_neighbours``."""
    n, count = len(keys), k + SPARE
    width = -(-n // STRIDE)
    rough = torch.zeros(width * STRIDE, keys.shape[1], dtype=torch.bfloat16)
    rough[:n] = keys
    lost, length = lost_length(keys, rough[:n]), float(keys.norm(dim=1).max())
    values, index = queries.new_empty(len(queries), k), torch.empty(len(queries), k, dtype=torch.long)
    doubtful = torch.zeros(len(queries), dtype=torch.bool)
    offsets = torch.arange(STRIDE)[:, None] * width
    # One memory for all chunks: the system hands out fresh pages one by one.
    block = torch.empty(min(CHUNK, len(queries)), width * STRIDE, dtype=torch.bfloat16)
    for start in range(0, len(queries), CHUNK):
        own = queries[start : start + CHUNK]
        near = own.bfloat16()
        cosines = torch.mm(near, rough.T, out=block[: len(own)])  # (m, width STRIDE)
        cosines[:, n:] = -torch.inf
        if rows is not None:
            same = ((rows >= start) & (rows < start + CHUNK)).nonzero()[:, 0]
            cosines[rows[same] - start, same] = -torch.inf
        # The largest values stand in the groups with the largest maxima. Bits of positive numbers are in the order of the numbers, and above those of
        # others: integers are compared, several times faster.
        groups = cosines.view(torch.int16).view(len(own), STRIDE, width).amax(1).topk(count, dim=1, sorted=False).indices  # (m, count)
        members = (groups[:, None, :] + offsets).flatten(1)  # (m, STRIDE count)
        rough_values, place = cosines.gather(1, members).float().topk(count, dim=1)
        candidates = members.gather(1, place)
        exact = torch.bmm(keys[candidates.clamp_max(n - 1)], own[:, :, None])[:, :, 0]  # (m, count)
        exact[rough_values == -torch.inf] = -torch.inf
        values[start : start + len(own)], place = exact.topk(k, dim=1)
        index[start : start + len(own)] = candidates.gather(1, place)
        last = rough_values[:, -1]
        error = rounding(own, near, length, lost) + last.abs() * PRODUCT
        # Bits of numbers below zero are in no order.
        doubtful[start : start + len(own)] = (values[start : start + len(own), -1] <= last + error) | (last <= 0)
    return values, index, doubtful.nonzero()[:, 0]


def lost_length(keys: Tensor, rough: Tensor) -> float:
    """Largest length of what rounding takes from a row of keys (N, D)."""
    return max(float((part - near.float()).norm(dim=1).max()) for part, near in zip(keys.split(CHUNK), rough.split(CHUNK), strict=True))


def rounding(queries: Tensor, near: Tensor, length: float, lost: float) -> Tensor:
    """How far rough cosines of queries (M, D) can be off, (M,), beside the rounding of the product itself.

    ``|q k - q' k'| <= |q - q'| |k| + |q'| |k - k'|``.

    Args:
        queries: q.
        near: q', (M, D), bfloat16.
        length: Largest length of a key k.
        lost: Largest length of ``k - k'``.
    """
    rounded = near.float()
    off: Tensor = (queries - rounded).norm(dim=1) * length + rounded.norm(dim=1) * lost + 1e-5
    return off

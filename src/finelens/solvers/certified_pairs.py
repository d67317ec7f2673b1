"""Certified neighbours among the images themselves, each pair compared once: half of the products of :mod:`~finelens.solvers.certified`.

A strip of rows is compared with itself and all later rows. A later row keeps what it finds in a strip only above a level that is known to lie below
its k-th neighbour, so soon few of them find anything. The strip's own rows take the best of what they kept and what the strip says.
"""

from __future__ import annotations

import torch
from torch import Tensor

from finelens.solvers.certified import CHUNK, PRODUCT, SPARE, STRIDE, lost_length, rounding

# What the candidates of the last strip can be chosen from.
MOST_NEIGHBOURS = CHUNK // STRIDE - SPARE
# Finds of a row in one strip that are kept; a row with more is compared exactly.
MOST = 32
# A kept cosine is the bits of its bfloat16 above those of its place: in the order of the cosines, and a few bytes.
PLACE = 32


def certified_pairs(x: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """The k others of largest cosine for every row of x (N, D), unit and float32.

    Returns:
        Cosines (N, k), positions (N, k), and the rows (N',) that have to be compared exactly.
    """
    strips = _Strips(x, k)
    for start in range(0, len(x), CHUNK):
        strips.compare(start)
    return strips.values, strips.index, strips.doubtful.nonzero()[:, 0]


class _Strips:
    def __init__(self, x: Tensor, k: int) -> None:
        n, self._x, self._k, self._count = len(x), x, k, k + SPARE
        self._rough = torch.zeros(-(-n // CHUNK) * CHUNK, x.shape[1], dtype=torch.bfloat16)
        self._rough[:n] = x
        self._error = rounding(x, self._rough[:n], float(x.norm(dim=1).max()), lost_length(x, self._rough[:n]))  # (N,)
        self.values, self.index = x.new_empty(n, k), torch.empty(n, k, dtype=torch.long)
        self.doubtful = torch.zeros(n, dtype=torch.bool)
        # Kept finds (N, count), falling, and the level (N,) up to which a cosine is no find, as bits of bfloat16.
        self._kept = torch.full((n, self._count), -1, dtype=torch.int64)
        self._level = torch.zeros(n, dtype=torch.int16)
        # One memory for all strips: the system hands out fresh pages one by one.
        self._block = torch.empty(CHUNK * len(self._rough), dtype=torch.bfloat16)
        self._found = x.new_empty(CHUNK * self._count, x.shape[1])
        self._offsets = torch.arange(STRIDE)

    def compare(self, start: int) -> None:
        """Compare the strip of rows from ``start`` on with itself and all later rows."""
        n, width = len(self._x), len(self._rough) - start
        cosines = torch.mm(self._rough[start : start + CHUNK], self._rough[start:].T, out=self._block[: CHUNK * width].view(CHUNK, width))
        cosines[:, n - start :] = -torch.inf
        cosines.fill_diagonal_(-torch.inf)
        # Integers are compared, several times faster than bfloat16; see certified.py.
        bits = cosines.view(torch.int16)
        self._finish(start, bits[: min(CHUNK, n - start)])
        if n > start + CHUNK:
            self._keep(start, bits)

    def _finish(self, start: int, bits: Tensor) -> None:
        """The neighbours of the strip's own rows, of cosines (m, W) with themselves and all later ones."""
        rows, groups = slice(start, start + len(bits)), bits.shape[1] // STRIDE
        best = bits.view(len(bits), STRIDE, groups).amax(1).topk(self._count, dim=1, sorted=False).indices  # (m, count)
        members = (best[:, None, :] + groups * self._offsets[:, None]).flatten(1)  # (m, STRIDE count)
        kept = torch.cat([_packed(bits.gather(1, members), members + start), self._kept[rows]], 1).topk(self._count, dim=1).values
        places = (kept & (1 << PLACE) - 1).clamp_max(len(self._x) - 1)
        own = self._x[rows]
        found = torch.index_select(self._x, 0, places.flatten(), out=self._found[: places.numel()]).view(*places.shape, -1)
        exact = torch.bmm(found, own[:, :, None])[:, :, 0]  # (m, count)
        rough = _cosines(kept)
        exact[rough <= 0] = -torch.inf
        self.values[rows], chosen = exact.topk(self._k, dim=1)
        self.index[rows] = places.gather(1, chosen)
        # No other row is above this in bfloat16.
        last = torch.maximum(rough[:, -1], self._level[rows].view(torch.bfloat16).float())
        sure = self.values[rows, -1] > last + self._error[rows] + last * PRODUCT
        self.doubtful[rows] |= ~sure | (rough[:, -1] <= 0)

    def _keep(self, start: int, bits: Tensor) -> None:
        """What later rows find among those of the strip, of cosines (CHUNK, W)."""
        later = slice(start + CHUNK, len(self._x))
        width = later.stop - later.start
        groups = bits.view(-1, STRIDE, bits.shape[1])[:, :, CHUNK : CHUNK + width].amax(1).T.contiguous()  # (w, CHUNK / STRIDE)
        if start == 0:
            self._level[later] = self._below(groups.topk(self._k, dim=1).values[:, -1], later)
        column, group = (groups > self._level[later, None]).nonzero().T
        rows = STRIDE * group[:, None] + self._offsets
        found = bits[rows, column[:, None] + CHUNK]  # (finds, STRIDE)
        at, member = (found > self._level[later][column][:, None]).nonzero().T
        if not len(at):
            return
        columns, counts = column[at].unique_consecutive(return_counts=True)
        rank = torch.arange(len(at)) - (counts.cumsum(0) - counts).repeat_interleave(counts)
        new = torch.full((len(columns), min(MOST, int(counts.max()))), -1, dtype=torch.int64)
        few = rank < MOST
        row = torch.arange(len(columns)).repeat_interleave(counts)
        new[row[few], rank[few]] = _packed(found[at, member], rows[at, member] + start)[few]
        columns += later.start
        kept = torch.cat([self._kept[columns], new], 1).topk(self._count, dim=1).values
        self._kept[columns] = kept
        level = self._below((kept[:, self._k - 1] >> PLACE).clamp_min(0).to(torch.int16), columns)
        self._level[columns] = torch.maximum(self._level[columns], level)
        crowded = columns[counts > MOST]
        self.doubtful[crowded], self._level[crowded] = True, torch.iinfo(torch.int16).max

    def _below(self, bits: Tensor, rows: Tensor | slice) -> Tensor:
        """Levels (m,) that no neighbour is below where the k-th cosine found has these bits (m,): twice what rounding can have taken away."""
        cosine = bits.clamp_min(0).view(torch.bfloat16).float()
        level = (cosine - 2 * (self._error[rows] + cosine * PRODUCT) - 1e-5).clamp_min(0)
        # Cut off, not rounded up.
        return (level.view(torch.int32) >> 16).to(torch.int16)


def _packed(bits: Tensor, places: Tensor) -> Tensor:
    return (bits.long() << PLACE) | places


def _cosines(packed: Tensor) -> Tensor:
    """The rough cosines of what :func:`_packed` made; what was never found counts as 0."""
    return (packed >> PLACE).clamp_min(0).to(torch.int16).view(torch.bfloat16).float()

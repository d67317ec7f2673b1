"""The mixtures with neighbours on many images: the same updates, without work that no longer changes an answer.

A round of the plain solvers goes through all N x C posteriors a dozen times. Here a round is one pass over chunks of rows that stay in the processor's
cache: scores, neighbours, softmax and statistics of a chunk before the next. What is different, and why it may be:

* one update of the assignments a round, in place, instead of five of all images at once: the neighbours' part contracts to 1e-5 in two;
* a row that moves less than :data:`STILL` is left out of the next rounds, and its part of the statistics stays; a last pass updates every row;
* rounds end when posteriors move less than :data:`SETTLED` on average.

Both are distances in L1, of at most 2. The plain loops stay as they are for few rows and for float64, where they are exact.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from finelens.solvers.known import Known

# From so many posteriors on.
MANY = 1 << 20
STILL, SETTLED = 3e-3, 1e-3
# Bytes of a chunk's posteriors.
CHUNK_BYTES = 1 << 20


def is_many(x: Tensor, classes: int) -> bool:
    """Whether rows (N, D) under so many classes are settled here."""
    return x.dtype is torch.float32 and x.device.type == "cpu" and len(x) * classes >= MANY


class Settling:
    """Posteriors of many images and their sums over images.

    Args:
        x: Unit rows (N, D), float32.
        graph: Symmetric affinity (N, N), sparse, already weighted.
        known: Rows whose posterior is given.
        classes: C.
        squares: Whether sums of squares are wanted as well.

    Attributes:
        z: Posteriors (N, C).
        mass: ``sum_i z_i``, (C,), float64.
        sums: ``z^T x``, (C, D), float64.
        squares: ``z^T x^2``, (C, D), float64; empty unless wanted.
    """

    def __init__(self, x: Tensor, graph: Tensor, known: Known, classes: int, *, squares: bool) -> None:
        self.x, self._known, self._squares, self._width = x, known, squares, x.shape[1]
        csr = graph.to_sparse_csr()
        self._starts, self._neighbours, self._weights = csr.crow_indices(), csr.col_indices(), csr.values()
        self.z = torch.zeros(len(x), classes)
        columns = self._width * (2 if squares else 1)
        self.mass, self._sums = torch.zeros(classes, dtype=torch.float64), torch.zeros(classes, columns, dtype=torch.float64)
        self._chunk = max(64, CHUNK_BYTES // (4 * classes))
        self._given = torch.zeros(len(x), dtype=torch.bool)
        self._given[known.rows] = True
        self.z[known.rows, known.labels] = 1.0

    @property
    def sums(self) -> Tensor:
        """``z^T x``."""
        return self._sums[:, : self._width]

    @property
    def squares(self) -> Tensor:
        """``z^T x^2``."""
        return self._sums[:, self._width :]

    def start(self, weights: Tensor) -> None:
        """First posteriors and sums: ``softmax(x weights^T)`` without neighbours, weights (C, D)."""
        self._pass(torch.arange(len(self.x)), weights, None, neighbours=False)
        hinted = self.z[self._known.rows]
        if len(hinted):
            rows = self._rows(self._known.rows)
            self._sums += (hinted.T @ rows).double()
            self.mass += hinted.sum(0, dtype=torch.float64)

    def settle(self, scores: Callable[[], tuple[Tensor, Tensor]], update: Callable[[], None], rounds: int) -> Tensor:
        """Rounds of posteriors and statistics, then a last pass over the posteriors.

        Args:
            scores: Weights (C, D), or (C, 2 D) on the columns and their squares, and biases (C,) of the logits by the statistics in force.
            update: Takes the statistics from the sums.
            rounds: Most rounds.

        Returns:
            Log-posteriors (N, C), in the memory of the posteriors.
        """
        everything = torch.arange(len(self.x))
        rows = everything
        for _ in range(rounds):
            moved = self._pass(rows, *scores())
            update()
            if float(moved.sum(dtype=torch.float64)) < SETTLED * len(self.x):
                break
            rows = rows[moved > STILL]
        self._pass(everything, *scores(), count=False)
        return self.z.clamp_min_(torch.finfo(self.z.dtype).tiny).log_()

    def _rows(self, rows: Tensor) -> Tensor:
        x = self.x[rows]
        return torch.cat([x, x.square()], 1) if self._squares else x

    def _pass(self, rows: Tensor, weights: Tensor, bias: Tensor | None, *, neighbours: bool = True, count: bool = True) -> Tensor:
        """Update the posteriors of some rows, and the sums by what moved; returns how far each moved."""
        moved = torch.empty(len(rows))
        logits = torch.empty(min(self._chunk, len(rows)), self.z.shape[1])
        transposed, bias = weights.float().T, None if bias is None else bias.float()
        for start in range(0, len(rows), self._chunk):
            own = rows[start : start + self._chunk]
            x, chunk = self._rows(own), logits[: len(own)]
            # A view of all rows in their order needs no gathering.
            z = self.z[int(own[0]) : int(own[-1]) + 1] if int(own[-1]) - int(own[0]) + 1 == len(own) else None
            torch.mm(x[:, : len(transposed)], transposed, out=chunk)
            if bias is not None:
                chunk += bias
            if neighbours:
                chunk += self._near(own)
            torch.softmax(chunk, 1, out=chunk)
            before = self.z[own] if z is None else z
            chunk[self._given[own]] = before[self._given[own]]
            if count:
                chunk -= before
                torch.linalg.vector_norm(chunk, 1, dim=1, out=moved[start : start + len(own)])
                self._sums += chunk.T @ x
                self.mass += chunk.sum(0)
                chunk += before
            if z is None:
                self.z[own] = chunk
            else:
                z.copy_(chunk)
        return moved

    def _near(self, rows: Tensor) -> Tensor:
        """Weighted sum of the neighbours' posteriors, (n, C)."""
        first, counts = self._starts[rows], self._starts[rows + 1] - self._starts[rows]
        offsets = counts.cumsum(0) - counts
        edges = torch.arange(int(counts.sum())) + (first - offsets).repeat_interleave(counts)
        return F.embedding_bag(self._neighbours[edges], self.z, offsets, mode="sum", per_sample_weights=self._weights[edges])

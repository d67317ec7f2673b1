"""The mixtures with neighbours on many images: the same updates, without work that no longer changes an answer.

A round of the plain solvers goes through all N x C posteriors a dozen times. Here a round is one pass over chunks of rows that stay in the cache of
the processor: scores, neighbours, softmax and statistics of a chunk before the next. What is different, and why it may be:

* one update of the assignments a round, in place, instead of five of all images at once: the neighbours' part contracts to 1e-5 in two;
* a row that moves less than :data:`STILL` is left out of the next rounds, and its part of the statistics stays; a last pass updates every row;
* rounds end when posteriors move less than :data:`SETTLED` on average;
* the logits of the text, which no round changes, are multiplied out once, in float32, and kept;
* where the processor has units for it, sums over images and what the statistics say beyond the text are products in bfloat16: rounding of single
  images averages out.

Both numbers are distances in L1, of at most 2. The plain loops stay as they are for few rows and for float64, where they are exact.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from finelens.core.private_torch import bfloat16_units
from finelens.solvers.known import Known
from finelens.solvers.neighbours import RowProduct

# From so many posteriors on.
MANY = 1 << 20
STILL, SETTLED = 1e-2, 1e-3
# Bytes of a chunk's posteriors.
CHUNK_BYTES = 2 << 20


def is_many(x: Tensor, classes: int) -> bool:
    """Whether rows (N, D) under so many classes are settled here."""
    return x.dtype is torch.float32 and x.device.type == "cpu" and len(x) * classes >= MANY


def sums_type(x: Tensor, classes: int) -> torch.dtype:
    """Type of products that are summed over rows (N, D) under so many classes: bfloat16 where they are many and the processor has units for it."""
    return torch.bfloat16 if is_many(x, classes) and bfloat16_units() else x.dtype


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
        best: Class of each row's largest posterior, (N,).
        mass: ``sum_i z_i``, (C,), float64.
        sums: ``z^T x``, (C, D), float64.
        squares: ``z^T x^2``, (C, D), float64; empty unless wanted.
    """

    def __init__(self, x: Tensor, graph: Tensor, known: Known, classes: int, *, squares: bool) -> None:
        self.x, self._known, self._squares, self._width = x, known, squares, x.shape[1]
        self._graph = RowProduct(graph)
        self.z, self.best = torch.zeros(len(x), classes), torch.zeros(len(x), dtype=torch.int64)
        self.best[known.rows] = known.labels
        self._kind = sums_type(x, classes)
        columns = self._width * (2 if squares else 1)
        self.mass, self._sums = torch.zeros(classes, dtype=torch.float64), torch.zeros(classes, columns, dtype=torch.float64)
        self._text = torch.zeros(len(x), classes)
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
        """First posteriors and sums: ``softmax(x weights^T)`` without neighbours, weights (C, D), whose logits are part of all later ones."""
        for x, logits in zip(self.x.split(self._chunk), self._text.split(self._chunk), strict=True):
            torch.mm(x, weights.to(x).T, out=logits)
        self._pass(torch.arange(len(self.x)), None, neighbours=False)
        if len(self._known):
            self._add(self.mass, self._sums, self.z[self._known.rows], self._columns(self.x[self._known.rows]))

    def settle(self, scores: Callable[[], tuple[Tensor, Tensor | None, Tensor]], update: Callable[[], None], rounds: int) -> Tensor:
        """Rounds of posteriors and statistics, then a last pass over the posteriors.

        Args:
            scores: What the statistics in force add to the text's logits: weights (C, D) of x, of x^2 or None, and biases (C,).
            update: Takes the statistics from the sums.
            rounds: Most rounds.

        Returns:
            Log-posteriors (N, C), in the memory of the posteriors.
        """
        everything = torch.arange(len(self.x))
        rows = everything
        for _ in range(rounds):
            moved = self._pass(rows, scores())
            update()
            if float(moved.sum(dtype=torch.float64)) < SETTLED * len(self.x):
                break
            rows = rows[moved > STILL]
        self._pass(everything, scores(), count=False)
        return self.z.clamp_min_(torch.finfo(self.z.dtype).tiny).log_()

    def _pass(self, rows: Tensor, beyond: tuple[Tensor, Tensor | None, Tensor] | None, *, neighbours: bool = True, count: bool = True) -> Tensor:
        """Update the posteriors of some rows, and the sums by what moved; returns how far each moved."""
        moved = torch.zeros(len(rows))
        logits = torch.empty(min(self._chunk, len(rows)), self.z.shape[1])
        if beyond is not None:
            weights, bias = torch.cat([part for part in beyond[:2] if part is not None], 1), beyond[2].float()
            # What all classes share does not matter to a softmax, and would be rounded off.
            weights = (weights - weights.mean(0)).to(self._kind).T
        # In single precision within a pass: some hundred chunks.
        mass, sums = torch.zeros(self.z.shape[1]), torch.zeros(self._sums.shape)
        for start in range(0, len(rows), self._chunk):
            own = rows[start : start + self._chunk]
            first, last = int(own[0]), int(own[-1]) + 1
            # Rows side by side need no gathering.
            at: Any = slice(first, last) if last - first == len(own) else own
            columns, chunk, before, given = self._columns(self.x[at]), logits[: len(own)], self.z[at], self._given[at]
            if beyond is None:
                chunk.copy_(self._text[at])
            else:
                torch.add(self._text[at], bias, out=chunk)
                chunk += columns @ weights
            if neighbours:
                chunk += self._graph.of(own, self.z)
            torch.softmax(chunk, 1, out=chunk)
            if bool(given.any()):
                chunk[given] = before[given]
            self.best[at] = chunk.argmax(1)
            if count:
                change = chunk - before
                torch.linalg.vector_norm(change, 1, dim=1, out=moved[start : start + len(own)])
                self._add(mass, sums, change, columns)
            self.z[at] = chunk
        self.mass += mass
        self._sums += sums
        return moved

    def _columns(self, x: Tensor) -> Tensor:
        """What statistics are made of: rows (n, D), beside them their squares where they are wanted, (n, 2 D), in the type of the products."""
        return torch.cat([x.to(self._kind), x.square().to(self._kind)], 1) if self._squares else x.to(self._kind)

    def _add(self, mass: Tensor, sums: Tensor, change: Tensor, columns: Tensor) -> None:
        """Add what a change (n, C) of posteriors is to the sums."""
        mass += change.sum(0)
        sums += change.to(self._kind).T @ columns

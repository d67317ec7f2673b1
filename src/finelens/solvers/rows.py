"""Fits to more rows than memory holds: passes over chunks, sums over images in the place of posteriors, and a sample where one number is wanted.

What a solver keeps of N images under C classes is sums that do not grow with N. A pass reads the rows once, makes the posteriors of a chunk, adds
them up and forgets them. Numbers that are one for all images, such as a standard deviation of logits, are taken from :data:`SAMPLE` rows, evenly
spread.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from finelens.core.private_torch import bfloat16_units
from finelens.errors import UserError
from finelens.protocol import Rows
from finelens.solvers.columns import silenced, split_views
from finelens.solvers.known import Known
from finelens.solvers.neighbours import evenly_spread

SAMPLE = 1 << 15
# Rows whose logits stay in the cache between the product and the softmax.
CHUNK = 1024

# Which rows a chunk holds: neighbours, or any.
At = slice | Tensor
Score = Callable[[At, Tensor], Tensor]


class TensorRows:
    """Rows of tensors, in memory or mapped into it, as :class:`~finelens.protocol.Rows`.

    Args:
        views: Feature matrices (N, D_v) of the same images in the same rows.
    """

    def __init__(self, *views: Tensor) -> None:
        self._views = views

    @property
    def widths(self) -> tuple[int, ...]:
        """Columns of each."""
        return tuple(view.shape[1] for view in self._views)

    def __len__(self) -> int:
        """N."""
        return len(self._views[0])

    def parts(self, size: int) -> Iterator[Tensor]:
        """All rows in their order."""
        for start in range(0, len(self), size):
            yield torch.cat([view[start : start + size].float() for view in self._views], 1)

    def at(self, positions: Tensor) -> Tensor:
        """Some rows."""
        return torch.cat([view[positions].float() for view in self._views], 1)


class ChangedRows:
    """Rows as something makes them of others.

    Args:
        rows: The others.
        change: From rows (n, W) to rows (n, D).
        width: D.
    """

    def __init__(self, rows: Rows, change: Callable[[Tensor], Tensor], width: int) -> None:
        self._rows, self._change, self.widths = rows, change, (width,)

    def __len__(self) -> int:
        """N."""
        return len(self._rows)

    def parts(self, size: int) -> Iterator[Tensor]:
        """All rows in their order."""
        return map(self._change, self._rows.parts(size))

    def at(self, positions: Tensor) -> Tensor:
        """Some rows."""
        return self._change(self._rows.at(positions))


class RowsAt:
    """Some rows of others, in an order of their own; one may stand more than once.

    Args:
        rows: The others.
        places: Which of them these are, (N,).
    """

    def __init__(self, rows: Rows, places: Tensor) -> None:
        self._rows, self._places, self.widths = rows, places, rows.widths

    def __len__(self) -> int:
        """N."""
        return len(self._places)

    def parts(self, size: int) -> Iterator[Tensor]:
        """All rows in their order."""
        return map(self._rows.at, self._places.split(size))

    def at(self, positions: Tensor) -> Tensor:
        """Some rows."""
        return self._rows.at(self._places[positions])


class RowsBeside:
    """Feature spaces of the same images side by side.

    Args:
        views: Rows of each; the first belongs to the prototypes.
    """

    def __init__(self, views: Sequence[Rows]) -> None:
        self._views = views

    @property
    def widths(self) -> tuple[int, ...]:
        """Columns of each."""
        return tuple(width for view in self._views for width in view.widths)

    def __len__(self) -> int:
        """N."""
        return len(self._views[0])

    def parts(self, size: int) -> Iterator[Tensor]:
        """All rows in their order."""
        for parts in zip(*(view.parts(size) for view in self._views), strict=True):
            yield torch.cat(parts, 1)

    def at(self, positions: Tensor) -> Tensor:
        """Some rows."""
        return torch.cat([view.at(positions) for view in self._views], 1)


class FitRows:
    """The rows that a fit learns from: of unit norm, without those of no class.

    Args:
        rows: All rows.
        kept: Positions of those that belong in the statistics, (N,); None for all.
        known: Hinted rows, counted among those.

    Attributes:
        widths: Columns of each view.
        known: As given.
        passes: How often all rows were read.
        rows_read: How many rows were read, one by one included.
    """

    def __init__(self, rows: Rows, kept: Tensor | None, known: Known) -> None:
        self._rows, self._kept, self.known = rows, kept, known
        self.widths, self._count = rows.widths, len(rows) if kept is None else len(kept)
        self._unheard: Sequence[int] = ()
        self._through: Callable[[At, Tensor], Tensor] | None = None
        self._read = [0, 0]
        self._labels = torch.full((self._count,), -1)
        self._labels[known.rows] = known.labels

    def __len__(self) -> int:
        """N."""
        return self._count

    @property
    def width(self) -> int:
        """D_1 + ... + D_V."""
        return sum(self.widths)

    @property
    def passes(self) -> int:
        """How often all rows were read."""
        return self._read[0]

    @property
    def rows_read(self) -> int:
        """How many rows were read, one by one included."""
        return self._read[1]

    def each(self, size: int = CHUNK) -> Iterator[tuple[slice, Tensor]]:
        """All rows in their order, and which they are.

        Raises:
            UserError: A value is not finite.
        """
        start, before, mask = 0, 0, None
        if self._kept is not None:
            mask = torch.zeros(len(self._rows), dtype=torch.bool)
            mask[self._kept] = True
        for part in self._rows.parts(size):
            # The extremes carry what is not finite, and take no memory.
            if not self._read[0] and not torch.isfinite(torch.stack(part.aminmax())).all():
                raise UserError("X holds values that are not finite; leave those rows out")
            whole, before = part, before + len(part)
            if mask is not None:
                part = whole[mask[before - len(whole) : before]]
            self._read[1] += len(part)
            at = slice(start, start + len(part))
            start = at.stop
            if len(part):
                yield at, self._seen(at, part)
        self._read[0] += 1

    def at(self, positions: Tensor) -> Tensor:
        """Some rows (n, D)."""
        self._read[1] += len(positions)
        return self._seen(positions, self._rows.at(positions if self._kept is None else self._kept[positions]))

    def _seen(self, at: At, part: Tensor) -> Tensor:
        x = torch.cat([F.normalize(view, dim=1) for view in split_views(part, self.widths)], 1) if len(self.widths) > 1 else F.normalize(part, dim=1)
        x = silenced(x, self._unheard, self.widths)
        return x if self._through is None else self._through(at, x)

    def evenly(self, most: int) -> Tensor:
        """Positions of at most so many rows, evenly spread."""
        return evenly_spread(len(self), most, torch.device("cpu"))

    def sampled(self) -> Tensor:
        """Positions of the rows that one number of all is taken from."""
        return self.evenly(SAMPLE)

    def label_free(self) -> FitRows:
        """The same rows without hints."""
        nothing = torch.zeros(0, dtype=torch.int64)
        return self._as(known=Known(nothing, nothing), _labels=torch.full_like(self._labels, -1))

    def without(self, views: Sequence[int]) -> FitRows:
        """The same with some views silenced."""
        return self._as(_unheard=views)

    def through(self, change: Callable[[At, Tensor], Tensor]) -> FitRows:
        """The same rows as something changes them, chunk by chunk."""
        return self._as(_through=change)

    def _as(self, **changed: Any) -> FitRows:
        # A shallow copy: passes are counted together.
        other = copy.copy(self)
        vars(other).update(changed)
        return other

    def clamp_(self, at: At, logits: Tensor) -> Tensor:
        """Logits (n, C) in which hinted rows are one-hot, in place."""
        labels = self._labels[at]
        if bool((labels >= 0).any()):
            own = (labels >= 0).nonzero()[:, 0]
            logits[own] = -torch.inf
            logits[own, labels[own]] = 0.0
        return logits

    def free(self, at: At) -> Tensor:
        """Which rows (n,) have no hint."""
        return self._labels[at] < 0

    def part(self) -> tuple[Tensor, Known]:
        """Rows (S, D) that are evenly spread, the hinted ones besides; and which of them are hinted."""
        positions = torch.cat([self.sampled(), self.known.rows]).unique()
        return self.at(positions), self.known.at(torch.searchsorted(positions, self.known.rows))


@dataclass
class Moments:
    """Of rows over all images, float64.

    Attributes:
        mean: (D,).
        squares: Mean of ``x^2``, (D,).
    """

    mean: Tensor
    squares: Tensor

    @classmethod
    def of(cls, rows: FitRows) -> Moments:
        """One pass."""
        total, squares = torch.zeros(rows.width, dtype=torch.float64), torch.zeros(rows.width, dtype=torch.float64)
        for _, x in rows.each():
            total += x.sum(0)
            squares += x.square().sum(0)
        return cls(total / len(rows), squares / len(rows))


@dataclass
class Sums:
    """Of posteriors z over all images, float64.

    Attributes:
        mass: ``sum_i z_i``, (C,).
        sums: ``z^T x``, (C, D).
        free: Mass of the images without a hint, (C,).
    """

    mass: Tensor
    sums: Tensor
    free: Tensor

    @classmethod
    def of(
        cls,
        rows: FitRows,
        score: Score,
        classes: int,
        see: Callable[[slice, Tensor, Tensor], None] | None = None,
        kind: torch.dtype | None = None,
    ) -> Sums:
        """One pass of ``z = softmax(score)``, hinted rows one-hot.

        Args:
            rows: The images.
            score: Logits (n, C) of a chunk, which are overwritten.
            classes: C.
            see: Is shown each chunk with its posteriors.
            kind: Type of the products that are summed; by default :func:`sum_type`.
        """
        mass, free = torch.zeros(classes, dtype=torch.float64), torch.zeros(classes, dtype=torch.float64)
        sums, kind = torch.zeros(classes, rows.width, dtype=torch.float64), sum_type() if kind is None else kind
        for at, x in rows.each():
            z = rows.clamp_(at, score(at, x))
            torch.softmax(z, 1, out=z)
            own = z.sum(0)
            mass += own
            free += z[rows.free(at)].sum(0) if len(rows.known) else own
            sums += z.to(kind).T @ x.to(kind)
            if see is not None:
                see(at, x, z)
        return cls(mass, sums, free)


def second_moment_of(rows: FitRows) -> tuple[Tensor, Tensor]:
    """Mean (D,) and ``X^T X / N`` (D, D), float64: one pass."""
    second, total = torch.zeros(rows.width, rows.width, dtype=torch.float64), torch.zeros(rows.width, dtype=torch.float64)
    for _, x in rows.each():
        second += x.T @ x
        total += x.sum(0)
    return total / len(rows), second / len(rows)


def mass_of(rows: FitRows, score: Score, classes: int) -> Tensor:
    """Mass (C,), float64, of ``softmax(score)`` over the images without a hint: one pass."""
    free = torch.zeros(classes, dtype=torch.float64)
    for at, x in rows.each():
        z = score(at, x)
        torch.softmax(z, 1, out=z)
        free += (z[rows.free(at)] if len(rows.known) else z).sum(0)
    return free


def sum_type() -> torch.dtype:
    """Type of products that are summed over so many rows: rounding of single images averages out."""
    return torch.bfloat16 if bfloat16_units() else torch.float32


def linear(weights: Tensor, bias: Tensor | None = None) -> Score:
    """The score ``x weights^T + bias`` of weights (C, D) and biases (C,), in memory that each chunk overwrites; of the first D columns of x."""
    turned, added = weights.float().T.contiguous(), torch.zeros(len(weights)) if bias is None else bias.float()
    memory = torch.empty(CHUNK, len(weights))

    def score(at: At, x: Tensor) -> Tensor:
        own = x[:, : len(turned)]
        return torch.addmm(added, own, turned, out=memory[: len(own)]) if len(own) <= CHUNK else torch.addmm(added, own, turned)

    return score


class TopRows:
    """The images of largest posterior in each class, while they pass.

    Args:
        count: Images of a class.
        classes: C.
    """

    def __init__(self, count: int, classes: int) -> None:
        self.values, self.index = torch.zeros(0, classes), torch.zeros(0, classes, dtype=torch.int64)
        self._count = count

    def add(self, at: slice, z: Tensor) -> None:
        """Posteriors (n, C) of a chunk."""
        own, place = z.topk(min(self._count, len(z)), dim=0)  # (k, C)
        values, index = torch.cat([self.values, own]), torch.cat([self.index, place + at.start])
        self.values, order = values.topk(min(self._count, len(values)), dim=0)
        self.index = index.gather(0, order)

    def means(self, rows: FitRows) -> Tensor:
        """Unit means (C, D), float64, weighted by the posteriors."""
        positions, place = self.index.unique(return_inverse=True)
        x = rows.at(positions).double()
        total = torch.zeros(self.index.shape[1], rows.width, dtype=torch.float64)
        for weight, own in zip(self.values, place, strict=True):
            total += weight.double()[:, None] * x[own]
        return F.normalize(total, dim=1)


class TextPass:
    """What one pass says of the text posteriors of all images.

    Args:
        rows: The images.
        text: Weights of the text logits, (C, D), float64.
        bias: What is added to them, (C,), float64.

    Attributes:
        confidence: Largest posterior of each image, (N,).
        answer: The class that has it, (N,), int32.
        mean: Of the images, (D,), float64.
    """

    def __init__(self, rows: FitRows, text: Tensor, bias: Tensor | None = None) -> None:
        self.confidence, self.answer = torch.empty(len(rows)), torch.empty(len(rows), dtype=torch.int32)
        total, score = torch.zeros(rows.width, dtype=torch.float64), linear(text, bias)
        for at, x in rows.each():
            self.confidence[at], answer = score(at, x).softmax(1).max(1)
            self.answer[at] = answer.int()
            total += x.sum(0)
        self.mean = total / len(rows)

"""Rows of a fit whose class a person gave: what every solver does with hints."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from finelens.errors import UserError
from finelens.protocol import Hints


@dataclass(frozen=True)
class Known:
    """Hinted rows of a fit.

    Attributes:
        rows: Positions among the rows of the fit, (K,), int64.
        labels: Class of each, (K,), int64.
        look: Number of the look at which each was given, (K,), int64: photographs of one group share it. None where each was given for itself.
    """

    rows: Tensor
    labels: Tensor
    look: Tensor | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def by_look(self) -> Tensor:
        """The look of each answer, counted from 0, (K,), int64."""
        return torch.arange(len(self), device=self.rows.device) if self.look is None else self.look.unique(return_inverse=True)[1]

    @property
    def looks(self) -> int:
        """Looks at which the answers were given."""
        return len(self) if self.look is None else len(self.look.unique())

    def at(self, rows: Tensor) -> Known:
        """The same where they stand at other rows (K,)."""
        return Known(rows, self.labels, self.look)

    def some(self, chosen: Tensor) -> Known:
        """Those of a mask (K,)."""
        return Known(self.rows[chosen], self.labels[chosen], None if self.look is None else self.look[chosen])

    def clamp(self, log_posterior: Tensor) -> Tensor:
        """Logarithms (N, C) of posteriors, or logits, in which hinted rows are one-hot; adding finite numbers to them leaves them so."""
        if not len(self):
            return log_posterior
        clamped = log_posterior.clone()
        clamped[self.rows] = -torch.inf
        clamped[self.rows, self.labels] = 0.0
        return clamped

    def ordered(self) -> tuple[Tensor, Tensor]:
        """Rows and labels by class, then by row."""
        order = (self.labels * (int(self.rows.max()) + 1) + self.rows).argsort() if len(self) else self.rows
        return self.rows[order], self.labels[order]

    def counts(self, classes: int) -> Tensor:
        """Hinted images of each class, (C,), float64."""
        return torch.bincount(self.labels, minlength=classes).double()


def split_hints(hints: Hints | None, rows: int, classes: int, device: torch.device) -> tuple[Tensor | None, Known]:
    """Separate "none of these classes" from known classes.

    Args:
        hints: Positions among ``rows`` rows, and classes; -1 for none of them.
        rows: N.
        classes: C.
        device: Where the features are.

    Returns:
        Positions (N',) of the rows that belong in the statistics, None for all of them; and the known rows, counted among those.

    Raises:
        UserError: A position or class that does not exist, a position given twice, or nothing is left to fit.
    """
    if hints is None:
        nothing = torch.zeros(0, dtype=torch.int64, device=device)
        return None, Known(nothing, nothing)
    index, label = hints.index.to(device), hints.label.to(device)
    if index.shape != label.shape or index.ndim != 1:
        raise UserError(f"hints must give one class for each position, got {len(index)} positions and {len(label)} classes")
    if len(index) and not (int(index.min()) >= 0 and int(index.max()) < rows and len(index.unique()) == len(index)):
        raise UserError(f"hints must name different rows of X, from 0 to {rows - 1}")
    if len(label) and not (int(label.min()) >= -1 and int(label.max()) < classes):
        raise UserError(f"hints must name classes from 0 to {classes - 1}, or -1 for none of them")
    none = label < 0
    given = Known(index, label, None if hints.look is None else hints.look.to(device))
    if not none.any():
        return None, given
    mask = torch.ones(rows, dtype=torch.bool, device=device)
    mask[index[none]] = False
    if not mask.any():
        raise UserError("hints say that no row of X belongs to any class; there is nothing to fit")
    place = mask.cumsum(0) - 1  # (N,)
    return mask.nonzero()[:, 0], given.some(~none).at(place[index[~none]])

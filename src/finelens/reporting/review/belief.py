"""What the model of a live review believes at one moment."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor

from finelens.evaluation.prequential import Progress

# Probability from which on a class is not out of the question.
POSSIBLE = 0.01


@dataclass(frozen=True)
class Belief:
    """What the model believes after some answers.

    Attributes:
        version: Changes of the log that it knows.
        classes: C' names, those that persons thought of last.
        p: Probabilities, (N, C'); (N, 0) where no class has a name.
        progress: Accuracy by the answers, and whether more of them pay; None before the first test.
        only_ones: Why no accuracy is told: tests that were lost where no other answer is of their class. 0 where that is no reason.
        tested: Changes of the log that these two know, which come some time after the probabilities.
        error: Why the last lesson failed; empty where it did not.
    """

    version: int
    classes: tuple[str, ...]
    p: Tensor
    progress: Progress | None = None
    only_ones: int = 0
    tested: int = -1
    error: str = ""

    def likeliest(self, rows: list[int], least: int, most: int) -> list[tuple[str, list[float]]]:
        """Names with the probability of each of some photographs, likeliest on average first: ``least``, and more where they are possible."""
        if not self.classes:
            return []
        found = self.p[rows].mean(0).sort(descending=True, stable=True)
        pairs = zip(found.values[:most].tolist(), found.indices[:most].tolist(), strict=True)
        return [(self.classes[i], self.p[rows, i].tolist()) for place, (value, i) in enumerate(pairs) if place < least or value >= POSSIBLE]

    def likeliest_of_some(self, rows: list[int], shown: Collection[str]) -> list[tuple[str, list[float]]]:
        """Further names that may be the likeliest of a part of some photographs: each is likelier than every one shown for at least one of them."""
        of_shown = [i for i, name in enumerate(self.classes) if name in shown]
        if not of_shown or len(rows) == 1:
            return []
        p = self.p[rows]  # (n, C')
        above = torch.stack([(p > p[:, i, None]).any(0) for i in of_shown])  # (shown, C')
        return [(self.classes[i], p[:, i].tolist()) for i in above.all(0).nonzero()[:, 0].tolist()]

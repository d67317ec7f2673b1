"""Running class means on a stream, in the manner of PTA (Huang et al., ICML 2026, arXiv 2604.21360)."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from finelens.solvers.gaussians import text_means
from finelens.solvers.keys import centred_square, matching_weight
from finelens.solvers.online import OnlineSolver
from finelens.solvers.parameters import NOT_NEGATIVE, POSITIVE, Constraints


class Pta(OnlineSolver):
    """One mean a class, to which each image is added that the text names so, weighted by the text's confidence; the cosine with it answers beside the
    text.

    Args:
        anchor: Pseudo-images that hold a mean at its text, moved to the centre of the images so far.
        blend: Standard deviation of the cosines over that of the text logits, over the images so far.
        seed: See :class:`~finelens.solvers.online.OnlineSolver`.
        chunk_size: See there.

    Attributes:
        text_: Scaled prototypes (C, D), float64.
        sums_: Confidence-weighted sums of the images of each class, (C, D), float64.
        total_: Sum of the images so far, (D,), float64.
        squares_: Centred sums of squares of text logits and of cosines over the images so far, (2,), float64.
        seen_: Images so far, int64.
        scale_: Logit scale, float64.
    """

    state_names: ClassVar[tuple[str, ...]] = ("text_", "sums_", "total_", "squares_", "seen_", "scale_")
    _parameter_constraints: ClassVar[Constraints] = {**OnlineSolver._parameter_constraints, "anchor": POSITIVE, "blend": NOT_NEGATIVE}

    def __init__(self, *, anchor: float = 1.0, blend: float = 1.0, seed: int = 0, chunk_size: int = 4096) -> None:
        super().__init__(seed=seed, chunk_size=chunk_size)
        self.anchor, self.blend = anchor, blend

    def _begin(self, prototypes: Tensor, scale: float) -> None:
        self.text_ = scale * prototypes
        self.sums_, self.total_ = torch.zeros_like(prototypes), prototypes.new_zeros(prototypes.shape[1])
        self.squares_ = prototypes.new_zeros(2)
        self.seen_ = torch.zeros((), dtype=torch.int64, device=prototypes.device)
        self.scale_ = prototypes.new_tensor(scale)

    def _arrive(self, x: Tensor, label: int | None) -> Tensor:
        text = x @ self.text_.T  # (C,)
        p = text.softmax(0)
        named = int(p.argmax()) if label is None else label
        confidence = p[named] if label is None else 1.0
        self.sums_ = self.sums_.index_add(0, torch.tensor([named], device=x.device), (confidence * x)[None])
        self.total_, self.seen_ = self.total_ + x, self.seen_ + 1
        cosines = self._cosines(x)
        self.squares_ = self.squares_ + torch.stack([centred_square(text), centred_square(cosines)])
        return (text + self._weight() * cosines).log_softmax(0)

    def _cosines(self, x: Tensor) -> Tensor:
        """With the class means, (..., C)."""
        mean = self.total_ / self.seen_.clamp_min(1)
        means = self.sums_ + self.anchor * text_means(self.text_ / self.scale_, mean)
        return x @ F.normalize(means, dim=1).T

    def _weight(self) -> Tensor:
        return self.blend * matching_weight(self.squares_[0], self.squares_[1])

    def _score(self, x: Tensor) -> Tensor:
        return (x @ self.text_.T + self._weight() * self._cosines(x)).log_softmax(1)

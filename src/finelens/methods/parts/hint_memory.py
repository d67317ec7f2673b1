"""Hints in self-training: a hinted image is trained towards what a person said, with full weight, whatever the model makes of it.

Shapes: B images of a batch, K hinted images, C classes. Images of none of the classes never reach a training method (see ``pipeline.fit``).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from finelens.protocol import Hints
from finelens.training.pseudo_labels import PseudoLabels
from finelens.training.state import resize_on_load


class HintMemory(nn.Module):
    """The hints of a run, found by the position of an image. Without hints it changes nothing, to the bit.

    Its buffers are part of the training state, so a resumed run needs no hints again; they serve training only.
    """

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("index", torch.zeros(0, dtype=torch.int64))  # (K,), ascending
        self.register_buffer("label", torch.zeros(0, dtype=torch.int64))  # (K,)
        self.index: Tensor
        self.label: Tensor
        resize_on_load(self, "index", "label")

    def start(self, hints: Hints | None) -> None:
        """Take the hints of a fresh run."""
        if hints is not None:
            self.index, self.label = hints.index.to(self.index.device), hints.label.to(self.label.device)

    def find(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Which images of a batch are hinted, and as what.

        Args:
            index: Positions in the store, (B,).

        Returns:
            Mask (B,) and labels of the images that it marks.
        """
        index = index.to(self.index.device)
        if not len(self.index):
            return torch.zeros_like(index, dtype=torch.bool), self.label
        place = torch.searchsorted(self.index, index).clamp(max=len(self.index) - 1)
        hinted = self.index[place] == index
        return hinted, self.label[place[hinted]]

    def _found(self, index: Tensor) -> tuple[Tensor, Tensor] | None:
        """What :meth:`find` gives; None for a batch without a hint."""
        if not len(self.index):
            return None
        hinted, labels = self.find(index)
        return (hinted, labels) if hinted.any() else None

    def clamp(self, index: Tensor, posterior: Tensor) -> Tensor:
        """Posteriors (B, C) with one-hot rows where there is a hint."""
        if (found := self._found(index)) is None:
            return posterior
        hinted, labels = found
        return posterior.index_put((hinted,), F.one_hot(labels, posterior.shape[1]).to(posterior))

    def clamp_cosines(self, index: Tensor, scores: Tensor) -> Tensor:
        """Scores (B, C) in cosine range: 1 for the hinted class, -1 for the others."""
        if (found := self._found(index)) is None:
            return scores
        hinted, labels = found
        return scores.index_put((hinted,), 2 * F.one_hot(labels, scores.shape[1]).to(scores) - 1)

    def apply_to(self, index: Tensor, pseudo: PseudoLabels) -> PseudoLabels:
        """Pseudo-labels with hinted images labelled, certain and fully counted."""
        if (found := self._found(index)) is None:
            return pseudo
        hinted, labels = found
        weights = pseudo.weights.masked_fill(hinted, 1.0)
        return PseudoLabels(pseudo.labels.index_put((hinted,), labels), weights, self.clamp(index, pseudo.posterior))

"""What became of the pseudo-labels from epoch to epoch: numbers for the log, of every method that says what it trains towards."""

from __future__ import annotations

import torch
from torch import Tensor

UNSEEN = -1


class PseudoLabelMemory:
    """The pseudo-label of every image in this epoch and in the last.

    Attributes:
        labels: This epoch's, (N,) int64; -1 for an image not seen yet.
        previous: The last epoch's, (N,).

    Args:
        images: Number of images N.
        zero_shot: Class of each image by the unadapted model, (N,); None where nobody knows.
    """

    def __init__(self, images: int, zero_shot: Tensor | None = None) -> None:
        self.labels = torch.full((images,), UNSEEN, dtype=torch.int64)
        self.previous = self.labels.clone()
        self._zero_shot = zero_shot

    def remember(self, index: Tensor, labels: Tensor | None) -> None:
        """Take the pseudo-labels (B,) of the images at positions ``index`` (B,); None for a method without any."""
        if labels is not None:
            self.labels[index] = labels.detach().cpu()

    def end_epoch(self) -> dict[str, float]:
        """Numbers to log, and the start of the next epoch.

        Returns:
            ``pseudo_largest`` (share of the largest pseudo-class), ``zero_shot_agreement`` (share equal to the zero-shot class) and, from the second
            epoch on, ``pseudo_stability`` (share that kept its pseudo-label); empty for a method without pseudo-labels.
        """
        seen = self.labels != UNSEEN
        if not seen.any():
            return {}
        labels = self.labels[seen]
        numbers = {"pseudo_largest": _share(labels == labels.mode().values)}
        if self._zero_shot is not None:
            numbers["zero_shot_agreement"] = _share(labels == self._zero_shot[seen])
        both = seen & (self.previous != UNSEEN)
        if both.any():
            numbers["pseudo_stability"] = _share(self.labels[both] == self.previous[both])
        self.previous, self.labels = self.labels, torch.full_like(self.labels, UNSEEN)
        return numbers

    def state(self) -> dict[str, Tensor]:
        """Tensors that a checkpoint keeps; copying into them restores the memory."""
        return {"labels": self.labels, "previous": self.previous}


def _share(hits: Tensor) -> float:
    return hits.double().mean().item()

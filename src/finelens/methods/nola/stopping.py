"""A label-free stopping rule: student and teacher on held-out unlabelled images."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from finelens.images.randomness import generator, permutation
from finelens.training.state import resize_on_load


class AgreementStop(nn.Module):
    """Ends training after ``patience`` epochs without a new highest agreement. Its state makes a resumed run end at the same epoch.

    Attributes:
        held_out: Which images are kept out of the training, (N,), bool; all False until :meth:`hold_out`.

    Args:
        patience: Epochs.
    """

    def __init__(self, patience: int) -> None:
        super().__init__()
        self.patience = patience
        self.register_buffer("held_out", torch.zeros(0, dtype=torch.bool))
        self.register_buffer("counts", torch.zeros(2, dtype=torch.int64))  # agreed and seen in this epoch
        self.register_buffer("best", torch.full((), -1.0))
        self.register_buffer("waited", torch.zeros((), dtype=torch.int64))
        self.held_out: Tensor
        self.counts: Tensor
        self.best: Tensor
        self.waited: Tensor
        resize_on_load(self, "held_out")

    def hold_out(self, images: int, share: float, seed: int) -> None:
        """Draw the images to keep out: the given share of N, at least 1, but never all."""
        count = min(max(1, round(share * images)), images - 1)
        chosen = permutation(generator(seed, 0, "", "held out"), images)[:count]
        self.held_out = torch.zeros(images, dtype=torch.bool, device=self.held_out.device)
        self.held_out[torch.from_numpy(chosen)] = True

    @property
    def share(self) -> float:
        """Share of the images that are kept out."""
        return self.held_out.double().mean().item() if len(self.held_out) else 0.0

    def see(self, student: Tensor, teacher: Tensor) -> None:
        """Count the images of a batch on which student and teacher labels (B,) are the same."""
        # Replaced, not written into: a step that did not fit into memory is taken again from the buffers it started with.
        self.counts = self.counts + torch.stack([(student == teacher).sum(), torch.tensor(len(student), device=student.device)])

    def end_epoch(self) -> dict[str, float]:
        """Compare the epoch's agreement with the best one; returns numbers to log."""
        agreed, seen = self.counts.tolist()
        self.counts = torch.zeros_like(self.counts)
        if not seen:
            return {}
        agreement = agreed / seen
        risen = agreement > self.best.item()
        self.waited = torch.zeros_like(self.waited) if risen else self.waited + 1
        if risen:
            self.best.fill_(agreement)
        return {"held_out_agreement": agreement}

    def finished(self) -> bool:
        """Whether the agreement has not risen for ``patience`` epochs."""
        return self.waited.item() >= self.patience

"""TDA (Karmanov et al.: "Efficient Test-Time Adaptation of Vision-Language Models", CVPR 2024)."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor

from finelens.solvers.keys import affinities, centred_square, matching_weight
from finelens.solvers.online import OnlineSolver
from finelens.solvers.parameters import NOT_NEGATIVE, POSITIVE, Constraints

POSITIVE_SLOTS, NEGATIVE_SLOTS = 3, 2
# Entropies, as shares of log C, between which an image says what it is not.
DOUBT = (0.2, 0.5)
# Classes that such an image speaks against: those of at least this posterior.
MASK = 0.03
# Published weights 2 and 0.117, sharpness 5 and 1.
NEGATIVE_SHARE = 0.117 / 2
NEGATIVE_SHARPNESS = 1 / 5
# Stand-ins for an entropy, which lies in [0, 1]: of hinted keys, and of empty slots.
HINTED, EMPTY = -1.0, 2.0


class TDA(OnlineSolver):
    """Keeps a few images of low entropy as keys of their class, and a few doubtful ones as keys against the classes they waver between.

    Args:
        sharpness: beta of the positive cache in units of the mean distance of images and keys.
        blend: Standard deviation of the votes over that of the text logits, over the images so far.
        seed: See :class:`~finelens.solvers.online.OnlineSolver`.
        chunk_size: See there.

    Attributes:
        text_: Scaled prototypes (C, D), float64.
        keys_: Positive keys (C, 3, D), float64; zero where empty.
        entropy_: Their entropies (C, 3), 2 where empty.
        doubtful_: Negative keys (C, 2, D), float64.
        doubt_: Their entropies (C, 2), 2 where empty.
        mask_: Classes that each negative key speaks against, (C, 2, C), uint8.
        total_: Sum of the images so far, (D,), float64.
        squares_: Centred sums of squares of text logits and of votes over the images so far, (2,), float64.
        seen_: Images so far, int64.
    """

    state_names: ClassVar[tuple[str, ...]] = ("text_", "keys_", "entropy_", "doubtful_", "doubt_", "mask_", "total_", "squares_", "seen_")
    _parameter_constraints: ClassVar[Constraints] = {**OnlineSolver._parameter_constraints, "sharpness": POSITIVE, "blend": NOT_NEGATIVE}

    def __init__(self, *, sharpness: float = 5.0, blend: float = 1.0, seed: int = 0, chunk_size: int = 4096) -> None:
        super().__init__(seed=seed, chunk_size=chunk_size)
        self.sharpness, self.blend = sharpness, blend

    def _begin(self, prototypes: Tensor, scale: float) -> None:
        c, dim = prototypes.shape
        self.text_ = scale * prototypes
        self.keys_, self.entropy_ = prototypes.new_zeros(c, POSITIVE_SLOTS, dim), prototypes.new_full((c, POSITIVE_SLOTS), EMPTY)
        self.doubtful_, self.doubt_ = prototypes.new_zeros(c, NEGATIVE_SLOTS, dim), prototypes.new_full((c, NEGATIVE_SLOTS), EMPTY)
        self.mask_ = torch.zeros(c, NEGATIVE_SLOTS, c, dtype=torch.uint8, device=prototypes.device)
        self.total_, self.squares_ = prototypes.new_zeros(dim), prototypes.new_zeros(2)
        self.seen_ = torch.zeros((), dtype=torch.int64, device=prototypes.device)

    def _arrive(self, x: Tensor, label: int | None) -> Tensor:
        text = x @ self.text_.T  # (C,)
        log_p = text.log_softmax(0)
        p = log_p.exp()
        entropy = float(-(p * log_p).sum()) / math.log(max(2, len(p)))
        answer = int(p.argmax()) if label is None else label
        _insert(self.keys_[answer], self.entropy_[answer], x, HINTED if label is not None else entropy)
        if label is None and DOUBT[0] < entropy < DOUBT[1]:
            slot = _insert(self.doubtful_[answer], self.doubt_[answer], x, entropy)
            if slot is not None:
                self.mask_[answer, slot] = p > MASK
        self.total_, self.seen_ = self.total_ + x, self.seen_ + 1
        votes = self._votes(x[None])[0]
        self.squares_ = self.squares_ + torch.stack([centred_square(text), centred_square(votes)])
        return (text + self._weight() * votes).log_softmax(0)

    def _votes(self, x: Tensor) -> Tensor:
        """Votes (M, C): affinities with the positive keys of each class, less those with the negative keys against it."""
        used, doubted = self.entropy_ < EMPTY, self.doubt_ < EMPTY  # (C, slots)
        keys = self.keys_[used]  # (K, D)
        distance = 1 - (self.total_ / self.seen_.clamp_min(1)) @ (keys.sum(0) / max(1, len(keys)))
        beta = self.sharpness / distance.clamp_min(1e-6)
        votes = x.new_zeros(len(x), len(self.text_))
        votes.index_add_(1, used.nonzero()[:, 0], affinities(x, keys, beta))
        against = affinities(x, self.doubtful_[doubted], NEGATIVE_SHARPNESS * beta) @ self.mask_[doubted].to(x)  # (M, C)
        return votes - NEGATIVE_SHARE * against

    def _weight(self) -> Tensor:
        return self.blend * matching_weight(self.squares_[0], self.squares_[1])

    def _score(self, x: Tensor) -> Tensor:
        return (x @ self.text_.T + self._weight() * self._votes(x)).log_softmax(1)


def _insert(keys: Tensor, entropies: Tensor, x: Tensor, entropy: float) -> int | None:
    """Put an image (D,) in the slot of largest entropy, in place, if its own is smaller; the slot, or None."""
    slot = int(entropies.argmax())
    if not entropy < float(entropies[slot]):
        return None
    keys[slot], entropies[slot] = x, entropy
    return slot

"""Several opinions about the same images on one scale: logits centred over the classes, at a root mean square of 1 over the images."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from finelens.solvers.assignments import centred

TINY = 1e-12
# Shares of Sinkhorn's potentials that are tried, the most even first.
EVENNESS = {
    1.0: "even: photographs that look alike agree as before, so all classes seem to be present",
    0.5: "drawn half-way to equal",
    0.0: "left as the images have them",
}
# Of the answer's logits over those of the text, in root mean square.
SHARPER = 2.0
# Share of the uncertainty about a class that the text must take away for images to add to it: below, nobody has said which cluster is which class.
LEAST_TOLD = 0.01
# A class's logits spread over the images by no less than this share of the classes' mean, or a text that fits none of them would shout.
LEAST_SPREAD = 0.1
# Images in work at a time.
CHUNK = 4096


def size_of(logits: Tensor) -> Tensor:
    """Root mean square after centring over the classes, float64."""
    return centred(logits).square_().mean(1, dtype=torch.float64).mean().sqrt().clamp_min(TINY)


def add_opinion(total: Tensor, logits: Tensor) -> Tensor:
    """Add logits at a root mean square of 1 to the total, in place; returns what theirs was."""
    size = size_of(logits)
    total.add_(centred(logits).div_(size.to(logits)))
    return size


def moments_of(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of each class's logits (N, C) over the images, (C,), float64."""
    mean = logits.mean(0, dtype=torch.float64)
    return mean, torch.stack([(part - mean.to(part)).square().sum(0, dtype=torch.float64) for part in logits.split(CHUNK)]).sum(0) / len(logits)


@dataclass(frozen=True)
class EvenText:
    """Text logits t with the classes' spreads over the images drawn together: ``t w + b``.

    With mean mu_c and standard deviation sigma_c of a class's logits over the images and evenness e, ``w_c = (mean sigma / sigma_c)^(e / 2)`` and
    ``b_c = (1 - e) mu_c - w_c mu_c``: a class whose text lies near all images names too many of them, one whose text tells little apart too few.

    Attributes:
        spread: w, (C,), float64.
        shift: b, (C,), float64.
    """

    spread: Tensor
    shift: Tensor

    @classmethod
    def of(cls, mean: Tensor, variance: Tensor, evenness: float) -> EvenText:
        """From means (C,) and variances (C,) of the logits over the images, float64."""
        deviation = variance.clamp_min(TINY).sqrt()
        deviation = deviation.maximum(LEAST_SPREAD * deviation.mean())
        spread = (deviation.mean() / deviation) ** (evenness / 2)
        return cls(spread, (1 - evenness - spread) * mean)

    @classmethod
    def plain(cls, like: Tensor) -> EvenText:
        """Logits as they are; ``like`` is (C,), float64."""
        return cls(torch.ones_like(like), torch.zeros_like(like))

    def weights(self, text: Tensor) -> Tensor:
        """Weights (C, D) of the logits, less their shift, from those of the text logits."""
        return text * self.spread[:, None]

    def __call__(self, text: Tensor) -> Tensor:
        """The logits (N, C) of text logits (N, C)."""
        return torch.addcmul(self.shift.to(text), text, self.spread.to(text))

"""Several opinions about the same images on one scale: logits centred over the classes, at a root mean square of 1 over the images."""

from __future__ import annotations

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


def size_of(logits: Tensor) -> Tensor:
    """Root mean square after centring over the classes, float64."""
    return centred(logits).square_().mean(1, dtype=torch.float64).mean().sqrt().clamp_min(TINY)


def add_opinion(total: Tensor, logits: Tensor) -> Tensor:
    """Add logits at a root mean square of 1 to the total, in place; returns what theirs was."""
    size = size_of(logits)
    total.add_(centred(logits).div_(size.to(logits)))
    return size

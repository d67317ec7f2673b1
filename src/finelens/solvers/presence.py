"""Whether all classes are present, without labels: even masses must leave neighbours as much agreed as they were.

A class that is absent, or rare, fills an even share only with photographs out of the middle of other classes' neighbourhoods; then neighbours fall
out with each other. Where all classes are present in some number they do not.
"""

from __future__ import annotations

import torch
from torch import Tensor

TINY = 1e-12


def neighbour_agreement(labels: Tensor, near: Tensor, classes: int) -> float:
    """Cohen's kappa (1960) between the label of an image and those of its neighbours: how far they agree beyond chance; 1 at most.

    Args:
        labels: Class of each image, (N,).
        near: Its neighbours, (N, k); with k = 0 the agreement is 0.
        classes: C.
    """
    if not near.shape[1]:
        return 0.0
    agreed = float((labels[near] == labels[:, None]).double().mean())
    chance = float((torch.bincount(labels, minlength=classes).double() / len(labels)).square().sum())
    return (agreed - chance) / max(1 - chance, TINY)


def asked_neighbours(near: Tensor, classes: int) -> Tensor:
    """The nearest of the neighbours (N, k) that the agreement is asked of: half of what a class has if all are present, two at least."""
    return near[:, : max(2, round(len(near) / (2 * classes)))]


def all_present(free: Tensor, even: Tensor, near: Tensor, classes: int, *, tolerance: float) -> bool:
    """Whether labels under even masses, (N,), keep the share ``tolerance`` of the neighbour agreement that those under free masses, (N,), have."""
    return neighbour_agreement(even, near, classes) >= tolerance * neighbour_agreement(free, near, classes)

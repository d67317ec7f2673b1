"""What can be told of classes without labels: whether all are present, and whether posteriors tell images apart at all.

Where all classes are present, even masses leave neighbours as much agreed as they were. A class that is absent, or rare, fills an even share only
with photographs out of the middle of other classes' neighbourhoods; then neighbours fall out with each other.
"""

from __future__ import annotations

import torch
from torch import Tensor

TINY = 1e-12
# Entropy of the classes, in nats, below which there is one class to all purposes.
NOTHING = 1e-9
# Images in work at a time.
CHUNK = 4096


def neighbour_agreement(labels: Tensor, near: Tensor, classes: int, among: Tensor | None = None) -> float:
    """Cohen's kappa (1960) between the label of an image and those of its neighbours: how far they agree beyond chance; 1 at most.

    Args:
        labels: Class of each image, (N,).
        near: Its neighbours, (N, k); with k = 0 the agreement is 0.
        classes: C.
        among: Class of each image that neighbours are among; None where they are the images themselves.
    """
    if not near.shape[1]:
        return 0.0
    agreed = float(((labels if among is None else among)[near] == labels[:, None]).double().mean())
    chance = float((torch.bincount(labels, minlength=classes).double() / len(labels)).square().sum())
    return (agreed - chance) / max(1 - chance, TINY)


def asked_neighbours(near: Tensor, classes: int) -> Tensor:
    """The nearest of the neighbours (N, k) that the agreement is asked of: half of what a class has if all are present, two at least."""
    return near[:, : max(2, round(len(near) / (2 * classes)))]


def all_present(free: Tensor, even: Tensor, near: Tensor, classes: int, *, tolerance: float) -> bool:
    """Whether labels under even masses, (N,), keep the share ``tolerance`` of the neighbour agreement that those under free masses, (N,), have."""
    return neighbour_agreement(even, near, classes) >= tolerance * neighbour_agreement(free, near, classes)


@torch.no_grad()
def information(posteriors: Tensor) -> float:
    """Share of the uncertainty about an image's class that looking at the image removes, by the posteriors' own account, in [0, 1].

    ``1 - mean_i H(p_i) / H(mean_i p_i)``: the mutual information of image and class (what Krause, Perona and Gomes, "Discriminative Clustering by
    Regularized Information Maximization", 2010, maximise) over the entropy of the classes. Posteriors that are surer than they should be raise it;
    where nearly all images are of one class, doubt about each lowers it. Rounded to 4 digits, so that the last bits of a sum decide nothing; 1 where
    there is nothing to tell apart.

    Args:
        posteriors: (N, C).
    """
    if not posteriors.numel():
        return 1.0
    total, after = posteriors.new_zeros(posteriors.shape[1], dtype=torch.float64), 0.0
    for part in posteriors.split(CHUNK):
        p = part.double()
        total += p.sum(0)
        after += torch.special.entr(p).sum().item()
    before = torch.special.entr(total / len(posteriors)).sum().item()
    return max(0.0, round(1 - after / len(posteriors) / before, 4)) if before > NOTHING else 1.0

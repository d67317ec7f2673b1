"""Which images to ask a person about: those whose answer says most about all others.

After TypiClust (Hacohen, Dekel and Weinshall, ICML 2022): few answers want typical images, one a cluster, those first that no answer speaks for.
Ours: clusters are of images averaged with their neighbours, the one nearest to a centre is asked, and as answers grow, images count by their doubt.
docs/review.md has what this is worth against other orders.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from finelens.solvers.neighbours import top_neighbours

TINY = 1e-6


@dataclass(frozen=True)
class Asked:
    """Images to ask about, the most valuable first.

    Attributes:
        rows: Positions, (n',), int64; n' < n where fewer are left that are not near-copies.
        speaks_for: Images that each answer speaks for, (n',), float64.
        covered: Whether an image of the same cluster was answered before, (n',), bool.
    """

    rows: Tensor
    speaks_for: Tensor
    covered: Tensor


@torch.no_grad()
def ask(
    looks: Tensor,
    doubt: Tensor,
    answered: Tensor,
    n: int,
    *,
    classes: int,
    neighbours: int = 5,
    copy: float = 0.97,
    bank: int = 8192,
    rounds: int = 25,
    seed: int = 0,
    chunk_size: int = 1024,
) -> Asked:
    """The n images whose answers say most about all others.

    1. At most ``bank`` images, evenly spaced, and all answered ones; each averaged with its ``neighbours`` nearest.
    2. Spherical k-means into as many clusters as there are answers and questions, begun at the answered images, then by k-means++. An image counts
       ``1 - g + g d / mean d``, d its doubt and ``g = A / (A + 4 C)`` for A answers.
    3. Clusters without an answer are asked first, heavy ones first; then the heaviest of the others. In each the image nearest to the centre, passing
       over any whose cosine with an answered or asked one is ``copy`` or more.

    Args:
        looks: Centred unit features, (N, D).
        doubt: 1 - probability of the answer of the present model, (N,).
        answered: Positions that have an answer ("none of these" included), (A,), int64.
        n: Questions, at least 1.
        classes: C.
        neighbours: k of step 1.
        copy: Cosine from which on two images are one question.
        bank: Most images that are looked at; memory beside the input is ``O(bank (D + A + n))``.
        rounds: Most rounds of k-means.
        seed: Of the draws of k-means++.
        chunk_size: Images compared at a time.
    """
    rows = _bank(len(looks), answered, bank)
    x, place = looks[rows], torch.searchsorted(rows, answered.sort().values)
    # No more clusters than images, and room for those whose images are all near-copies of an answered one.
    count = min(len(place) + n, len(x))
    smooth = _averaged(x, neighbours, chunk_size)
    share = len(answered) / (len(answered) + 4 * classes)
    weight = 1 - share + share * doubt[rows] / doubt[rows].mean().clamp_min(TINY)  # (B,)
    centres, label = _clusters(smooth, weight.to(x), count, place, rounds, torch.Generator().manual_seed(seed))
    mass = torch.zeros(len(centres), dtype=torch.float64).index_add_(0, label, weight.double())
    covered = torch.zeros(len(centres), dtype=torch.bool)
    covered[label[place]] = True
    free = torch.ones(len(x), dtype=torch.bool)
    free[place] = False
    for part in place.split(chunk_size):
        free &= (x @ x[part].T < copy).all(1)
    order = sorted(range(len(centres)), key=lambda c: (bool(covered[c]), -float(mass[c])))
    members = [(c, (label == c).nonzero()[:, 0]) for c in order]
    found: list[tuple[int, int]] = []
    # A cluster is asked again only when all others were, or have nothing left.
    while len(found) < n and bool(free.any()):
        for c, own in members:
            left = own[free[own]]
            if len(left) and len(found) < n:
                i = left[(smooth[left] @ centres[c]).argmax()]
                free &= x @ x[i] < copy
                free[i] = False
                found.append((int(i), c))
    asked, clusters = torch.tensor(found, dtype=torch.int64).reshape(-1, 2).unbind(1)
    size = torch.bincount(label, minlength=len(centres)).double() * len(looks) / len(x)
    return Asked(rows[asked], size[clusters], covered[clusters])


def _bank(total: int, answered: Tensor, most: int) -> Tensor:
    """Rising positions (B,) of the images that are looked at."""
    if total <= most:
        return torch.arange(total)
    rows: Tensor = torch.cat([torch.arange(most) * total // most, answered]).unique()
    return rows


def _averaged(x: Tensor, k: int, chunk_size: int) -> Tensor:
    """Unit rows (B, D), each averaged by half with the mean of its k nearest."""
    near = top_neighbours(x, x, k, chunk_size=chunk_size, same=True)[1]  # (B, k')
    if not near.shape[1]:
        return x
    mean = torch.zeros_like(x)
    for column in near.T:
        mean += x[column]
    unit: Tensor = F.normalize(x + mean / near.shape[1], dim=1)
    return unit


def _clusters(x: Tensor, weight: Tensor, k: int, first: Tensor, rounds: int, draw: torch.Generator) -> tuple[Tensor, Tensor]:
    """Weighted spherical k-means of unit rows (B, D): centres (k, D), and the cluster of each row, (B,)."""
    chosen = first.tolist() or [int(torch.multinomial(weight, 1, generator=draw))]
    distance = 2 - 2 * _largest_cosine(x, x[chosen])[0]
    while len(chosen) < k:
        odds = (distance.clamp_min(0) * weight).double()
        odds[chosen] = 0
        if not odds.any():
            odds = torch.ones_like(odds).index_fill(0, torch.tensor(chosen), 0.0)
        chosen.append(int(torch.multinomial(odds, 1, generator=draw)))
        distance = torch.minimum(distance, 2 - 2 * (x @ x[chosen[-1]]))
    centres = x[chosen]
    label = _largest_cosine(x, centres)[1]
    for _ in range(rounds):
        sums = torch.zeros_like(centres).index_add_(0, label, x * weight[:, None])
        centres = torch.where(sums.norm(dim=1, keepdim=True) > 0, F.normalize(sums, dim=1), centres)
        before, label = label, _largest_cosine(x, centres)[1]
        if torch.equal(before, label):
            break
    return centres, label


def _largest_cosine(x: Tensor, centres: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine with the nearest centre and which it is, (B,) each."""
    found = (x @ centres.T).max(1)
    return found.values, found.indices

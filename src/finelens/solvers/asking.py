"""Which images to ask a person about: those whose answer says most about all others.

Facility location (Cornuejols, Fisher and Nemhauser, Management Science 23, 1977): the asked and the answered images are places, and every image is
served by the one most like it. Greedy places with the lazy evaluation of Minoux (1978), then each moves to the middle of what it serves (the
alternation of k-medoids). Few answers want typical images (TypiClust, Hacohen, Dekel and Weinshall, ICML 2022), many want doubtful ones: the images
are averaged with their neighbours, and as answers grow they count by their doubt. docs/review.md has what this is worth against other orders.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from finelens.solvers.neighbours import top_neighbours

TINY = 1e-6
# Places that are valued at a time.
VALUED = 32


@dataclass(frozen=True)
class Asked:
    """Images to ask about, the most valuable first.

    Attributes:
        rows: Positions, (n',), int64; n' < n where fewer are left that are not near-copies.
        speaks_for: Images that each answer speaks for, (n',), float64.
    """

    rows: Tensor
    speaks_for: Tensor


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
    bank: int = 4096,
    rounds: int = 10,
    chunk_size: int = 1024,
) -> Asked:
    """The n images whose answers say most about all others.

    1. At most ``bank`` images, evenly spaced, and all answered ones; each averaged with its ``neighbours`` nearest.
    2. The value of a set of images is ``sum_i w_i max cosine_i``, with the member that is most like image i. ``w_i = 1 - g + g d_i / mean d``, d the
       doubt and ``g = A / (A + 4 C)`` for A answers. From the answered ones on, the image that adds most is taken next, passing over any whose
       cosine with an answered or asked one is ``copy`` or more.
    3. Each question moves to the image of greatest value among those that it is most like, ``rounds`` times. Those that speak for most come first.

    Nothing is drawn: the same images give the same questions.

    Args:
        looks: Centred unit features, (N, D).
        doubt: 1 - probability of the answer of the present model, (N,).
        answered: Positions that have an answer ("none of these" included), (A,), int64.
        n: Questions, at least 1.
        classes: C.
        neighbours: k of step 1.
        copy: Cosine from which on two images are one question.
        bank: Most images that are looked at; memory beside the input is ``O(bank (D + bank))``.
        rounds: Most rounds of step 3.
        chunk_size: Images compared at a time.
    """
    rows = _bank(len(looks), answered, bank)
    x, place = looks[rows], torch.searchsorted(rows, answered.sort().values)
    smooth = _averaged(x, neighbours, chunk_size)
    share = len(answered) / (len(answered) + 4 * classes)
    weight = 1 - share + share * doubt[rows] / doubt[rows].mean().clamp_min(TINY)  # (B,)
    likeness = smooth @ smooth.T  # (B, B)
    free = torch.ones(len(x), dtype=torch.bool)
    free[place] = False
    for part in place.split(chunk_size):
        free &= (x @ x[part].T < copy).all(1)
    given = place.tolist()
    found = _places(x, likeness, weight.to(x), given, free, n, copy, chunk_size)
    found = _moved(x, likeness, weight.to(x), given, found, copy, rounds)
    served = likeness[[*given, *found]].argmax(0) - len(given)  # (B,)
    own = served >= 0
    size = torch.zeros(len(found), dtype=torch.float64).index_add_(0, served[own], torch.ones(int(own.sum()), dtype=torch.float64))
    mass = torch.zeros_like(size).index_add_(0, served[own], weight[own].double())
    order = mass.argsort(descending=True, stable=True)
    return Asked(rows[torch.tensor(found, dtype=torch.int64)[order]], size[order] * len(looks) / len(x))


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


def _places(x: Tensor, likeness: Tensor, weight: Tensor, given: list[int], free: Tensor, n: int, copy: float, chunk_size: int) -> list[int]:
    """Step 2. What an image would add only falls as others are taken, so only those are valued anew that an old value puts first."""
    best = likeness[given].amax(0) if given else likeness.new_full((len(x),), -1.0)  # (B,)

    def added(rows: Tensor) -> Tensor:
        return (likeness[rows] - best).clamp_min_(0) @ weight

    value = torch.cat([added(part) for part in torch.arange(len(x)).split(chunk_size)])
    found: list[int] = []
    while len(found) < n and bool(free.any()):
        value[~free] = -1
        old = torch.ones(len(x), dtype=torch.bool)
        while old[i := int(value.argmax())]:
            first = value.topk(min(VALUED, len(x))).indices
            first = first[old[first] & free[first]]
            value[first], old[first] = added(first), False
        found.append(i)
        free &= x @ x[i] < copy
        free[i] = False
        best = torch.maximum(best, likeness[i])
    return found


def _moved(x: Tensor, likeness: Tensor, weight: Tensor, given: list[int], found: list[int], copy: float, rounds: int) -> list[int]:
    """Step 3; an image stays where its better place is a near-copy of another answered or asked one."""
    found = list(found)
    for _ in range(rounds):
        served, before = likeness[[*given, *found]].argmax(0) - len(given), list(found)
        for j, i in enumerate(before):
            own = (served == j).nonzero()[:, 0]
            if not len(own):
                continue
            better = int(own[(weight[own] @ likeness[own][:, own]).argmax()])
            others = [*given, *found[:j], *found[j + 1 :]]
            if better != i and not bool((x[others] @ x[better] >= copy).any()):
                found[j] = better
        if found == before:
            break
    return found

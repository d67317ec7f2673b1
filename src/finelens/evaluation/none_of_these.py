"""Whether a photograph belongs to none of the classes, without labels: scores, and a level from which it is said. Measured in docs/none_of_these.md.

Every score is (N,) and the higher, the likelier the photograph belongs to none of the classes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from finelens.core.schemas import DOUBT_DIGITS, PROBABLY_NONE
from finelens.evaluation.mixture_level import mixture_level

# Share of such photographs from which the class list is doubted.
MANY = 0.2
# Share from which on they are worth a word.
SOME = 0.01
CHUNK = 4096
# Coordinates in which the two kinds of Gaussians are held, and steps of the subspace iteration that finds them.
WIDTH, STEPS = 64, 3
# Least part of a class's weight, and of a variance.
TINY = 1e-6
# Share of the words nearest to a class name that say too much of the classes to speak against them.
TOO_NEAR = 0.05


@dataclass(frozen=True)
class NoneOfThese:
    """What a model needs to say that a photograph belongs to none of its classes.

    Attributes:
        level: Text likeness (:func:`text_likeness`) below which it probably does.
        spread: Standard deviation of the text likeness over the fit.
    """

    level: float
    spread: float

    def doubt(self, likeness: Tensor) -> Tensor:
        """Text likeness (N,) as a number in [0, 1], above ``schemas.PROBABLY_NONE`` below the level: an order and a level, no frequency."""
        return torch.sigmoid((self.level - likeness.double()) / self.spread)


@torch.no_grad()
def learn_none_of_these(averaged: Iterable[Tensor], heads: Sequence[Tensor], words: tuple[Tensor, Tensor] | None) -> tuple[NoneOfThese, Tensor]:
    """The level for a fit: the higher of two, each of which is only there where the photographs show it.

    1. As many photographs as have no class name nearer than words that mean nothing would be by chance (:func:`by_chance`) lie below it.
    2. Where the text likeness of the photographs has two parts that hardly overlap and the lower one is the smaller: where the two meet
       (:func:`finelens.evaluation.mixture_level.mixture_level`).

    Where neither is there, the level is the lowest likeness of the fit, and no photograph of it is below.

    Args:
        averaged: Features of the fit by the unadapted model, of :func:`with_neighbours`.
        heads: Class prototypes of the unadapted model, each (C, E), averaged.
        words: Class names (C, E) and made-up words (M, E) in the same sentence, unit norm; None where no text was encoded.

    Returns:
        What the model needs, and the doubt of each photograph of the fit, (N,), float64.
    """
    found: list[Tensor] = []
    chance = 0
    for part in averaged:
        found.append(text_likeness(part, heads))
        chance += 0 if words is None else int(by_chance(part, *words).sum())
    likeness = torch.cat(found).double()
    levels = [likeness.min().item()]
    if chance:
        levels.append(torch.quantile(likeness, chance / len(likeness)).item())
    meeting = mixture_level(likeness.numpy())
    levels += [] if meeting is None else [meeting]
    learned = NoneOfThese(max(levels), max(likeness.std(correction=0).item(), TINY))
    return learned, learned.doubt(likeness)


def with_neighbours(features: Tensor, bank: Tensor | None, near: Tensor | None) -> Iterator[Tensor]:
    """Features plus the mean of the nearest photographs that the model remembers: one oddly taken photograph says less than six.

    Args:
        features: Unit norm, (N, E).
        bank: Those that are remembered, (B, E); None of a few: then every photograph stands for its neighbours.
        near: Positions (N, k) of the nearest in it.

    Yields:
        (n, E) of some photographs after the other.
    """
    for rows in torch.arange(len(features)).split(CHUNK):
        x = features[rows].float().cpu()
        if bank is None or near is None:
            yield 2 * x
            continue
        mean = torch.zeros_like(x)
        for column in near[rows].T:
            mean += bank[column].float()
        yield x + mean / near.shape[1]


def text_likeness(features: Tensor, heads: Sequence[Tensor]) -> Tensor:
    """Largest product (N,) of features (N, E) with the mean of the class prototypes, each (C, E)."""
    prototypes = torch.stack([head.float().cpu() for head in heads]).mean(0)  # (C, E)
    return (features @ prototypes.T).amax(1)


def by_chance(features: Tensor, names: Tensor, made_up: Tensor) -> Tensor:
    """Which photographs (N,) have no class name that is nearer than words that mean nothing would be by chance.

    If a share r of the made-up words lie nearer than the nearest of C names, one of C such words does so with probability ``1 - (1 - r)^C``: half and
    more is chance.

    Args:
        features: Of the photographs, (N, E).
        names: Class names in a sentence, unit norm, (C, E).
        made_up: Made-up words in the same sentence, (M, E).
    """
    best = (features @ names.float().T).amax(1, keepdim=True)  # (N, 1)
    nearer = (features @ made_up.float().T > best).double().mean(1)
    return 1 - (1 - nearer) ** len(names) >= 0.5


def unsure(probabilities: Tensor) -> Tensor:
    """1 minus the largest of the probabilities (N, C): maximal softmax probability (Hendrycks and Gimpel, 2017)."""
    return 1 - probabilities.amax(1)


def unlike_texts(features: Tensor, heads: Sequence[Tensor]) -> Tensor:
    """Minus the text likeness of features (N, E): maximal cosine, without the softmax that hides how near the nearest text is."""
    return -text_likeness(features, heads)


def negative_texts(features: Tensor, names: Tensor, others: Tensor, scale: float) -> Tensor:
    """Probability of words that are no class beside the class names (NegLabel, Jiang et al., 2024, eq. 5, without its grouping).

    Args:
        features: Of the photographs, unit norm, (N, E).
        names: Class names in a sentence, unit norm, (C, E).
        others: Other words in the same sentence, (M, E); those nearest to a class name are left out.
        scale: Multiplier of cosines.
    """
    near = (others @ names.T).amax(1)
    kept = others[near <= torch.quantile(near, 1 - TOO_NEAR)]
    logits = scale * features @ torch.cat([names, kept]).T  # (N, C + M')
    inside: Tensor = logits.softmax(1)[:, : len(names)].sum(1)
    return 1 - inside


def gaussian_contrast(features: Tensor, fit: Tensor, posteriors: Tensor) -> Tensor:
    """Minus the largest contrast of two Gaussians a class: of the photographs taken as the class, and of all others (dual-density estimation).

    Diagonal Gaussians in the coordinates along which the photographs of the fit differ most; the first share one variance, of the second each has
    its own.

    Args:
        features: Of the photographs asked about, (N, E).
        fit: Of the photographs of the fit, (M, E).
        posteriors: Of the fit, (M, C).
    """
    x, p = fit.double(), posteriors.double()
    mean = x.mean(0)
    generator = torch.Generator().manual_seed(0)
    basis = torch.randn(x.shape[1], min(WIDTH, *x.shape), generator=generator, dtype=torch.float64)
    for _ in range(STEPS):
        basis = torch.linalg.qr((x - mean).T @ ((x - mean) @ basis)).Q  # (E, W)
    a, b = (x - mean) @ basis, (features.double() - mean) @ basis
    mass = p.sum(0)[:, None] + TINY  # (C, 1)
    within, without = (p.T @ a) / mass, ((1 - p).T @ a) / (len(a) - mass + 2 * TINY)  # (C, W)
    shared = ((p.T @ a.square()).sum(0) - (mass * within.square()).sum(0)) / len(a)  # (W,)
    rest = ((1 - p).T @ a.square()) / (len(a) - mass + 2 * TINY) - without.square()  # (C, W)
    contrast = _log_density(b, within, shared.clamp_min(TINY).expand_as(within)) - _log_density(b, without, rest.clamp_min(TINY))
    return -contrast.amax(1)


def _log_density(x: Tensor, means: Tensor, variances: Tensor) -> Tensor:
    """Logarithms (N, C), up to a constant, of diagonal Gaussians (C, W)."""
    precision = 1 / variances
    square = x.square() @ precision.T - 2 * x @ (means * precision).T + (means.square() * precision).sum(1)
    return -0.5 * (square + variances.log().sum(1))


def probably_none(doubt: ArrayLike) -> np.ndarray:
    """Which photographs (N,) probably belong to no class: as predictions.csv rounds their doubt, so that every count is that of its rows."""
    return np.asarray(np.round(np.asarray(doubt, dtype=np.float64), DOUBT_DIGITS) > PROBABLY_NONE)


def share_of_none(doubt: ArrayLike) -> float | None:
    """Share of photographs that probably belong to none of the classes; None of no photograph."""
    found = probably_none(doubt)
    return round(float(found.mean()), 4) if len(found) else None


def remark(count: int, total: int) -> str:
    """One line about photographs that probably belong to none of the classes."""
    photographs, belong = "photograph" if total == 1 else "photographs", "belongs" if count == 1 else "belong"
    return f"{count} of {total} {photographs} probably {belong} to none of the classes (column none_of_these above {PROBABLY_NONE})"


def complaint(count: int, total: int) -> str | None:
    """The line where they are so many that the class list is to be doubted; None elsewhere."""
    if not count or count < MANY * total:
        return None
    return f"{remark(count, total)}: check whether the class list fits these photographs, or add the classes that it lacks"

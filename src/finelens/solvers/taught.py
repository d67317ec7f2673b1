"""What a person's answers teach: a thin layer over label-free log-posteriors. Ours; docs/review.md has what it is worth.

Where the parts come from: EM begun at labelled examples (Nigam, McCallum, Thrun and Mitchell, Machine Learning 39, 2000), a ridge head on its
posteriors, and the weight of an expert by its log-odds (Nitzan and Paroush, International Economic Review 23, 1982).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from finelens.solvers.assignments import centred
from finelens.solvers.known import Known
from finelens.solvers.neighbours import evenly_spread
from finelens.solvers.ridge import ridge_head

TINY = 1e-9
# Temperatures of the label-free posterior that are tried.
TEMPERATURES = torch.logspace(math.log10(0.02), math.log10(4), 40, dtype=torch.float64).tolist()
# Stands in for the answers of a class that has none.
FAINT = 1e-6


@dataclass(frozen=True)
class Taught:
    """A linear head and its say beside the label-free posterior.

    Attributes:
        head: (D, C), float64.
        bias: (C,), float64.
        scales: Root mean squares over the fit of the head's logits and of the log-posteriors, centred over the classes, and the weight of the second
            beside the first; (3,), float64.
    """

    head: Tensor
    bias: Tensor
    scales: Tensor

    def logits(self, looks: Tensor, log_p: Tensor) -> Tensor:
        """Mean (M, C) of the head's logits and the log-posteriors, each over its size, by weight.

        Args:
            looks: Centred unit views, (M, D), or the first alone.
            log_p: Label-free log-posteriors, (M, C).
        """
        own, other, text = self.scales.to(looks)
        seen = looks @ self.head[: looks.shape[1]].to(looks) + self.bias.to(looks)
        mean: Tensor = (centred(seen) / own + text * centred(log_p) / other) / (1 + text)
        return mean


def teach(
    looks: Tensor,
    log_p: Tensor,
    known: Known,
    *,
    sharpness: float = 20.0,
    rounds: int = 3,
    weight: float = 10.0,
    share: float = 0.8,
    ridge: float = 0.3,
    steps: int = 12,
    bank: int = 8192,
    chunk_size: int = 1024,
) -> Taught:
    """Learn from answers.

    1. The label-free posterior p is tempered to what explains the answers best: ``t = argmax sum_i log softmax(t log p_i)_y - (log t)^2 / 4``.
    2. Prototypes begin at the answers. ``rounds`` of ``z = softmax(t log p + sharpness x M^T)`` with answers one-hot, and of unit means M of z in
       which each answer counts ``weight`` more.
    3. A ridge head learns z. An image counts ``max z`` squared; answers together have ``share`` of all.
    4. The label-free posterior keeps the weight ``2 a^4 r^8`` beside the head: a its accuracy on the answers, and r, at most 2, the ratio of its
       log-odds to those of the answers' prototypes, leaving one answer out; both accuracies are shrunk.

    Args:
        looks: Centred unit views, (N, D).
        log_p: Label-free log-posteriors, (N, C).
        known: The answers, at least one.
        sharpness: Of cosines with prototypes.
        rounds: Rounds of step 2.
        weight: Of an answer in the means.
        share: Of the answers in the head.
        ridge: Penalty of the head, see :func:`~finelens.solvers.ridge.ridge_head`.
        steps: Of conjugate gradients for the head.
        bank: Most images without an answer that are used, evenly spaced.
        chunk_size: Images in work at a time.
    """
    n, classes = log_p.shape
    labels, order = known.labels[(by_row := known.rows.argsort())], known.rows[by_row]
    rows = torch.arange(n, device=looks.device) if n <= bank else torch.cat([evenly_spread(n, bank, looks.device), order]).unique()
    x, log_p, at = looks[rows], log_p[rows].to(looks), torch.searchsorted(rows, order)
    truth = F.one_hot(labels, classes).to(x)
    sums = truth.T @ x[at]  # (C, D)
    z = _posteriors(
        x, _temperature(log_p[at], labels) * log_p, F.normalize(log_p.softmax(1).T @ x, dim=1), at, truth, sums, sharpness, rounds, weight
    )
    counts = z.amax(1).square()
    counts[at] = 0
    counts[at] = max(1.0, share / (1 - share) * float(counts.sum()) / len(at))
    counts /= counts.mean()
    head, bias = ridge_head(x, z, penalty=ridge, steps=steps, chunk_size=chunk_size, counts=counts)
    # The head says how an image differs from the mean; what the mean has comes here.
    bias = bias + (counts[:, None] * z).mean(0, dtype=torch.float64)
    sizes = [_size(x @ head.to(x) + bias.to(x)), _size(log_p)]
    return Taught(head, bias, torch.tensor([*sizes, _text_weight(x[at], log_p[at], labels, sums)], dtype=torch.float64, device=x.device))


def left_out(looks: Tensor, log_p: Tensor, known: Known, *, folds: int = 5, seed: int = 0, **options: Any) -> Tensor:
    """The class (K,) that each answered image gets from a model that has learnt the other answers, all but a part that holds its own.

    Args:
        looks: As for :func:`teach`, like the options.
        log_p: See there.
        known: At least two answers.
        folds: Parts, each left out once; as many as answers where those are fewer.
        seed: Of the parts.
        **options: Further arguments of :func:`teach`.
    """
    count = len(known)
    part = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).to(known.rows.device) % min(folds, count)
    guesses = torch.empty_like(known.labels)
    for fold in range(min(folds, count)):
        own = part == fold
        taught = teach(looks, log_p, Known(known.rows[~own], known.labels[~own]), **options)
        rows = known.rows[own]
        guesses[own] = taught.logits(looks[rows], log_p[rows].to(looks)).argmax(1)
    return guesses


def _posteriors(
    x: Tensor, log_p: Tensor, named: Tensor, at: Tensor, truth: Tensor, sums: Tensor, sharpness: float, rounds: int, weight: float
) -> Tensor:
    """Posteriors z (B, C) of step 2.

    Args:
        x: (B, D).
        log_p: Tempered, (B, C).
        named: Prototypes that the label-free posterior makes, (C, D), for classes without an answer.
        at: Rows with an answer, (K,).
        truth: One-hot answers, (K, C).
        sums: Of the answered rows by class, (C, D).
        sharpness: As for :func:`teach`, like the two below.
        rounds: See there.
        weight: See there.
    """
    means = F.normalize(sums + FAINT * named, dim=1)
    for step in range(rounds + 1):
        z = torch.addmm(log_p, x, means.T, alpha=sharpness).softmax(1)
        z[at] = truth
        if step < rounds:
            means = F.normalize(z.T @ x + weight * sums + FAINT * named, dim=1)
    return z


def _temperature(log_p: Tensor, labels: Tensor) -> float:
    """What multiplies the log-posteriors (K, C) of answered images so that they explain the answers best, with a weak prior at 1."""

    def value(t: float) -> float:
        return float((t * log_p).log_softmax(1).gather(1, labels[:, None]).sum()) - math.log(t) ** 2 / 4

    best: float = max(TEMPERATURES, key=value)
    return best


def _text_weight(x: Tensor, log_p: Tensor, labels: Tensor, sums: Tensor) -> float:
    """Weight of the label-free posterior beside the head, of step 4."""
    text, image = _believed(x, log_p, labels, sums)
    ratio = min(_log_odds(text, len(sums)) / max(_log_odds(image, len(sums)), 0.3), 2.0)
    weight: float = 2 * text**4 * ratio**8
    return weight


def _believed(x: Tensor, log_p: Tensor, labels: Tensor, sums: Tensor) -> tuple[float, float]:
    """Shrunk accuracies on the answers: of the label-free posterior, and of prototypes without the answer itself where its class has another."""
    text = (float((log_p.argmax(1) == labels).sum()) + 2) / (len(labels) + 4)
    number = torch.bincount(labels, minlength=len(sums))
    cosine = (x @ F.normalize(sums, dim=1).T).masked_fill(number == 0, -2)  # (K, C)
    several = number[labels] > 1
    own = (x * F.normalize(sums[labels] - x, dim=1)).sum(1)
    cosine[torch.arange(len(x), device=x.device), labels] = own.where(several, torch.full_like(own, -2))
    right = float((several & (cosine.argmax(1) == labels)).sum())
    return text, (right + 10 * text) / (float(several.sum()) + 10)


def _log_odds(accuracy: float, classes: int) -> float:
    """How much better than chance among as many classes, at least 0."""
    return max(0.0, math.log(max(accuracy, 1e-3) * max(classes - 1, 1) / max(1 - accuracy, 0.02)))


def _size(logits: Tensor) -> float:
    return float(centred(logits).square().mean(dtype=torch.float64).sqrt().clamp_min(TINY))

"""What a person's answers teach: a thin layer over label-free log-posteriors. Ours; docs/review.md has what it is worth.

Where the parts come from: EM begun at labelled examples (Nigam, McCallum, Thrun and Mitchell, Machine Learning 39, 2000), and a ridge head on its
posteriors.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from finelens.solvers.answered_masses import answered_masses
from finelens.solvers.assignments import centred
from finelens.solvers.known import Known
from finelens.solvers.neighbours import evenly_spread, smoothed, top_neighbours
from finelens.solvers.ridge import ridge_head
from finelens.solvers.sinkhorn import balance

TINY = 1e-9
# Nearest images that each image is averaged with before anything is learnt of it, and what their mean counts beside it.
NEAREST, NEAREST_SHARE = 2, 0.5
# Of a ``Taught``.
SCALES = 3
# Temperatures of the label-free posterior that are tried.
TEMPERATURES = torch.logspace(math.log10(0.02), math.log10(4), 40, dtype=torch.float64).tolist()
# Stands in for the answers of a class that has none.
FAINT = 1e-6
# Most Sinkhorn steps of a round of EM, which goes on from the potentials of the last, and how near to their masses classes must come.
BALANCE_STEPS, BALANCED = 20, 0.01
# Answers at which head and label-free posterior are expected to weigh alike.
ENOUGH_ANSWERS = 32
# Weights of the second that are tried, and what holds them to the expected one.
WEIGHTS = (0.0, 0.03, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0, 8.0)
FIRMNESS, LEAST_WEIGHT = 0.6, 0.05
# Parts of the answers that are left out in turn, and images without an answer that the heads of these trials learn from.
FOLDS, FOLD_BANK = 4, 512
# Accuracy beyond chance of the label-free posterior up to which it is not heard beside the head, and from which on it is in full.
UNHEARD, HEARD = 0.36, 0.46
# Before any answer its accuracy is believed to be this share of its confidence, as firmly as so many answers would say it.
KEPT_CONFIDENCE, PRIOR_ANSWERS = 0.7, 10


@dataclass(frozen=True)
class Taught:
    """A linear head and its say beside the label-free posterior.

    Attributes:
        head: (D, C), float64.
        bias: (C,), float64.
        scales: Root mean squares over the fit of the head's logits and of the log-posteriors, centred over the classes, and the weight of the second
            beside the first; (:data:`SCALES`,), float64.
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


def steadied(looks: Tensor, keys: Tensor, near: Tensor, widths: Sequence[int]) -> Tensor:
    """Centred unit views that lean on their nearest images: ``unit(x_i + (x_j + x_k) / 4)`` in every view, j and k the two nearest.

    What sets one photograph apart from those like it is mostly no matter of its class. Learner and answers see all images like this.

    Args:
        looks: Centred unit views, (M, D_1 + ... + D_V) or the first alone.
        keys: The same of the images that neighbours are among, (N, D_1 + ... + D_V).
        near: Their positions, the nearest first, (M, k); with k = 0 nothing is changed.
        widths: D_1 to D_V.
    """
    if not near.shape[1]:
        return looks
    return smoothed(looks, keys, near[:, :NEAREST], widths, NEAREST_SHARE) / math.sqrt(len(widths))


def steady(looks: Tensor, keys: Tensor, widths: Sequence[int], *, rows: Tensor | None = None, chunk_size: int = 1024) -> Tensor:
    """:func:`steadied` with the images that are nearest by the mean cosine of all views.

    Args:
        looks: Centred unit views, (M, D_1 + ... + D_V) or the first alone.
        keys: The same of the images that neighbours are among, in the same columns, (N, D).
        widths: D_1 to D_V.
        rows: Positions (N,) of the keys among the looks, rising, where they are some of them.
        chunk_size: Images compared at a time.
    """
    return steadied(looks, keys, top_neighbours(looks, keys, NEAREST, chunk_size=chunk_size, rows=rows)[1], widths)


def teach(
    looks: Tensor,
    log_p: Tensor,
    known: Known,
    *,
    heard: bool = True,
    sharpness: float = 20.0,
    rounds: int = 3,
    weight: float = 30.0,
    share: float = 0.8,
    ridge: float = 0.3,
    steps: int = 12,
    bank: int = 8192,
    chunk_size: int = 1024,
) -> Taught:
    """Learn from answers.

    1. The label-free posterior p is tempered to what explains the answers best: ``t = argmax sum_i log softmax(t log p_i)_y - (log t)^2 / 4``.
    2. Prototypes begin at the answers. ``rounds`` of ``z = softmax(t log p + sharpness x M^T + b)`` with answers one-hot, and of unit means M of z in
       which each answer counts ``weight`` more. b (C,) brings the classes to the masses that the answers say
       (:func:`~finelens.solvers.answered_masses.answered_masses`; Sinkhorn).
    3. A ridge head learns z. An image counts ``max z`` squared; answers together have ``share`` of all.
    4. The label-free posterior keeps a weight beside the head. Without a look at heads it would be ``w = min(8, (32 / K)^3) u``, K the answers: few
       of them teach little, and it is what is known without. u rises from 0 to 1 while its accuracy a on the answers goes from 0.36 to 0.46: shrunk
       to 0.7 of its confidence as by ten answers, and with chance taken out, ``(a - 1/C) / (1 - 1/C)``. Each answer is then put to a head that has
       learnt three quarters of the answers and not this one: the weight is the one with most of them right, less 0.6 for the squared logarithm of its
       ratio to w, 0.05 added to both.

    Args:
        looks: Centred unit views, (N, D).
        log_p: Label-free log-posteriors, (N, C).
        known: The answers, at least one.
        heard: Whether the label-free posterior may be heard beside the head: not where it cannot know all classes.
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
    by_row = known.rows.argsort()
    labels, order, look = known.labels[by_row], known.rows[by_row], known.by_look()[by_row]

    def images(some: Tensor, most: int) -> Tensor:
        """Rising positions of those that are learnt from with some of the answers."""
        return torch.arange(n, device=looks.device) if n <= most else torch.cat([evenly_spread(n, most, looks.device), order[some]]).unique()

    def learn(some: Tensor, rows: Tensor, x: Tensor) -> tuple[Tensor, Tensor, float]:
        """Head, its bias and the size of its logits, of some of the answers and the features x of the images at ``rows``."""
        p, at, own = log_p[rows].to(looks), torch.searchsorted(rows, order[some]), labels[some]
        learnt = Known(at, own)
        masses = answered_masses(own, spoken_for(x, learnt, chunk_size=chunk_size), look[some].unique(return_inverse=True)[1], classes)
        named = F.normalize(p.softmax(1).T @ x, dim=1)
        z = _posteriors(x, _temperature(p[at], own) * p, named, learnt, masses, sharpness, rounds, weight, chunk_size)
        counts = z.amax(1).square()
        counts[at] = 0
        counts[at] = max(1.0, share / (1 - share) * float(counts.sum()) / len(at))
        counts /= counts.mean()
        head, bias = ridge_head(x, z, penalty=ridge, steps=steps, chunk_size=chunk_size, counts=counts)
        # The head says how an image differs from the mean; what the mean has comes here.
        bias = bias + (counts[:, None] * z).mean(0, dtype=torch.float64)
        return head, bias, _size(x @ head.to(x) + bias.to(x))

    everybody = torch.arange(len(labels), device=labels.device)
    rows = images(everybody, bank)
    head, bias, size = learn(everybody, rows, looks[rows])
    other = _size(log_p)
    text = _expected_weight(log_p, order, labels) if heard else 0.0
    if heard and len(labels) >= FOLDS:
        seen = looks.new_empty(len(labels), classes)
        part, rows = everybody % FOLDS, images(everybody, FOLD_BANK)
        x = _in_own_basis(looks[rows])
        for fold in range(FOLDS):
            kept = everybody[part != fold]
            some = images(kept, FOLD_BANK)
            trial, offset, own = learn(kept, some, x[torch.searchsorted(rows, some)])
            left = x[torch.searchsorted(rows, order[part == fold])]
            seen[part == fold] = centred(left @ trial.to(looks) + offset.to(looks)) / own
        text = _tested_weight(seen, centred(log_p[order].to(looks)) / other, labels, text)
    return Taught(head, bias, torch.tensor([size, other, text], dtype=torch.float64, device=looks.device))


def left_out(looks: Tensor, log_p: Tensor, known: Known, **options: Any) -> tuple[Tensor, Tensor]:
    """What :func:`parts_left_out` gives for all answers, in their order: classes (K,) and shares (K,); arguments as there."""
    guesses, changed = torch.empty_like(known.labels), torch.zeros(len(known), dtype=torch.float64, device=known.labels.device)
    for own, found, share in parts_left_out(looks, log_p, known, **options):
        guesses[own], changed[own] = found, share
    return guesses, changed


def parts_left_out(
    looks: Tensor,
    log_p: Tensor,
    known: Known,
    *,
    taught: Taught | None = None,
    folds: int = 10,
    seed: int = 0,
    bank: int = 8192,
    chunk_size: int = 1024,
    **options: Any,
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """The answers part by part, as positions among them, and what a model that has learnt all other parts says.

    That is the class of each, and of the images without an answer that each speaks for the share to which it gives another class than the model that
    has learnt all answers: it has no answer near them.

    What was named at one look is in one part: photographs of a group are like one another, and the others' answers would give theirs away.

    Args:
        looks: As for :func:`teach`, like the options.
        log_p: See there.
        known: Answers of at least two looks.
        taught: What all answers teach; made here where it is not given.
        folds: Parts, each left out once; as many as looks where those are fewer.
        seed: Of the parts.
        bank: As for :func:`teach`; of so many images the shares are.
        chunk_size: See there.
        **options: Further arguments of :func:`teach`.
    """
    options |= {"bank": bank, "chunk_size": chunk_size}
    taught = teach(looks, log_p, known, **options) if taught is None else taught
    look = known.by_look()
    parts = min(folds, known.looks)
    part = (torch.randperm(known.looks, generator=torch.Generator().manual_seed(seed)).to(look.device) % parts)[look]
    rest = evenly_spread(len(looks), bank, looks.device)
    rest = rest[~torch.isin(rest, known.rows)]
    speaker = _nearest_answer(looks[rest], looks[known.rows], chunk_size)  # (R,)
    for fold in range(parts):
        own = part == fold
        rows, near = known.rows[own], rest[own[speaker]]
        trial, at = teach(looks, log_p, known.some(~own), **options), torch.cat([rows, near])
        x, p = looks[at], log_p[at].to(looks)
        found = trial.logits(x, p).argmax(1)
        changes = (found[len(rows) :] != taught.logits(x[len(rows) :], p[len(rows) :]).argmax(1)).double()
        spoken, changed = (changes.new_zeros(len(known)).index_add_(0, speaker[own[speaker]], one) for one in (torch.ones_like(changes), changes))
        yield own.nonzero()[:, 0], found[: len(rows)], (changed / spoken.clamp_min(1))[own]


def _nearest_answer(looks: Tensor, answered: Tensor, chunk_size: int) -> Tensor:
    """The answered image (K, D) that is nearest to each image (M, D), (M,), int64."""
    return torch.cat([(part @ answered.T).argmax(1) for part in looks.split(chunk_size)])


def spoken_for(looks: Tensor, known: Known, *, chunk_size: int = 1024) -> Tensor:
    """Images that are nearest to each of the answered ones, itself among them, (K,), float64.

    Args:
        looks: As for :func:`teach`.
        known: At least one answer.
        chunk_size: Images compared at a time.
    """
    return torch.bincount(_nearest_answer(looks, looks[known.rows], chunk_size), minlength=len(known)).double().clamp_min(1)


def _in_own_basis(x: Tensor) -> Tensor:
    """Rows (B, D) in an orthonormal basis of what they span: all cosines and what linear heads say of them stay, columns are B at most."""
    return x if x.shape[1] <= len(x) else x @ torch.linalg.qr(x.T).Q


def _posteriors(
    x: Tensor, log_p: Tensor, named: Tensor, known: Known, masses: Tensor, sharpness: float, rounds: int, weight: float, chunk_size: int
) -> Tensor:
    """Posteriors z (B, C) of step 2.

    Args:
        x: (B, D).
        log_p: Tempered, (B, C).
        named: Prototypes that the label-free posterior makes, (C, D), for classes without an answer.
        known: The answers among these rows.
        masses: Of the classes, (C,), float64.
        sharpness: As for :func:`teach`, like the three below.
        rounds: See there.
        weight: See there.
        chunk_size: See there.
    """
    truth = F.one_hot(known.labels, len(masses)).to(x)  # (K, C)
    sums = truth.T @ x[known.rows]  # (C, D)
    means = F.normalize(sums + FAINT * named, dim=1)
    potentials = torch.zeros_like(masses)
    for step in range(rounds + 1):
        logits = torch.addmm(log_p, x, means.T, alpha=sharpness)  # (B, C)
        potentials, _ = balance(logits, masses, known, max_iter=BALANCE_STEPS, tol=BALANCED, chunk_size=chunk_size, start=potentials)
        z = (logits + potentials.to(x)).softmax(1)
        z[known.rows] = truth
        if step < rounds:
            means = F.normalize(z.T @ x + weight * sums + FAINT * named, dim=1)
    return z


def _temperature(log_p: Tensor, labels: Tensor) -> float:
    """What multiplies the log-posteriors (K, C) of answered images so that they explain the answers best, with a weak prior at 1."""

    def value(t: float) -> float:
        return float((t * log_p).log_softmax(1).gather(1, labels[:, None]).sum()) - math.log(t) ** 2 / 4

    best: float = max(TEMPERATURES, key=value)
    return best


def _expected_weight(log_p: Tensor, at: Tensor, labels: Tensor) -> float:
    """w of step 4."""
    confidence = float(log_p.softmax(1).amax(1).mean(dtype=torch.float64))
    right = float((log_p[at].argmax(1) == labels).sum())
    accuracy = (right + PRIOR_ANSWERS * KEPT_CONFIDENCE * confidence) / (len(labels) + PRIOR_ANSWERS)
    chance = 1 / log_p.shape[1]
    beyond = (accuracy - chance) / max(1 - chance, TINY)
    believed = min(max((beyond - UNHEARD) / (HEARD - UNHEARD), 0.0), 1.0)
    return min(WEIGHTS[-1], (ENOUGH_ANSWERS / len(labels)) ** 3) * believed


def _tested_weight(seen: Tensor, text: Tensor, labels: Tensor, expected: float) -> float:
    """The weight of step 4: of logits (K, C) of the label-free posterior beside those of heads that had not learnt the answer, both of size 1."""

    def value(weight: float) -> float:
        right = float(((seen + weight * text).argmax(1) == labels).sum())
        return right - FIRMNESS * math.log((weight + LEAST_WEIGHT) / (expected + LEAST_WEIGHT)) ** 2

    # The expected weight itself is first, so that it stays where the answers say nothing.
    best: float = max((expected, *WEIGHTS), key=value)
    return best


def _size(logits: Tensor) -> float:
    return float(centred(logits).square().mean(dtype=torch.float64).sqrt().clamp_min(TINY))

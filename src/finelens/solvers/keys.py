"""Key-value caches: images vote for classes by their likeness to keys of a known or presumed class (Zhang et al.: "Tip-Adapter", ECCV 2022).

Published caches have a residual weight alpha and a sharpness beta that were searched on labelled images of each data set, at CLIP's logit scale. Here
both follow from the features: distances ``1 - cos`` are measured in their mean, and votes get the standard deviation of the text logits.
"""

from __future__ import annotations

import torch
from torch import Tensor

from finelens.solvers.chunks import chunks

TINY = 1e-12
# Keys times classes from which on a product with classes one-hot costs more than that of images and keys.
MANY = 1 << 21


def sharpness_rate(x: Tensor, keys: Tensor, sharpness: float) -> Tensor:
    """``beta = sharpness / mean distance`` of the images (N, D) and keys (M, D), float64: invariant to how far a model spreads its features."""
    return sharpness_of_mean(x.double().mean(0), keys, sharpness)


def sharpness_of_mean(mean: Tensor, keys: Tensor, sharpness: float) -> Tensor:
    """The same from the mean of the images, (D,), float64."""
    distance = 1 - mean @ keys.double().mean(0) if len(keys) else mean.new_ones(())
    return sharpness / distance.clamp_min(1e-6)


def affinities(x: Tensor, keys: Tensor, beta: Tensor) -> Tensor:
    """``exp(-beta (1 - x K^T))``, (N, M)."""
    return (beta.to(x) * (x @ keys.T - 1)).exp()


def one_hot(labels: Tensor, classes: int, like: Tensor) -> Tensor:
    """Values of the keys, (M, C), in the type of ``like``."""
    values = like.new_zeros(len(labels), classes)
    values[torch.arange(len(labels), device=like.device), labels] = 1
    return values


def class_votes(affinity: Tensor, values: Tensor, own: Tensor | None = None) -> Tensor:
    """Mean affinity with the keys of each class, (N, C): votes do not grow with a class's number of keys.

    A class without keys gets the mean vote of the others; the cache then says nothing about it.

    Args:
        affinity: (N, M).
        values: One-hot classes of the keys, (M, C).
        own: Key that is the image itself, (N,), or -1; it does not vote.
    """
    counts = values.sum(0).expand(affinity.shape[0], -1)  # (N, C)
    if own is not None:
        at = (own >= 0).nonzero()[:, 0]
        affinity = affinity.clone()
        affinity[at, own[at]] = 0
        counts = counts.clone()
        counts[at] -= values[own[at]]
    present = counts > 0
    votes = affinity @ values / counts.clamp_min(1)  # (N, C)
    mean = (votes * present).sum(1, keepdim=True) / present.sum(1, keepdim=True).clamp_min(1)
    return votes.where(present, mean)


def own_keys(rows: Tensor, first: int, count: int) -> Tensor:
    """Key that each of ``count`` images is itself, counted from image ``first``, or -1; (count,), of keys that were made of images ``rows`` (M,)."""
    own = torch.full((count,), -1, device=rows.device)
    here = ((rows >= first) & (rows < first + count)).nonzero()[:, 0]
    own[rows[here] - first] = here
    return own


def own_among(rows: Tensor, positions: Tensor) -> Tensor:
    """The same of images at any positions (n,)."""
    if not len(rows):
        return torch.full_like(positions, -1)
    order = rows.argsort()
    found = order[torch.searchsorted(rows[order], positions).clamp_max(len(order) - 1)]
    return found.where(rows[found] == positions, torch.full_like(found, -1))


def cache_votes(x: Tensor, keys: Tensor, labels: Tensor, beta: Tensor, classes: int, *, chunk_size: int, own: Tensor | None = None) -> Tensor:
    """Votes (N, C) of keys (M, D) of classes ``labels`` (M,), a part of the images at a time.

    Args:
        x: Unit rows (N, D).
        keys: Unit rows (M, D).
        labels: Class of each key, (M,).
        beta: Rate of the affinity.
        classes: C.
        chunk_size: Images in work at a time.
        own: Key that is the image itself, (N,), or -1; it does not vote.
    """
    if len(keys) * classes >= MANY:
        return torch.cat(
            [_summed_votes(x[at], keys, labels, beta, classes, None if own is None else own[at]) for at in chunks(x.shape[0], chunk_size)]
        )
    values = one_hot(labels, classes, x)
    parts = []
    for chunk in chunks(x.shape[0], chunk_size):
        affinity = affinities(x[chunk], keys, beta)  # (chunk, M)
        parts.append(class_votes(affinity, values, None if own is None else own[chunk]))
    return torch.cat(parts)


def _summed_votes(x: Tensor, keys: Tensor, labels: Tensor, beta: Tensor, classes: int, own: Tensor | None) -> Tensor:
    """What ``class_votes`` says of ``affinities``, (n, C), by sums of rows in the place of a product with classes one-hot."""
    affinity = (keys @ x.T).sub_(1).mul_(beta.to(x)).exp_()  # (M, n)
    counts = torch.bincount(labels, minlength=classes).to(x)[:, None].expand(-1, x.shape[0])  # (C, n)
    if own is not None:
        at = (own >= 0).nonzero()[:, 0]
        affinity[own[at], at] = 0
        counts = counts.clone()
        counts[labels[own[at]], at] -= 1
    present = counts > 0
    votes = affinity.new_zeros(classes, x.shape[0]).index_add_(0, labels, affinity) / counts.clamp_min(1)
    mean = (votes * present).sum(0) / present.sum(0).clamp_min(1)
    return votes.where(present, mean).T


def confident_rows(logits: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Rows of the ``count`` largest posteriors among the images that each class is the answer for, and their classes; both (M,), by class.

    Args:
        logits: (N, C).
        count: Most rows of a class.
    """
    return surest_rows(*logits.log_softmax(1).max(1), count)


def surest_rows(confidence: Tensor, answer: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The same of the largest posterior of each image, (N,), and the class that has it, (N,)."""
    order, answer = confidence.argsort(descending=True, stable=True), answer.long()
    order = order[answer[order].argsort(stable=True)]  # by class, then by confidence
    labels = answer[order]
    first = torch.searchsorted(labels, labels)  # (N,) where each class begins
    kept = torch.arange(len(order), device=answer.device) - first < count
    return order[kept], labels[kept]


def centred_square(logits: Tensor) -> Tensor:
    """Sum of squares after centring over the classes, which a softmax does not see; float64."""
    return (logits - logits.mean(-1, keepdim=True)).square().sum(dtype=torch.float64)


def matching_weight(text_square: Tensor, votes_square: Tensor) -> Tensor:
    """Weight that gives votes the standard deviation of the text logits; 0 for votes that say nothing."""
    return torch.where(votes_square > TINY, (text_square / votes_square.clamp_min(TINY)).sqrt(), 0.0)

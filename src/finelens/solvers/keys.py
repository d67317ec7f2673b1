"""Key-value caches: images vote for classes by their likeness to keys of a known or presumed class (Zhang et al.: "Tip-Adapter", ECCV 2022).

Published caches have a residual weight alpha and a sharpness beta that were searched on labelled images of each data set, at CLIP's logit scale. Here
both follow from the features: distances ``1 - cos`` are measured in their mean, and votes get the standard deviation of the text logits.
"""

from __future__ import annotations

import torch
from torch import Tensor

from finelens.solvers.chunks import chunks

TINY = 1e-12


def sharpness_rate(x: Tensor, keys: Tensor, sharpness: float) -> Tensor:
    """``beta = sharpness / mean distance`` of the images (N, D) and keys (M, D), float64: invariant to how far a model spreads its features."""
    distance = 1 - x.double().mean(0) @ keys.double().mean(0) if len(keys) else x.new_ones((), dtype=torch.float64)
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


def cache_votes(x: Tensor, keys: Tensor, labels: Tensor, beta: Tensor, classes: int, *, chunk_size: int, rows: Tensor | None = None) -> Tensor:
    """Votes (N, C) of keys (M, D) of classes ``labels`` (M,), a part of the images at a time.

    Args:
        x: Unit rows (N, D).
        keys: Unit rows (M, D).
        labels: Class of each key, (M,).
        beta: Rate of the affinity.
        classes: C.
        chunk_size: Images in work at a time.
        rows: Those of x that the keys were made of, (M,), which do not vote for themselves.
    """
    values = one_hot(labels, classes, x)
    own = None
    if rows is not None:
        own = torch.full((len(x),), -1, device=x.device)
        own[rows] = torch.arange(len(rows), device=x.device)
    parts = []
    for chunk in chunks(x.shape[0], chunk_size):
        affinity = affinities(x[chunk], keys, beta)  # (chunk, M)
        parts.append(class_votes(affinity, values, None if own is None else own[chunk]))
    return torch.cat(parts)


def confident_rows(logits: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Rows of the ``count`` largest posteriors among the images that each class is the answer for, and their classes; both (M,), by class.

    Args:
        logits: (N, C).
        count: Most rows of a class.
    """
    confidence, answer = logits.log_softmax(1).max(1)
    order = confidence.argsort(descending=True, stable=True)
    order = order[answer[order].argsort(stable=True)]  # by class, then by confidence
    labels = answer[order]
    first = torch.searchsorted(labels, labels)  # (N,) where each class begins
    kept = torch.arange(len(order), device=logits.device) - first < count
    return order[kept], labels[kept]


def centred_square(logits: Tensor) -> Tensor:
    """Sum of squares after centring over the classes, which a softmax does not see; float64."""
    return (logits - logits.mean(-1, keepdim=True)).square().sum(dtype=torch.float64)


def matching_weight(text_square: Tensor, votes_square: Tensor) -> Tensor:
    """Weight that gives votes the standard deviation of the text logits; 0 for votes that say nothing."""
    return torch.where(votes_square > TINY, (text_square / votes_square.clamp_min(TINY)).sqrt(), 0.0)

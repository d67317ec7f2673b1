"""One temperature a model, chosen without labels. Adapted models are far surer than right; dividing their logits mends that and moves no answer."""

from __future__ import annotations

import math

import torch
from torch import Tensor

# Temperatures lie between these; a bisection of their logarithm ends at the tolerance.
LOWEST, HIGHEST, TOLERANCE = 0.05, 20.0, 1e-5
# Images whose posteriors are held in double precision at a time.
CHUNK = 1024


@torch.no_grad()
def label_free_temperature(logits: Tensor, unadapted: list[Tensor], nearest: Tensor) -> float:
    """The temperature T at which the mean confidence of ``softmax(logits / T)`` is that of a reference posterior.

    The reference of an image is half the unadapted model's posterior, which adaptation has not made overconfident, and half the mean posterior of the
    images nearest to it, whose disagreements show where the model's confidence is not earned::

        r_i = (mean_k softmax(u_ik) + mean_{j in near(i)} softmax(z_j)) / 2        mean_i max_c softmax(z_i / T)_c = mean_i max_c r_ic

    A caveat: it believes the unadapted model's own scale. Where that model is much surer or less sure than right on these images, so is the result.

    Args:
        logits: Of the method, (N, C).
        unadapted: Logits (N, C) of the unadapted model, one for each text head; their posteriors are averaged.
        nearest: Positions (N, K) of each image's nearest other images; K may be 0.

    Returns:
        T in [``LOWEST``, ``HIGHEST``]; 1 where there is nothing to tell it by: no neighbours, one class, or logits that are not finite.
    """
    n, c = logits.shape
    if n < 2 or c < 2 or not nearest.shape[1] or not all(bool(x.isfinite().all()) for x in (logits, *unadapted)):
        return 1.0
    target = reference_confidence(logits, unadapted, nearest)
    low, high = math.log(LOWEST), math.log(HIGHEST)
    if confidence(logits, HIGHEST) >= target:
        return HIGHEST
    if confidence(logits, LOWEST) <= target:
        return LOWEST
    while high - low > TOLERANCE:
        middle = (low + high) / 2
        low, high = (middle, high) if confidence(logits, math.exp(middle)) > target else (low, middle)
    return math.exp((low + high) / 2)


def confidence(logits: Tensor, temperature: float) -> float:
    """Mean over images of the largest probability of ``softmax(logits / temperature)``; it falls as the temperature rises."""
    total = 0.0
    for part in logits.split(CHUNK):
        x = part.double()
        total += (1 / ((x - x.amax(1, keepdim=True)) / temperature).exp().sum(1)).sum().item()
    return total / len(logits)


def reference_confidence(logits: Tensor, unadapted: list[Tensor], nearest: Tensor) -> float:
    """Mean over images of the largest entry of the reference posterior, see :func:`label_free_temperature`."""
    posteriors, total = logits.float().softmax(1), 0.0  # (N, C)
    for start in range(0, len(logits), CHUNK):
        rows = slice(start, start + CHUNK)
        near = torch.zeros(len(posteriors[rows]), logits.shape[1], dtype=torch.float64)
        for column in nearest[rows].T:
            near += posteriors[column]
        own = sum((head[rows].double().softmax(1) for head in unadapted), torch.zeros_like(near))
        total += (own / len(unadapted) + near / nearest.shape[1]).amax(1).sum().item() / 2
    return total / len(logits)

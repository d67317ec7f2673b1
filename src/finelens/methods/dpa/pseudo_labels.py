"""Pseudo-labels of DPA: two posteriors, one of them aligned, mixed and ranked. Shapes: B images, C classes, Q batch means."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from finelens.training.pseudo_labels import PseudoLabels, ranking


def align_distribution(log_posterior: Tensor, log_means: Tensor, prior: Tensor | None = None) -> Tensor:
    """``prior p / mean(Q)``, rows renormalised, in the log domain, where a class that no recent batch named cannot divide by zero.

    Args:
        log_posterior: Log posterior of the text prototypes, (B, C).
        log_means: Logs of recent batch means, the current one included, (Q, C), Q at least 1.
        prior: Class marginal (C,), positive, that the posteriors are drawn to; None: uniform, as published.

    Returns:
        Aligned log posterior (B, C).
    """
    log_mean = torch.logsumexp(log_means, dim=0) - math.log(len(log_means))  # (C,)
    aligned = log_posterior - log_mean
    return (aligned if prior is None else aligned + prior.log()).log_softmax(-1)


def assign(text: Tensor, aligned: Tensor, image: Tensor, *, image_share: float, weighting: bool) -> PseudoLabels:
    """``y = argmax (a p_v + (1 - a) p_t')`` with weight ``omega = (p_v[y] / max p_v) (p_t[y] / max p_t)``.

    Args:
        text: Posterior p_t of the text prototypes before its alignment, (B, C).
        aligned: The same after it, p_t', (B, C).
        image: Posterior p_v of the image prototypes, (B, C).
        image_share: a.
        weighting: False counts every label fully.
    """
    posterior = image_share * image + (1 - image_share) * aligned
    labels = posterior.argmax(-1)
    weights = ranking(image, labels) * ranking(text, labels) if weighting else torch.ones_like(posterior[:, 0])
    return PseudoLabels(labels, weights, posterior)

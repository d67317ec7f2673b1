"""Pseudo-labels of FAIR and how much each counts."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from finelens.training.pseudo_labels import PseudoLabels, ranking


def ambiguity(posterior: Tensor, eta: float) -> Tensor:
    """``(1 - p[second] / p[first])^eta``, (B,): near 0 where the two best classes are close, 1 for ``eta`` 0.

    Args:
        posterior: (B, C), C at least 2.
        eta: Power.
    """
    first, second = posterior.topk(2, dim=1).values.unbind(1)
    return (1 - second / first) ** eta


def assign(local_logits: Tensor, global_logits: Tensor, *, target: Literal["mean", "las"], eta: float, weighting: bool) -> PseudoLabels:
    """Labels and weights of a batch.

    With ``p_loc`` and ``p_glob`` the softmax of the two logits and ``p`` the posterior that decides (their mean, or ``p_loc``):
    ``y = argmax p`` and ``omega = (p_loc[y] / max p_loc) (p_glob[y] / max p_glob) (1 - p[second] / p[y])^eta``.

    Args:
        local_logits: Scaled alignment score of the crops, (B, C).
        global_logits: Scaled score of the weak view, (B, C).
        target: Which posterior decides.
        eta: Power of the ambiguity factor.
        weighting: False counts every label fully.
    """
    local, global_ = local_logits.softmax(-1), global_logits.softmax(-1)
    posterior = (local + global_) / 2 if target == "mean" else local
    labels = posterior.argmax(-1)
    if not weighting:
        return PseudoLabels(labels, torch.ones_like(posterior[:, 0]), posterior)
    # A single class cannot be confused with another.
    factor = ambiguity(posterior, eta) if posterior.shape[1] > 1 else 1.0
    return PseudoLabels(labels, ranking(local, labels) * ranking(global_, labels) * factor, posterior)

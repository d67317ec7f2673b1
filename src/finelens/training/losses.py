"""Losses shared by the self-training methods."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def log_batch_marginal(logits: Tensor) -> Tensor:
    """Log of the batch mean of ``softmax(logits)``, (C,), without leaving the log domain, so that it is finite for any finite logits."""
    return torch.logsumexp(F.log_softmax(logits, dim=-1), dim=0) - math.log(len(logits))


def running_log_marginal(logits: Tensor, previous: Tensor | None) -> Tensor:
    """``log pbar_t`` with ``pbar_t = 0.5 (stopgrad(pbar_{t-1}) + batch mean)``, or the batch mean where there is none (microCLIP, fairness term).

    Args:
        logits: (B, C).
        previous: ``log pbar_{t-1}`` (C,), or None at the first step of an epoch.
    """
    current = log_batch_marginal(logits)
    return current if previous is None else torch.logaddexp(previous.detach(), current) - math.log(2)


def marginal_loss(log_marginal: Tensor, prior: Tensor) -> Tensor:
    """``- sum_c prior_c log pbar_c``: cross-entropy of the batch marginal against a class prior; the uniform prior gives the published term.

    Args:
        log_marginal: (C,).
        prior: (C,), sums to 1.
    """
    return -(prior * log_marginal).sum()

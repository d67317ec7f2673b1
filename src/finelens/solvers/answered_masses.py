"""How frequent each class is, by a person's answers: a Dirichlet prior whose firmness the answers themselves decide."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

# Pseudo-answers of each class that are tried: the more, the more even the masses.
FIRMNESSES = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0)


def answered_masses(labels: Tensor, speaks_for: Tensor, look: Tensor, classes: int) -> Tensor:
    """Share of the images that each class has, (C,), float64, above 0.

    With the images w that each answer speaks for and ``s_c = sum_c w / sum w``, the share is ``(n s_c + a) / (n + a C)``: the mean of a Dirichlet
    posterior. n is the effective number of looks, ``(sum w)^2 / sum w^2`` with w summed by look (Kish, Survey Sampling, 1965). a makes the looks of
    each class most likely under a Dirichlet-multinomial (Minka, Estimating a Dirichlet distribution, 2000), less ``(log a)^2 / 2``: masses that may
    be even are taken for nearly even, and where many answers leave many classes without one, those get little.

    Args:
        labels: Classes (K,), at least one answer.
        speaks_for: Images that each answer speaks for, (K,), above 0.
        look: Number of the look of each answer, counted from 0, (K,).
        classes: C.
    """
    named = F.one_hot(labels, classes).double()  # (K, C)
    weight = speaks_for.double()
    by_look = torch.zeros(int(look.max()) + 1, dtype=torch.float64, device=labels.device).index_add_(0, look, weight)
    effective = float(by_look.sum().square() / by_look.square().sum())
    share = weight @ named / weight.sum()  # (C,)
    # A look at a group is one observation, whatever it names.
    counts = torch.bincount(look).double()[look].reciprocal() @ named
    firmness = max(FIRMNESSES, key=lambda a: _log_evidence(counts, a) - math.log(a) ** 2 / 2)
    return (effective * share + firmness) / (effective + firmness * classes)


def _log_evidence(counts: Tensor, firmness: float) -> float:
    """Log-probability of counts (C,) under a symmetric Dirichlet-multinomial, up to what does not depend on its firmness."""
    whole = len(counts) * firmness
    each = torch.lgamma(counts + firmness).sum() - len(counts) * math.lgamma(firmness)
    return math.lgamma(whole) - math.lgamma(whole + float(counts.sum())) + float(each)

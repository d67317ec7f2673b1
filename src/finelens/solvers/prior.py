"""The class prior, estimated without labels."""

from __future__ import annotations

import torch
from torch import Tensor


@torch.no_grad()
def estimate_prior(probabilities: Tensor, *, concentration: float = 1.0, iterations: int = 100, tolerance: float = 1e-6) -> Tensor:
    """Class marginal of unlabelled images by EM on a model's own posteriors (Saerens et al., 2002), with a symmetric Dirichlet prior.

    The model's posteriors are read as likelihoods under a uniform prior. The Dirichlet term adds ``concentration * N / C`` pseudo-images to
    every class, so the estimate cannot run to zero on classes that a poorly calibrated model never names; it also pulls towards uniform, by design.

    Args:
        probabilities: Posteriors (N, C), rows sum to 1.
        concentration: Pseudo-images in all, as a share of N.
        iterations: Upper limit of EM steps.
        tolerance: Stop when no entry moves more than this.

    Returns:
        Prior (C,), float64 on the host, positive, sums to 1. Uniform for N = 0.
    """
    n, c = probabilities.shape
    uniform = torch.full((c,), 1 / c, dtype=torch.float64)
    if n == 0:
        return uniform
    p = probabilities.detach().cpu().double()
    prior = uniform
    for _ in range(iterations):
        joint = p * prior  # (N, C)
        mass = (joint / joint.sum(1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)).mean(0)
        updated = next_prior(mass, concentration)
        moved = (updated - prior).abs().max()
        prior = updated
        if moved < tolerance:
            break
    return prior


def next_prior(mass: Tensor, concentration: float = 1.0) -> Tensor:
    """The prior (C,) that the mean posterior (C,) under the last one asks for, with the Dirichlet term."""
    updated = (mass + concentration * torch.full_like(mass, 1 / len(mass))) / (1 + concentration)
    return updated / updated.sum()

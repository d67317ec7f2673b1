"""What the Gaussian mixture solvers with neighbours share: one class posterior per image from text, likelihood and neighbours."""

from __future__ import annotations

import torch
from torch import Tensor

# Both releases divide the log-likelihood by 50, for features of this width.
REFERENCE_WIDTH = 512


def likelihood_weight(temperature: float, width: int) -> float:
    """Factor of a log-likelihood over ``width`` coordinates: ``1 / temperature`` at 512, and the same weight per coordinate mean at any width."""
    return REFERENCE_WIDTH / (temperature * width)


def update_assignments(log_prior: Tensor, likelihood: Tensor, graph: Tensor, z: Tensor, *, neighbour_weight: float, steps: int) -> Tensor:
    """Rounds of ``z_i <- softmax(log_prior_i + likelihood_i + neighbour_weight (G z)_i)``, all images at once.

    The objective is ``sum_i <z_i, log_prior_i + likelihood_i> + neighbour_weight / 2 sum_ij G_ij <z_i, z_j> + sum_i H(z_i)``. Where G is positive
    semi-definite each round maximises a lower bound of it, so it cannot fall (Zanella, Gérin, Ben Ayed, NeurIPS 2024, section 3). Nor can it where no
    eigenvalue of ``neighbour_weight G`` is below -2, see docs/methods/transclip.md; a graph of nearest neighbours with large hubs need not be so.

    Args:
        log_prior: Log text posteriors (N, C).
        likelihood: Weighted log-likelihoods (N, C), up to a term per image.
        graph: Symmetric sparse affinity G, (N, N).
        z: Posteriors to start from, (N, C).
        neighbour_weight: Weight of one unit of affinity.
        steps: Number of rounds.

    Returns:
        Log-posteriors (N, C).
    """
    fixed = log_prior + likelihood
    for _ in range(steps - 1):
        z = torch.sparse.addmm(fixed, graph, z, alpha=neighbour_weight).softmax(1)
    log_z: Tensor = torch.sparse.addmm(fixed, graph, z, alpha=neighbour_weight).log_softmax(1)
    return log_z


def weighted_sums(x: Tensor, z: Tensor, chunk_size: int, *, squares: bool = False) -> Tensor:
    """``z^T x`` (C, D), or ``z^T x^2`` with ``squares``: products in the features' type, chunks added up in float64."""
    total = torch.zeros(z.shape[1], x.shape[1], dtype=torch.float64, device=x.device)
    for rows, part in zip(x.split(chunk_size), z.split(chunk_size), strict=True):
        total += part.T @ (rows.square() if squares else rows)
    return total


def mean_square(x: Tensor, chunk_size: int) -> Tensor:
    """Mean of ``x^2`` over the images, (D,), float64."""
    total = torch.zeros(x.shape[1], dtype=torch.float64, device=x.device)
    for rows in x.split(chunk_size):
        total += rows.double().square().sum(0)
    return total / len(x)


def centred(logits: Tensor) -> Tensor:
    """Logits (N, C) less their mean over the classes of each image."""
    return logits - logits.mean(1, keepdim=True)

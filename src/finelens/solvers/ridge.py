"""A linear head on soft targets: ridge regression."""

from __future__ import annotations

import torch
from torch import Tensor

from finelens.solvers.conjugate_gradient import conjugate_gradient

TINY = 1e-12


def ridge_head(x: Tensor, target: Tensor, *, penalty: float, steps: int, chunk_size: int, counts: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Weights B of ``min sum_i |(x_i - mean x) B - (t_i - mean t)|^2 + penalty m |B|^2``, m the mean square of ``|x_i - mean x|``.

    Few steps of conjugate gradients stop short of the minimum, in which directions of little variance have the least part.

    Args:
        x: Features (N, D).
        target: Posteriors t, (N, C).
        penalty: In units of m.
        steps: Most steps of conjugate gradients.
        chunk_size: Images in work at a time.
        counts: How much each image counts in the sum and in all means, (N,), mean 1; None for all alike.

    Returns:
        B (D, C) and ``- mean x B`` (C,), float64: the head says how an image differs from the mean, and nothing of the classes' masses.
    """
    counted, goal = (x, target) if counts is None else (x * counts[:, None], target * counts[:, None])
    mean = counted.mean(0, dtype=torch.float64)
    squares = (counted * x).sum(1).mean() - mean.square().sum()
    weight = penalty * squares.clamp_min(TINY)

    def products(b: Tensor | None = None) -> Tensor:
        """``X^T X`` (D, D), or ``X^T X b`` (D, C)."""
        total = torch.zeros(x.shape[1], x.shape[1] if b is None else b.shape[1], dtype=torch.float64, device=x.device)
        for left, rows in zip(counted.split(chunk_size), x.split(chunk_size), strict=True):
            total += left.T @ (rows if b is None else rows @ b.to(rows))
        return total

    # One pass over the images in place of two a step, where columns are few beside classes.
    gram = products() if x.shape[1] <= 2 * steps * target.shape[1] else None

    def normal_equations(b: Tensor) -> Tensor:
        return weight * b + (products(b) if gram is None else gram @ b) - len(x) * torch.outer(mean, mean @ b)

    right = -len(x) * torch.outer(mean, goal.mean(0, dtype=torch.float64))  # (D, C)
    for left, part in zip(counted.split(chunk_size), target.split(chunk_size), strict=True):
        right += left.T @ part
    head = conjugate_gradient(normal_equations, right, 0.0, steps)
    return head, -(mean @ head)


def ridge_of_moments(
    mean: Tensor, second: Tensor, products: Tensor, target: Tensor, count: int, *, penalty: float, steps: int
) -> tuple[Tensor, Tensor]:
    """What :func:`ridge_head` gives, from sums over images.

    Args:
        mean: Of the features, (D,), float64.
        second: ``X^T X / N``, (D, D), float64.
        products: ``X^T T`` with the targets, (D, C), float64.
        target: Mean of the targets, (C,), float64.
        count: N.
        penalty: See there.
        steps: See there.
    """
    centred = second - torch.outer(mean, mean)
    weight = penalty * centred.trace().clamp_min(TINY)
    head = conjugate_gradient(lambda b: weight * b + count * (centred @ b), products - count * torch.outer(mean, target), 0.0, steps)
    return head, -(mean @ head)

"""Conjugate gradients (Hestenes and Stiefel 1952) for many right sides at once."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def conjugate_gradient(matvec: Callable[[Tensor], Tensor], b: Tensor, tol: float, max_iter: int = 100) -> Tensor:
    """Solve ``A x = b`` for every column of b (N, K), A symmetric positive definite.

    Args:
        matvec: ``A v`` for v (N, K).
        b: Right sides.
        tol: Largest norm of a column's residual, as a share of the column's norm.
        max_iter: Most rounds.
    """
    x, residual = torch.zeros_like(b), b.clone()
    direction, square = residual.clone(), residual.square().sum(0)
    limit = square * tol**2
    for _ in range(max_iter):
        if (square <= limit).all():
            break
        image = matvec(direction)
        # A column that is solved has no direction left.
        step = torch.where(square > limit, square / torch.linalg.vecdot(direction, image, dim=0), 0.0)
        x.addcmul_(step, direction)
        residual.addcmul_(step, image, value=-1)
        before, square = square, torch.linalg.vecdot(residual, residual, dim=0)
        direction.mul_(torch.where(before > limit, square / before, 0.0)).add_(residual)
    return x

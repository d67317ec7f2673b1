"""Chebyshev's semi-iteration (Golub and Varga 1961) for many right sides at once: no inner products, and a number of rounds that is known before."""

from __future__ import annotations

from math import ceil, log, sqrt

import torch
from torch import Tensor

from finelens.solvers.neighbours import RowProduct

# Bytes of the rows in work at a time, which stay in the processor's cache between their product and their step.
BYTES = 1 << 20


def chebyshev(matrix: Tensor, rows: Tensor, columns: Tensor, width: int, *, radius: float, tol: float) -> Tensor:
    """Solve ``(I - M) X = B`` for every column of a B of zeros and ones.

    Args:
        matrix: M, symmetric, sparse and coalesced, (N, N), its eigenvalues within ``[-radius, radius]``.
        rows: Rows of the ones of B, (S,).
        columns: Their columns, (S,); no place twice.
        width: Columns K of B.
        radius: Below 1.
        tol: Largest norm of a column's residual, as a share of the column's norm.

    Returns:
        X (N, K).
    """
    product, size = RowProduct(matrix), max(1, BYTES // (width * matrix.dtype.itemsize))
    before = torch.zeros(len(matrix), width, dtype=matrix.dtype, device=matrix.device)
    x, omega = before.clone(), 2.0
    x[rows, columns] = 1.0
    for _ in range(rounds_of(radius, max(tol, torch.finfo(matrix.dtype).eps)) - 1):
        omega = 1 / (1 - radius**2 * omega / 4)
        # x_(k+1) = x_(k-1) + omega (M x_k + b - x_(k-1)), in the memory of x_(k-1).
        for start in range(0, len(before), size):
            part = before[start : start + size]
            part.lerp_(product.between(start, start + len(part), x), omega)
        before[rows, columns] += omega
        before, x = x, before
    return x


def rounds_of(radius: float, tol: float) -> int:
    """Least k with ``1 / T_k(1 / radius) <= tol``: what k rounds leave of a residual, T_k Chebyshev's polynomial."""
    rho = radius / (1 + sqrt(1 - radius**2))
    # 2 rho^k / (1 + rho^(2 k)) <= tol, solved for rho^k.
    return max(1, ceil(log(tol / (1 + sqrt(max(0.0, 1 - tol**2)))) / log(rho)))

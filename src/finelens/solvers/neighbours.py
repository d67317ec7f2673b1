"""Nearest neighbours and the sparse graphs made of them; no N x N matrix is ever held."""

from __future__ import annotations

import torch
from torch import Tensor


def top_neighbours(queries: Tensor, keys: Tensor, k: int, *, chunk_size: int, same: bool = False) -> tuple[Tensor, Tensor]:
    """The k keys of largest cosine for every query.

    Args:
        queries: Unit rows (M, D).
        keys: Unit rows (N, D).
        k: Neighbours wanted; fewer are returned where there are fewer keys.
        chunk_size: Queries compared at a time.
        same: Whether queries are the keys; then no row is its own neighbour, while its exact duplicates are.

    Returns:
        Cosines (M, k') and key positions (M, k') with k' = min(k, N) or, for ``same``, min(k, N - 1).
    """
    k = min(k, len(keys) - int(same))
    values = queries.new_empty(len(queries), k)
    index = torch.empty(len(queries), k, dtype=torch.long, device=queries.device)
    for start in range(0, len(queries), chunk_size) if k else ():
        rows = slice(start, start + chunk_size)
        cosines = queries[rows] @ keys.T  # (chunk, N)
        if same:
            own = torch.arange(len(cosines), device=queries.device)
            cosines[own, own + start] = -torch.inf
        values[rows], index[rows] = cosines.topk(k, dim=1)
    return values, index


def sparse_rows(values: Tensor, index: Tensor, columns: int) -> Tensor:
    """Sparse matrix (M, columns) with ``values`` (M, k) at the positions ``index`` (M, k) of each row."""
    rows = torch.arange(len(index), device=index.device).repeat_interleave(index.shape[1])
    positions = torch.stack([rows, index.flatten()])  # (2, M k)
    return torch.sparse_coo_tensor(positions, values.flatten(), (len(index), columns), check_invariants=False).coalesce()


def symmetric_affinity(x: Tensor, k: int, *, chunk_size: int) -> Tensor:
    """``A + A^T`` (N, N), sparse, where row i of A holds the cosines of image i with its k nearest others; negative cosines count as 0."""
    values, index = top_neighbours(x, x, k, chunk_size=chunk_size, same=True)
    graph = sparse_rows(values.clamp_min(0), index, len(x))
    return (graph + graph.T).coalesce()

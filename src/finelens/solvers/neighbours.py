"""Nearest neighbours and the sparse graphs made of them; no N x N matrix is ever held."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from finelens.solvers.certified import certified_neighbours, is_worth_it
from finelens.solvers.certified_pairs import MOST_NEIGHBOURS, certified_pairs
from finelens.solvers.chunks import chunks
from finelens.solvers.columns import split_views
from finelens.solvers.pairs import MANY, neighbours_by_pairs


def top_neighbours(
    queries: Tensor, keys: Tensor, k: int, *, chunk_size: int, same: bool = False, rows: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The k keys of largest cosine for every query.

    Args:
        queries: Unit rows (M, D).
        keys: Unit rows (N, D).
        k: Neighbours wanted; fewer are returned where there are fewer keys.
        chunk_size: Queries compared at a time.
        same: Whether queries are the keys; then no row is its own neighbour, while its exact duplicates are.
        rows: Positions (N,) of the keys among the queries, rising, where they are some of them: no query is its own neighbour.

    Returns:
        Cosines (M, k') and key positions (M, k') with k' = min(k, N) or, where queries may be keys, min(k, N - 1).
    """
    rows = torch.arange(len(keys), device=keys.device) if same else rows
    k = min(k, len(keys) - int(rows is not None))
    if is_worth_it(queries, keys, k):
        pairs = same and k <= MOST_NEIGHBOURS
        values, index, doubtful = certified_pairs(keys, k) if pairs else certified_neighbours(queries, keys, k, rows)
        for some in doubtful.split(chunk_size) if len(doubtful) else ():
            cosines = queries[some] @ keys.T  # (n, N)
            if rows is not None:
                of_query = torch.searchsorted(rows, some)
                own = (rows[of_query.clamp_max(len(rows) - 1)] == some).nonzero()[:, 0]
                cosines[own, of_query[own]] = -torch.inf
            values[some], index[some] = cosines.topk(k, dim=1)
        return values, index
    if same and k and len(keys) >= MANY and keys.device.type == "cpu":
        return neighbours_by_pairs(keys, k)
    values = queries.new_empty(queries.shape[0], k)
    index = torch.empty(queries.shape[0], k, dtype=torch.long, device=queries.device)
    for chunk in chunks(queries.shape[0], chunk_size) if k else ():
        start = chunk.start or 0
        cosines = queries[chunk] @ keys.T  # (chunk, N)
        if rows is not None:
            own = ((rows >= start) & (rows < start + chunk_size)).nonzero()[:, 0]
            cosines[rows[own] - start, own] = -torch.inf
        values[chunk], index[chunk] = cosines.topk(k, dim=1)
    return values, index


def smoothed(x: Tensor, keys: Tensor, near: Tensor, widths: Sequence[int], share: float = 1.0) -> Tensor:
    """Each view of the images with the mean of their neighbours added, unit rows.

    Args:
        x: Unit views side by side, (M, D_1 + ... + D_V) or the first alone.
        keys: Views of the images that the neighbours are among, (N, D_1 + ... + D_V).
        near: Their positions, (M, k); with k = 0 nothing is changed.
        widths: D_1 to D_V.
        share: What the mean counts beside the image.
    """
    if not near.shape[1]:
        return x
    mean = torch.zeros_like(x)
    for column in near.T:
        mean += keys[column, : x.shape[1]]
    return torch.cat([F.normalize(view, dim=1) for view in split_views(torch.add(x, mean / near.shape[1], alpha=share), widths)], 1)


def sparse_rows(values: Tensor, index: Tensor, columns: int) -> Tensor:
    """Sparse matrix (M, columns) with ``values`` (M, k) at the positions ``index`` (M, k) of each row."""
    rows = torch.arange(len(index), device=index.device).repeat_interleave(index.shape[1])
    positions = torch.stack([rows, index.flatten()])  # (2, M k)
    return torch.sparse_coo_tensor(positions, values.flatten(), (len(index), columns), check_invariants=False).coalesce()


class RowProduct:
    """Products of a sparse matrix with dense ones by its rows: a few times faster on a CPU than those of torch's sparse formats.

    Args:
        matrix: Sparse and coalesced, (M, N).
    """

    def __init__(self, matrix: Tensor) -> None:
        row, self._columns = matrix.indices()
        self._weights = matrix.values()
        self._starts = F.pad(torch.bincount(row, minlength=len(matrix)).cumsum(0), (1, 0))

    def between(self, first: int, last: int, dense: Tensor) -> Tensor:
        """The rows of the product from ``first`` to before ``last``."""
        start, stop = int(self._starts[first]), int(self._starts[last])
        offsets = self._starts[first:last] - start
        return F.embedding_bag(self._columns[start:stop], dense, offsets, mode="sum", per_sample_weights=self._weights[start:stop])

    def of(self, rows: Tensor, dense: Tensor) -> Tensor:
        """Some rows of the product."""
        first, counts = self._starts[rows], self._starts[rows + 1] - self._starts[rows]
        offsets = counts.cumsum(0) - counts
        edges = torch.arange(int(counts.sum()), device=rows.device) + (first - offsets).repeat_interleave(counts)
        return F.embedding_bag(self._columns[edges], dense, offsets, mode="sum", per_sample_weights=self._weights[edges])


def symmetric_affinity(x: Tensor, k: int, *, chunk_size: int) -> Tensor:
    """``A + A^T`` (N, N), sparse, where row i of A holds the cosines of image i with its k nearest others; negative cosines count as 0."""
    values, index = top_neighbours(x, x, k, chunk_size=chunk_size, same=True)
    graph = sparse_rows(values.clamp_min(0), index, len(x))
    return (graph + graph.T).coalesce()


def evenly_spread(n: int, most: int, device: torch.device) -> Tensor:
    """At most ``most`` of n positions, evenly spread; (B,), int64: those that neighbours are looked for among."""
    return torch.arange(min(n, most), device=device) * n // min(n, most)

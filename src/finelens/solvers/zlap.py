"""ZLaP (Stojnić, Kalantidis, Tolias: "Label Propagation for Zero-shot Classification with Vision-Language Models", CVPR 2024)."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from finelens.solvers.base import Solver
from finelens.solvers.conjugate_gradient import conjugate_gradient
from finelens.solvers.known import Known
from finelens.solvers.neighbours import RowProduct, sparse_rows, top_neighbours
from finelens.solvers.parameters import COUNT, INNER_FRACTION, NOT_NEGATIVE, POSITIVE, Constraints

# Classes solved for at a time: what keeps the memory of the solver linear in N with a small factor.
COLUMNS = 128
# Score of a class that no path of the graph reaches.
UNREACHED = 1e-12


class ZLaP(Solver):
    """Label propagation from class nodes over a graph of images and classes.

    Nodes are the images, then the classes. An image is linked to its nearest images with weight ``max(0, cos)^gamma`` and to its nearest classes with
    ``t^gamma``, where t maps the image-to-text cosines of the fit linearly onto [0, 1]: image and text cosines have different ranges. With S the
    symmetrically normalised graph, the scores are the rows of ``F = (I - alpha S)^-1 Y``, Y one-hot on the class nodes and on hinted images. New
    images get the scores of their neighbours by their own edges.

    Args:
        neighbours: Images, and classes, that an image is linked to.
        gamma: Power of the edge weights.
        alpha: Share that is passed on at each edge, below 1.
        tol: Relative residual of the linear systems.
        chunk_size: Images in work at a time.

    Attributes:
        features_: Unit features of the fit, (N, D).
        text_: Unit prototypes (C, D).
        text_range_: Smallest and largest image-to-text cosine of the fit, (2,).
        spread_: ``degree^-1/2 F``, (N + C, C): what a unit of edge to each node is worth.
    """

    state_names: ClassVar[tuple[str, ...]] = ("features_", "text_", "text_range_", "spread_")
    _parameter_constraints: ClassVar[Constraints] = {
        "neighbours": COUNT,
        "gamma": POSITIVE,
        "alpha": INNER_FRACTION,
        "tol": NOT_NEGATIVE,
        "chunk_size": COUNT,
    }

    def __init__(self, *, neighbours: int = 5, gamma: float = 5.0, alpha: float = 0.3, tol: float = 1e-6, chunk_size: int = 1024) -> None:
        self.neighbours, self.gamma, self.alpha, self.tol, self.chunk_size = neighbours, gamma, alpha, tol, chunk_size

    def _fit(self, x: Tensor, prototypes: Tensor, scale: float, known: Known) -> Tensor:
        self.features_, self.text_ = x, prototypes
        self.text_range_ = torch.stack(_cosine_range(x, prototypes, self.chunk_size))
        n, c = len(x), len(prototypes)
        edges = self._edges(x, same=True)  # (N, N + C)
        square = torch.sparse_coo_tensor(edges.indices(), edges.values(), (n + c, n + c), check_invariants=False)
        graph = (square + square.T).coalesce()
        degree = torch.sparse.sum(graph, 1).to_dense()  # (N + C,)
        root = torch.where(degree > 0, degree.clamp_min(torch.finfo(x.dtype).tiny).rsqrt(), 0.0)
        row, column = graph.indices()
        normal = torch.sparse_coo_tensor(graph.indices(), root[row] * graph.values() * root[column], graph.shape, check_invariants=False).coalesce()
        scores = self._propagate(normal, n, c, known)
        shares = _log_shares(scores[:n])
        self.spread_ = scores.mul_(root[:, None])
        return shares

    def _propagate(self, graph: Tensor, n: int, c: int, known: Known) -> Tensor:
        product = RowProduct(graph)
        scores = graph.new_empty((n + c, c), layout=torch.strided, dtype=graph.dtype)
        for start in range(0, c, COLUMNS):
            stop = min(start + COLUMNS, c)
            seeds = torch.zeros(n + c, stop - start, dtype=graph.dtype, device=graph.device)
            seeds[torch.arange(n + start, n + stop), torch.arange(stop - start)] = 1
            own = (known.labels >= start) & (known.labels < stop)
            seeds[known.rows[own], known.labels[own] - start] = 1
            scores[:, start:stop] = conjugate_gradient(lambda v: torch.sub(v, product.all(v), alpha=self.alpha), seeds, self.tol)
        return scores

    def _edges(self, x: Tensor, *, same: bool) -> Tensor:
        """Sparse edges (M, N + C) of images to the images of the fit and the classes."""
        images, image_index = top_neighbours(x, self.features_, self.neighbours, chunk_size=self.chunk_size, same=same)
        texts, text_index = top_neighbours(x, self.text_, self.neighbours, chunk_size=self.chunk_size)
        low, high = self.text_range_
        shares = ((texts - low) / (high - low).clamp_min(torch.finfo(x.dtype).tiny)).clamp(0, 1)
        values = torch.cat([images.clamp_min(0) ** self.gamma, shares**self.gamma], dim=1)
        index = torch.cat([image_index, text_index + len(self.features_)], dim=1)
        return sparse_rows(values, index, len(self.features_) + len(self.text_))

    def _log_proba(self, x: Tensor) -> Tensor:
        return _log_shares(torch.sparse.mm(self._edges(x.to(self.features_), same=False), self.spread_))


def _cosine_range(x: Tensor, prototypes: Tensor, chunk_size: int) -> tuple[Tensor, Tensor]:
    lows, highs = zip(*((chunk @ prototypes.T).aminmax() for chunk in x.split(chunk_size)), strict=True)
    return torch.stack(lows).min(), torch.stack(highs).max()


def _log_shares(scores: Tensor) -> Tensor:
    """Log of the rows' shares; a row that nothing reaches is uniform."""
    positive = scores.clamp_min(0)
    total = positive.sum(1, keepdim=True)
    c = scores.shape[1]
    # In place: there are N x C of them.
    positive.div_(total.clamp_min(torch.finfo(scores.dtype).tiny)).masked_fill_(total <= 0, 1 / c)
    return positive.add_(UNREACHED).div_(1 + c * UNREACHED).log_()

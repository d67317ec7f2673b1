"""ZLaP (Stojnić, Kalantidis, Tolias: "Label Propagation for Zero-shot Classification with Vision-Language Models", CVPR 2024)."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from finelens.solvers.base import Solver
from finelens.solvers.chebyshev import chebyshev
from finelens.solvers.chunks import chunks
from finelens.solvers.gaussians import CHUNK
from finelens.solvers.known import Known
from finelens.solvers.neighbours import sparse_rows, top_neighbours
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
        texts, self.text_range_ = _nearest_texts(x, prototypes, self.neighbours, self.chunk_size)
        n, c = len(x), len(prototypes)
        edges = self._edges(top_neighbours(x, x, self.neighbours, chunk_size=self.chunk_size, same=True), texts)  # (N, N + C)
        square = torch.sparse_coo_tensor(edges.indices(), edges.values(), (n + c, n + c), check_invariants=False)
        graph = (square + square.T).coalesce()
        degree = torch.sparse.sum(graph, 1).to_dense()  # (N + C,)
        root = torch.where(degree > 0, degree.clamp_min(torch.finfo(x.dtype).tiny).rsqrt(), 0.0)
        row, column = graph.indices()
        weights = self.alpha * root[row] * graph.values() * root[column]
        passed_on = torch.sparse_coo_tensor(graph.indices(), weights, graph.shape, check_invariants=False, is_coalesced=True)
        scores = self._propagate(passed_on, n, c, known)
        shares = _log_shares(scores[:n])
        self.spread_ = scores.mul_(root[:, None])
        return shares

    def _propagate(self, passed_on: Tensor, n: int, c: int, known: Known) -> Tensor:
        """Scores (N + C, C) of the graph ``alpha S``, whose eigenvalues lie within alpha of 0."""
        scores = passed_on.new_empty((n + c, c), layout=torch.strided, dtype=passed_on.dtype)
        nodes = torch.cat([torch.arange(n, n + c, device=known.rows.device), known.rows])
        labels = torch.cat([torch.arange(c, device=known.labels.device), known.labels])
        for start in range(0, c, COLUMNS):
            stop = min(start + COLUMNS, c)
            own = (labels >= start) & (labels < stop)
            scores[:, start:stop] = chebyshev(passed_on, nodes[own], labels[own] - start, stop - start, radius=self.alpha, tol=self.tol)
        return scores

    def _edges(self, images: tuple[Tensor, Tensor], texts: tuple[Tensor, Tensor]) -> Tensor:
        """Sparse edges (M, N + C) to images of the fit and to classes, of cosines (M, k) and places (M, k) among either."""
        low, high = self.text_range_
        shares = ((texts[0] - low) / (high - low).clamp_min(torch.finfo(self.features_.dtype).tiny)).clamp(0, 1)
        values = torch.cat([images[0].clamp_min(0) ** self.gamma, shares**self.gamma], dim=1)
        index = torch.cat([images[1], texts[1] + len(self.features_)], dim=1)
        return sparse_rows(values, index, len(self.features_) + len(self.text_))

    def _log_proba(self, x: Tensor) -> Tensor:
        near = [top_neighbours(x.to(self.features_), keys, self.neighbours, chunk_size=self.chunk_size) for keys in (self.features_, self.text_)]
        return _log_shares(torch.sparse.mm(self._edges(*near), self.spread_))


def _nearest_texts(x: Tensor, prototypes: Tensor, k: int, chunk_size: int) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """What ``top_neighbours`` finds among the prototypes (C, D), and the smallest and largest cosine of all (2,), from one product."""
    parts = []
    for rows in chunks(len(x), chunk_size):
        cosines = x[rows] @ prototypes.T
        parts.append((*cosines.topk(min(k, len(prototypes)), dim=1), torch.stack(cosines.aminmax())))
    values, index, extremes = zip(*parts, strict=True)
    low, high = torch.stack(extremes).T
    return (torch.cat(values), torch.cat(index)), torch.stack([low.min(), high.max()])


def _log_shares(scores: Tensor) -> Tensor:
    """Log of the rows' shares; a row that nothing reaches is uniform."""
    c, found = scores.shape[1], torch.empty_like(scores)
    for rows in chunks(len(scores), CHUNK):
        positive = torch.clamp_min(scores[rows], 0, out=found[rows])
        total = positive.sum(1, keepdim=True)
        positive.div_(total.clamp_min(torch.finfo(scores.dtype).tiny)).masked_fill_(total <= 0, 1 / c)
        positive.add_(UNREACHED).div_(1 + c * UNREACHED).log_()
    return found

"""The mixtures with neighbours on more images than memory holds: what :mod:`~finelens.solvers.settling` does, by passes.

Of each image's posterior the :data:`KEPT` largest entries stay, for its neighbours to see. Sums over images are made anew in each pass, of whole
posteriors. Neighbours are looked for in cells (inverted lists, Sivic and Zisserman, ICCV 2003), whose middles k-means finds: each image is
compared with those of the :data:`PROBED` cells nearest to it. Where there are few images, all of them are compared.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from finelens.solvers.neighbours import sparse_rows, top_neighbours
from finelens.solvers.rows import CHUNK, FitRows, TopRows, sum_type
from finelens.solvers.settling import SETTLED

# Entries of a posterior that neighbours see.
KEPT = 16
# Images that are all compared with each other; of more, an even share in a cell, and cells that an image is compared with.
ALL, CELL, PROBED = 1 << 16, 512, 16
# Cosines that are held at a time: alike images, such as the black frames of a camera at night, may be a cell of very many.
MOST_COSINES = 1 << 24
# Rounds of k-means, images a cell that it looks at, and the most of them.
ROUNDS, A_CELL, LOOKED_AT = 5, 32, 1 << 17


class SettlingPasses:
    """Posteriors of many images and their sums over images; the attributes are those of :class:`~finelens.solvers.settling.Settling`.

    Args:
        rows: The images.
        neighbours: Of an image.
        classes: C.
        squares: Whether sums of squares are wanted as well.
    """

    def __init__(self, rows: FitRows, neighbours: int, classes: int, *, squares: bool) -> None:
        self._rows, self._classes, self._wanted, self._kind = rows, classes, squares, sum_type()
        graph = near_graph(rows, neighbours)
        row, self._columns = graph.indices()
        self._weights = graph.values() / (2 * neighbours)
        self._starts = torch.nn.functional.pad(torch.bincount(row, minlength=len(rows)).cumsum(0), (1, 0))
        kept = min(KEPT, classes)
        self._index, self._values = torch.zeros(len(rows), kept, dtype=torch.int32), torch.zeros(len(rows), kept)
        self.best = torch.zeros(len(rows), dtype=torch.int64)
        self._clear()

    def _clear(self) -> None:
        width = self._rows.width
        self.mass, self.sums = torch.zeros(self._classes, dtype=torch.float64), torch.zeros(self._classes, width, dtype=torch.float64)
        self.squares = torch.zeros_like(self.sums) if self._wanted else self.sums[:, :0]

    def start(self, weights: Tensor, top: TopRows | None = None) -> None:
        """First posteriors and sums: ``softmax(x weights^T)`` without neighbours, weights (C, D)."""
        self._text = weights
        self._pass(torch.zeros_like(weights), None, None, neighbours=False, top=top)

    def settle(self, scores: Callable[[], tuple[Tensor, Tensor | None, Tensor]], update: Callable[[], None], rounds: int) -> None:
        """Rounds of posteriors and statistics; arguments as for ``Settling.settle``."""
        for _ in range(rounds):
            moved = self._pass(*scores())
            update()
            if moved < SETTLED:
                break

    def _pass(self, linear: Tensor, square: Tensor | None, bias: Tensor | None, *, neighbours: bool = True, top: TopRows | None = None) -> float:
        """Update all posteriors and the sums; returns how far what is kept of them moved, on average."""
        self._clear()
        moved, turned = 0.0, (self._text + linear).float().T
        added = torch.zeros(self._classes) if bias is None else bias.float()
        # What all classes share does not matter to a softmax, and would be rounded off.
        square = None if square is None else (square - square.mean(0)).to(self._kind).T
        for at, x in self._rows.each(CHUNK):
            z = torch.addmm(added, x, turned)
            squares = x.square().to(self._kind) if self._wanted else None
            if square is not None and squares is not None:
                z += squares @ square
            if neighbours:
                self._add_neighbours(at, z)
            self._rows.clamp_(at, z)
            torch.softmax(z, 1, out=z)
            moved += float((z.gather(1, self._index[at].long()) - self._values[at]).abs().sum())
            values, index = z.topk(self._values.shape[1], dim=1)
            self._values[at], self._index[at], self.best[at] = values, index.int(), index[:, 0]
            if top is not None:
                top.add(at, z)
            self.mass += z.sum(0)
            by_class = z.to(self._kind).T
            self.sums += by_class @ x.to(self._kind)
            if squares is not None:
                self.squares += by_class @ squares
        return moved / len(self._rows)

    def _add_neighbours(self, at: slice, z: Tensor) -> None:
        """Add what neighbours are to the logits (n, C), in place."""
        first, last = int(self._starts[at.start]), int(self._starts[at.stop])
        seen, weights = self._columns[first:last], self._weights[first:last]
        counts = self._starts[at.start + 1 : at.stop + 1] - self._starts[at.start : at.stop]
        rows = torch.arange(len(z)).repeat_interleave(counts)
        place = rows[:, None] * self._classes + self._index[seen].long()  # (edges, K)
        z.view(-1).index_add_(0, place.flatten(), (weights[:, None] * self._values[seen]).flatten())


def near_graph(rows: FitRows, k: int) -> Tensor:
    """``A + A^T`` (N, N), sparse, of cosines with k near images; negative cosines count as 0."""
    values, index = near_rows(rows, k)
    graph = sparse_rows(values.clamp_min(0), index, len(rows))
    return (graph + graph.T).coalesce()


def middles(rows: FitRows, count: int) -> Tensor:
    """Unit middles (M, D) of cells by spherical k-means (Dhillon and Modha, 2001) of evenly spread rows; nothing is drawn."""
    x = rows.at(rows.evenly(min(A_CELL * count, LOOKED_AT)))
    centres = x[:: max(1, len(x) // count)][:count]
    for _ in range(ROUNDS):
        cell = torch.cat([(part @ centres.T).argmax(1) for part in x.split(CHUNK)])
        sums = torch.zeros_like(centres).index_add_(0, cell, x)
        # A cell that lost all its rows stays where it was.
        centres = torch.where(sums.any(1, keepdim=True), torch.nn.functional.normalize(sums, dim=1), centres)
    return centres


def near_rows(rows: FitRows, k: int) -> tuple[Tensor, Tensor]:
    """Cosines (N, k) and positions (N, k) of k near images of each.

    The rows are held meanwhile, in half precision where they are many.
    """
    n = len(rows)
    held = torch.empty(n, rows.width, dtype=torch.float32 if n <= ALL else torch.float16)
    if n <= ALL:
        for at, x in rows.each():
            held[at] = x
        return top_neighbours(held, held, k, chunk_size=CHUNK, same=True)
    centres = middles(rows, -(-n // CELL))
    probed = torch.empty(n, min(PROBED, len(centres)), dtype=torch.int32)
    for at, x in rows.each():
        held[at] = x.half()
        probed[at] = (x @ centres.T).topk(probed.shape[1], dim=1).indices.int()
    values, index = torch.full((n, k), -torch.inf), torch.zeros(n, k, dtype=torch.int64)
    order = probed[:, 0].argsort(stable=True)
    bounds = torch.searchsorted(probed[order, 0].contiguous(), torch.arange(len(centres) + 1, dtype=torch.int32))
    asked = probed.flatten().argsort(stable=True)
    asked_bounds = torch.searchsorted(probed.flatten()[asked].contiguous(), torch.arange(len(centres) + 1, dtype=torch.int32))
    for cell in range(len(centres)):
        members = order[bounds[cell] : bounds[cell + 1]]
        queries = asked[asked_bounds[cell] : asked_bounds[cell + 1]] // probed.shape[1]
        if not len(members) or not len(queries):
            continue
        keys = held[members].float()
        for some in queries.split(max(1, min(4 * CHUNK, MOST_COSINES // len(members)))):
            cosines = held[some].float() @ keys.T
            cosines.masked_fill_(some[:, None] == members, -torch.inf)
            found, place = cosines.topk(min(k, len(members)), dim=1)
            both, where = torch.cat([values[some], found], 1), torch.cat([index[some], members[place]], 1)
            values[some], best = both.topk(k, dim=1)
            index[some] = where.gather(1, best)
    return values, index

"""Several feature spaces of the same images: how solvers take them, and how their columns lie side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from finelens.errors import UserError
from finelens.protocol import Hints
from finelens.solvers.base import Features, Solver, unit_rows
from finelens.solvers.columns import split_views
from finelens.solvers.presence import neighbour_agreement

# Most images that a view is tried on, neighbours of each, and the share of the first view's neighbour agreement from which a view is listened to.
TRIED, NEAREST, SOUND = 2048, 5, 1 / 3
# With fewer images, or less agreement in the first view, nothing is told of the others.
LEAST_IMAGES, LEAST_AGREEMENT = 50, 0.1


class ViewsSolver(Solver):
    """A solver whose ``X`` is one feature matrix, or a list of them with the same images in the same rows.

    The prototypes belong to the first. New images may come with the first matrix alone: the others then keep silent.

    Attributes:
        widths_: Columns of each view, (V,), int64; one of the fitted tensors.
        weights_: How much each view counts, (V,), float64, mean 1; one of the fitted tensors.
    """

    widths_: Tensor
    weights_: Tensor

    def _run(self, X: Any, prototypes: Features, logit_scale: float, hints: Hints | None) -> Tensor:
        return self._solve(_read_views(X), prototypes, logit_scale, hints)

    def _begin_fit(self, widths: Sequence[int], prototypes: Features, logit_scale: float) -> Tensor:
        self.widths_ = torch.tensor(list(widths))
        return super()._begin_fit(widths, prototypes, logit_scale)

    def _new_rows(self, X: Any) -> Tensor:
        views = _read_views(X)
        got, fitted = [view.shape[1] for view in views], self.widths_.tolist()
        if got not in (fitted, fitted[:1]):
            raise UserError(
                f"the views of X have widths {got}, but {type(self).__name__} was fitted on {fitted}; give all of them, or the first alone"
            )
        return torch.cat(views, 1)


def unheard_views(x: Tensor, labels: Tensor, widths: Sequence[int], classes: int) -> list[int]:
    """Views beside the first that have nothing to say: near images in them do not share classes, however the view is weighed.

    A view that is noise follows whatever posterior it is fitted to, and its weight with it; neighbours are found without any.

    Args:
        x: Unit views side by side, (N, D_1 + ... + D_V).
        labels: Classes by the text, (N,).
        widths: D_1 to D_V.
        classes: C.
    """
    rows = torch.arange(min(len(x), TRIED), device=x.device) * len(x) // min(len(x), TRIED)
    if len(widths) < 2 or len(rows) < LEAST_IMAGES:
        return []
    count = max(1, min(NEAREST, len(rows) // (2 * classes)))
    agreed = []
    for view in split_views(x[rows], widths):
        centred = F.normalize(view - view.mean(0), dim=1)
        cosines = (centred @ centred.T).fill_diagonal_(-torch.inf)
        agreed.append(neighbour_agreement(labels[rows], cosines.topk(count, dim=1).indices, classes))
    return [v for v in range(1, len(widths)) if agreed[0] >= LEAST_AGREEMENT and agreed[v] < SOUND * agreed[0]]


def searched_views(x: Tensor, widths: Sequence[int]) -> Tensor:
    """Which views neighbours are looked for in: 1 for each beside the first that is not silenced, the first where there is none; (V,), int64."""
    heard = torch.tensor([int(v > 0 and bool(part.any())) for v, part in enumerate(split_views(x, widths))])
    heard[0] = int(not heard.any())
    return heard


def _read_views(X: Any) -> list[Tensor]:
    views = [unit_rows(view, f"X[{i}]") for i, view in enumerate(X)] if _is_several(X) else [unit_rows(X, "X")]
    rows = {len(view) for view in views}
    if len(rows) > 1:
        raise UserError(f"the views of X have {sorted(rows)} rows; give the same images in the same order in each")
    return [view.to(views[0]) for view in views]


def _is_several(X: Any) -> bool:
    return isinstance(X, (list, tuple)) and bool(X) and all(isinstance(view, (Tensor, np.ndarray)) and view.ndim == 2 for view in X)

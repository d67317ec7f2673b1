"""What solvers for streams share: each image is answered when it arrives, then belongs to the state."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from torch import Tensor

from finelens.errors import UserError
from finelens.protocol import Hints
from finelens.solvers.base import Features, Solver, unit_rows
from finelens.solvers.estimator import check_fitted
from finelens.solvers.known import Known
from finelens.solvers.parameters import COUNT, SEED, Constraints, checked
from finelens.solvers.rows import CHUNK, FitRows

Self = TypeVar("Self", bound="OnlineSolver")


class OnlineSolver(Solver):
    """A solver that sees every image once.

    :meth:`begin` sets the first state, :meth:`stream` answers images one by one and changes the state, :meth:`partial_fit` takes a batch without
    answers. ``predict_proba`` asks the present state and changes nothing. :meth:`state` may be taken at any image; a solver that loads it goes on
    with the same answers. ``fit`` and ``fit_predict_proba`` stream the rows of X: hinted ones first, the others in an order drawn from ``seed``.

    A subclass writes ``_begin``, ``_arrive`` and ``_log_proba``.

    Args:
        seed: Order of the rows in ``fit``; it depends on their number alone.
        chunk_size: New images in work at a time.
    """

    _parameter_constraints: ClassVar[Constraints] = {"seed": SEED, "chunk_size": COUNT}

    def __init__(self, *, seed: int = 0, chunk_size: int = 4096) -> None:
        self.seed = seed
        self.chunk_size = chunk_size

    @abstractmethod
    def _begin(self, prototypes: Tensor, scale: float) -> None:
        """Set the fitted tensors before the first image, given unit prototypes (C, D), float64."""

    @abstractmethod
    def _arrive(self, x: Tensor, label: int | None) -> Tensor:
        """Take one image (D,), float64, into the state and return its log-probabilities (C,); ``label`` where a person gave it."""

    @checked
    def begin(self: Self, *, prototypes: Features, logit_scale: float = 100.0) -> Self:
        """Set the state before the first image.

        Args:
            prototypes: Text features of the classes, (C, D).
            logit_scale: The model's own multiplier of cosines.
        """
        w = unit_rows(prototypes, "prototypes")
        if not 0 < logit_scale < float("inf"):
            raise UserError(f"logit_scale must be above 0 and finite, got {logit_scale}")
        self.classes_ = np.arange(len(w))
        self.n_features_in_ = w.shape[1]
        self._begin(w.double(), float(logit_scale))
        return self

    def stream(self, X: Features) -> Iterator[Any]:
        """Answer rows in their order; each is answered when it is asked for and then belongs to the state.

        Args:
            X: Features (N, D); for a live stream call with one row each time.

        Yields:
            Probabilities (C,) of the kind that ``X`` is.
        """
        check_fitted(self)
        for row in self._checked(X):
            with torch.no_grad():
                p = self._arrive(row.double(), None).exp().to(row)
            yield p if isinstance(X, Tensor) else p.cpu().numpy()

    @checked
    def partial_fit(
        self: Self, X: Features, y: object = None, *, prototypes: Features | None = None, logit_scale: float = 100.0, hints: Hints | None = None
    ) -> Self:
        """Take rows into the state in their order.

        Args:
            X: Features (N, D).
            y: Ignored, present by convention.
            prototypes: Text features; needed for the first rows, ignored afterwards.
            logit_scale: As ``prototypes``.
            hints: Classes of some rows; rows of no class (-1) are passed over.
        """
        if not hasattr(self, "classes_"):
            if prototypes is None:
                raise UserError("partial_fit needs prototypes with the first rows")
            self.begin(prototypes=prototypes, logit_scale=logit_scale)
        labels = {} if hints is None else dict(zip(hints.index.tolist(), hints.label.tolist(), strict=True))
        for position, row in enumerate(self._checked(X)):
            label = labels.get(position)
            if label != -1:
                with torch.no_grad():
                    self._arrive(row.double(), label)
        return self

    def state(self) -> dict[str, Tensor]:
        """A copy of the fitted tensors by name: all that going on needs."""
        return {name: tensor.clone() for name, tensor in super().state().items()}

    def load_state(self: Self, state: dict[str, Tensor], *, classes: int, features: int) -> Self:
        """Take a copy of what :meth:`state` gave; arguments as in :class:`~finelens.solvers.base.Solver`."""
        return super().load_state({name: tensor.clone() for name, tensor in state.items()}, classes=classes, features=features)

    def _checked(self, X: Features) -> Tensor:
        if self.others is not None:
            raise UserError("with other classes than those it began with a stream can be asked (predict_proba), but takes no further image")
        x = unit_rows(X, "X")
        if x.shape[1] != self.n_features_in_:
            raise UserError(f"X has {x.shape[1]} columns, but the stream began with {self.n_features_in_}; use features of the same model")
        reference: Tensor = getattr(self, self.state_names[0])
        return x.to(reference.device)

    def _fit(self, x: Tensor, prototypes: Tensor, scale: float, known: Known) -> Tensor:
        self._begin(prototypes.double(), scale)
        given, order = self._order(len(x), known)
        answers = x.new_empty(len(x), len(prototypes))
        for row in order:
            answers[row] = self._arrive(x[row].double(), given.get(row)).to(x)
        return answers

    def _fit_passes(self, rows: FitRows, prototypes: Tensor, scale: float) -> None:
        self._begin(prototypes.double(), scale)
        given, order = self._order(len(rows), rows.known)
        for part in torch.tensor(order).split(CHUNK):
            for row, x in zip(part.tolist(), rows.at(part), strict=True):
                self._arrive(x.double(), given.get(row))

    def _order(self, count: int, known: Known) -> tuple[dict[int, int], list[int]]:
        """Classes by hinted row, and the order of all rows."""
        rows, labels = known.ordered()
        given = dict(zip(rows.tolist(), labels.tolist(), strict=True))
        order = torch.randperm(count, generator=torch.Generator().manual_seed(self.seed)).tolist()
        return given, [*given, *(row for row in order if row not in given)]

    def _log_proba(self, x: Tensor) -> Tensor:
        return torch.cat([self._score(chunk.double()) for chunk in x.split(self.chunk_size)]).to(x)

    @abstractmethod
    def _score(self, x: Tensor) -> Tensor:
        """Log-probabilities (M, C) of rows (M, D), float64, by the present state."""

"""One interface for all training-free solvers: a scikit-learn classifier that is fitted on features and prototypes, never on labels."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike
from torch import Tensor

from finelens.errors import UserError
from finelens.protocol import Hints, Rows, Tested
from finelens.solvers.estimator import Estimator, check_fitted
from finelens.solvers.known import Known, split_hints
from finelens.solvers.other_classes import OtherClasses, check_kept
from finelens.solvers.parameters import Constraints, check_parameters, checked
from finelens.solvers.rows import FitRows

Self = TypeVar("Self", bound="Solver")
Features = Tensor | ArrayLike


class Solver(Estimator, ABC):
    """Classifies images from their features and one text prototype a class, with the statistics of the unlabelled images.

    ``fit`` and ``predict_proba`` are the inductive use (new images), ``fit_predict_proba`` the transductive one (the images of the fit themselves,
    which may use more than the fitted state). Rows of features and prototypes are brought to unit norm; a zero row stays zero.

    A subclass names its fitted tensors in ``state_names``, says in ``_parameter_constraints`` what its parameters may be, and writes ``_fit`` and
    ``_log_proba``. Tensors stay on the device of the features. As a method it has its parameters as options, save those in ``internal``, which say
    how to compute and not what.

    For class names that come after the fit the text speaks (:class:`~finelens.solvers.other_classes.OtherClasses`), unless a subclass writes
    ``_take_classes``; ``new_classes`` says so to the registry.

    Attributes:
        classes_: Class indices 0 to C - 1, in the order of the prototypes.
        n_features_in_: Feature width D.
        tested_: What the hints say of the fit; None where the solver does not tell. No part of the model.
    """

    tested_: Tested | None = None
    state_names: ClassVar[tuple[str, ...]]
    _parameter_constraints: ClassVar[Constraints]
    internal: ClassVar[frozenset[str]] = frozenset({"chunk_size", "tol", "seed"})
    new_classes: ClassVar[str] = "text"
    # Fitted tensors that models of before do not hold, and that new classes alone need.
    late_state: ClassVar[frozenset[str]] = frozenset()
    others: OtherClasses | None = None

    @abstractmethod
    def _fit(self, x: Tensor, prototypes: Tensor, scale: float, known: Known) -> Tensor:
        """Set the fitted tensors and return log-probabilities (N, C) of the rows of ``x`` (N, D) under unit prototypes (C, D).

        The posteriors of ``known`` rows are one-hot in every statistic; what is returned for them is replaced by that.
        """

    @abstractmethod
    def _log_proba(self, x: Tensor) -> Tensor:
        """Log-probabilities (M, C) of new rows (M, D) by the fitted tensors; each row counts for itself."""

    def _fit_passes(self, rows: FitRows, prototypes: Tensor, scale: float) -> None:
        """Set the fitted tensors by passes over rows that memory does not hold, under unit prototypes (C, D).

        Unless a subclass says how, those of a fit to rows that are evenly spread, the hinted ones besides.
        """
        x, known = rows.part()
        self._fit(x, prototypes, scale, known)

    @checked
    def fit(
        self: Self, X: Features | Rows, y: object = None, *, prototypes: Features, logit_scale: float = 100.0, hints: Hints | None = None
    ) -> Self:
        """Take the statistics of unlabelled images.

        Args:
            X: Features (N, D), or a source of them for more than memory holds: what the fit is then, docs/scale.md says for each solver.
            y: Ignored, present by convention; labels never reach a solver.
            prototypes: Text features of the classes, (C, D).
            logit_scale: Multiplier of cosines in the text posterior: the model's own.
            hints: Classes that a person gave for some rows of X, on purpose. Their posteriors are one-hot throughout; rows of no class (-1) are left
                out of the statistics.

        Raises:
            ParameterError: A parameter of the solver has a value that it cannot have.
            UserError: Shapes do not fit, a value is not finite, hints name what is not there, or there is nothing to fit.
        """
        if isinstance(X, Rows):
            self._run_passes(X, prototypes, logit_scale, hints)
        else:
            self._run(X, prototypes, logit_scale, hints)
        return self

    @checked
    def fit_predict_proba(
        self, X: Features, y: object = None, *, prototypes: Features, logit_scale: float = 100.0, hints: Hints | None = None
    ) -> Any:
        """Class probabilities (N, C) of the images that the solver is fitted on; arguments as for :meth:`fit`.

        A hinted row has probability 1 for its class; a row of no class is answered as a new image.
        """
        if isinstance(X, Rows):
            raise UserError("a fit by passes does not hold the answers for all rows: call fit, and ask predict_proba some rows at a time")
        # In place: there are N x C of them, and only the caller has use for them.
        return _like(X, self._run(X, prototypes, logit_scale, hints).exp_())

    def predict_log_proba(self, X: Features) -> Any:
        """Log-probabilities (M, C) of new images (M, D), of the kind that ``X`` is (array or tensor)."""
        check_fitted(self)
        x = self._new_rows(X)
        reference: Tensor = getattr(self, self.state_names[0])
        with torch.no_grad():
            x = x.to(reference.device)
            found = self._log_proba(x)
            if self.others is not None:
                found = self.others.answer(found, x[:, : self.others.text.shape[1]]).log_softmax(1)
            return _like(X, found)

    def predict_proba(self, X: Features) -> Any:
        """Class probabilities (M, C) of new images (M, D)."""
        log_proba = self.predict_log_proba(X)
        return log_proba.exp() if isinstance(log_proba, Tensor) else np.exp(log_proba)

    def predict(self, X: Features) -> Any:
        """Class indices (M,) of new images (M, D)."""
        return self.predict_log_proba(X).argmax(1)

    def with_classes(self: Self, kept: Sequence[int], *, prototypes: Features, logit_scale: float = 100.0) -> Self:
        """The fitted solver for another list of classes, without a new fit; this one stays as it is.

        Args:
            kept: For each class of the other list its index among those of the fit, -1 for a new class.
            prototypes: Text features of the other list, (C', D).
            logit_scale: As in the fit.

        Raises:
            UserError: ``kept`` and ``prototypes`` do not fit each other or the solver, or this solver has other classes already.
        """
        check_fitted(self)
        if self.others is not None:
            raise UserError("this solver answers for other classes than it was fitted for: ask the one that was fitted")
        w = unit_rows(prototypes, "prototypes")
        places = check_kept(kept, len(self.classes_), len(w))
        other = copy.copy(self)
        other.classes_ = np.arange(len(w))
        if not other._take_classes(places, w, float(logit_scale)):
            other.others = OtherClasses(places, logit_scale * w)
        return other

    def _take_classes(self, kept: Tensor, prototypes: Tensor, scale: float) -> bool:
        """Bring the fitted tensors to another list of classes by the solver's own equations; False where it has none, or lacks what they need.

        Args:
            kept: See :class:`~finelens.solvers.other_classes.OtherClasses`, (C',).
            prototypes: Unit rows (C', D).
            scale: Multiplier of cosines.
        """
        return False

    def notes(self) -> list[str]:
        """What the fit decided and the user should know, one line each; read after ``fit``."""
        return []

    def state(self) -> dict[str, Tensor]:
        """The fitted tensors by name: all that prediction needs."""
        check_fitted(self)
        if self.others is not None:
            raise UserError("a solver with other classes than those of its fit is not kept: keep the one that was fitted, and the other list")
        return {name: getattr(self, name) for name in self.state_names}

    def load_state(self: Self, state: dict[str, Tensor], *, classes: int, features: int) -> Self:
        """Take fitted tensors that :meth:`state` gave.

        Args:
            state: Tensors by name.
            classes: Number of classes C.
            features: Feature width D.
        """
        for name in self.state_names:
            setattr(self, name, state[name])
        self.classes_ = np.arange(classes)
        self.n_features_in_ = features
        return self

    def _validate_params(self) -> None:
        check_parameters(self._parameter_constraints, self.get_params(), type(self).__name__)

    def _new_rows(self, X: Features) -> Tensor:
        x = unit_rows(X, "X")
        if x.shape[1] != self.n_features_in_:
            raise UserError(
                f"X has {x.shape[1]} columns, but {type(self).__name__} was fitted on {self.n_features_in_}; use features of the same model"
            )
        return x

    def _run(self, X: Features, prototypes: Features, logit_scale: float, hints: Hints | None) -> Tensor:
        return self._solve([unit_rows(X, "X")], prototypes, logit_scale, hints)

    @torch.no_grad()
    def _run_passes(self, rows: Rows, prototypes: Features, logit_scale: float, hints: Hints | None) -> None:
        """Check, and fit by passes."""
        w = self._begin_fit(rows.widths, prototypes, logit_scale)
        kept, known = split_hints(hints, len(rows), len(w), torch.device("cpu"))
        self._fit_passes(FitRows(rows, kept, known), w.float(), float(logit_scale))

    def _begin_fit(self, widths: Sequence[int], prototypes: Features, logit_scale: float) -> Tensor:
        """The unit prototypes (C, D_1), checked."""
        w = unit_rows(prototypes, "prototypes")
        if widths[0] != w.shape[1]:
            raise UserError(f"X has {widths[0]} columns and prototypes {w.shape[1]}; give features and prototypes of the same model")
        if not 0 < logit_scale < float("inf"):
            raise UserError(f"logit_scale must be above 0 and finite, got {logit_scale}")
        self.classes_ = np.arange(len(w))
        self.n_features_in_ = sum(widths)
        return w

    @torch.no_grad()
    def _solve(self, views: list[Tensor], prototypes: Features, logit_scale: float, hints: Hints | None) -> Tensor:
        """Check, and fit to the columns of all views; the prototypes belong to the first."""
        w = self._begin_fit([view.shape[1] for view in views], prototypes, logit_scale)
        x = views[0] if len(views) == 1 else torch.cat(views, 1)
        kept, known = split_hints(hints, len(x), len(w), x.device)
        if kept is None:
            return known.clamp(self._fit(x, w.to(x), float(logit_scale), known))
        fitted = known.clamp(self._fit(x[kept], w.to(x), float(logit_scale), known))
        answers = self._log_proba(x)
        answers[kept] = fitted.to(answers)
        return answers


def unit_rows(values: Features, what: str) -> Tensor:
    """A non-empty matrix with unit rows, in float64 if it came so and else in float32.

    Raises:
        UserError: Not such a matrix; ``what`` names it.
    """
    if isinstance(values, (list, tuple)) and values and all(isinstance(part, (Tensor, np.ndarray)) and part.ndim == 2 for part in values):
        raise UserError(f"{what} must be one matrix, got {len(values)}; only Consensus, JointGmm and SelfAdaptiveOt take features of several models")
    try:
        x = values.detach() if isinstance(values, Tensor) else torch.from_numpy(np.array(values))
    except (TypeError, ValueError) as error:
        raise UserError(f"{what} must be a matrix of numbers, one row each ({error})") from None
    if x.ndim != 2 or not x.numel():
        raise UserError(f"{what} must be a matrix with at least one row and one column, got shape {tuple(x.shape)}")
    x = x if x.dtype is torch.float64 else x.float()
    # The extremes carry what is not finite, and take no memory.
    if not torch.isfinite(torch.stack(x.aminmax())).all():
        raise UserError(f"{what} holds values that are not finite; leave those rows out")
    return F.normalize(x, dim=-1)


def _like(given: Features, result: Tensor) -> Tensor | np.ndarray:
    first = given[0] if isinstance(given, (list, tuple)) else given
    return result if isinstance(first, Tensor) else result.cpu().numpy()

"""Few-shot Gaussian discriminant analysis in closed form.

Wang et al., "A Hard-to-Beat Baseline for Training-free CLIP-based Adaptation", ICLR 2024, section 3.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor

from finelens.errors import UserError
from finelens.solvers.base import Solver
from finelens.solvers.gaussians import (
    Shared,
    discriminant_of,
    linear_log_proba,
    logit_std,
    other_rows,
    precision_factor,
    second_moment,
    text_means,
    text_share,
)
from finelens.solvers.known import Known
from finelens.solvers.parameters import COUNT, Constraints, Word
from finelens.solvers.prior import estimate_prior
from finelens.solvers.rows import FitRows, linear, second_moment_of
from finelens.solvers.sampled_balance import prior_of

SHARED = ("shared_factor_", "shared_shift_", "shared_alpha_")


class Gda(Solver):
    """A linear classifier from the class means and the pooled covariance of labelled images, added to the text logits.

    The labelled images are the hints of the fit. The others give the weight of the Gaussian part, without labels: both parts have the same standard
    deviation over all images, as in :class:`~finelens.solvers.GdaEm`. A class without a labelled image keeps its text mean, moved by the distance of
    the centres of images and texts.

    Args:
        prior: Class frequencies: ``uniform``, those of the labelled images (``hints``, one image a class added), or ``estimated`` without labels from
            the answers under even ones.
        base_to_new: Of a class that comes after the fit: ``text`` as for any solver, or ``gaussian``: it has its text mean and the shared covariance,
            which the model then keeps.
        chunk_size: Images in work at a time.

    Attributes:
        coef_: Weights (C, D), float64: text and Gaussian parts together.
        intercept_: (C,), float64.
        alpha_: Weight of the Gaussian part.
        shared_factor_: What a later class is scored with (:class:`~finelens.solvers.gaussians.Shared`), (D, D), float32; empty unless asked for, like
            the two below.
        shared_shift_: (D,), float64.
        shared_alpha_: float64.
    """

    state_names: ClassVar[tuple[str, ...]] = ("coef_", "intercept_", *SHARED)
    late_state: ClassVar[frozenset[str]] = frozenset(SHARED)
    _parameter_constraints: ClassVar[Constraints] = {
        "prior": Word(frozenset({"uniform", "hints", "estimated"})),
        "base_to_new": Word(frozenset({"text", "gaussian"})),
        "chunk_size": COUNT,
    }

    def __init__(
        self,
        *,
        prior: Literal["uniform", "hints", "estimated"] = "uniform",
        base_to_new: Literal["text", "gaussian"] = "text",
        chunk_size: int = 4096,
    ) -> None:
        self.prior, self.base_to_new, self.chunk_size = prior, base_to_new, chunk_size

    def _fit(self, x: Tensor, prototypes: Tensor, scale: float, known: Known) -> Tensor:
        _check_labelled(known)
        self._learn(x[known.rows], known, prototypes.double(), scale, *second_moment(x, self.chunk_size))
        if self.prior != "uniform":
            self._prefer(self._frequencies(x, known))
        return self._log_proba(x)

    def _fit_passes(self, rows: FitRows, prototypes: Tensor, scale: float) -> None:
        known, classes = rows.known, len(prototypes)
        _check_labelled(known)
        self._learn(rows.at(known.rows), known, prototypes.double(), scale, *second_moment_of(rows))
        if self.prior == "hints":
            self._prefer(self._of_hints(known))
        elif self.prior == "estimated":
            self._prefer(prior_of(rows, "estimated", linear(self.coef_, self.intercept_), classes, self.chunk_size))

    def _learn(self, shots: Tensor, known: Known, w: Tensor, scale: float, mean: Tensor, second: Tensor) -> None:
        """The classifier under even classes, of labelled images (K, D) and the moments of all."""
        means, scatter = class_means(shots.double(), known.labels, text_means(w, mean))
        count = max(2, len(known))
        factor = precision_factor(scatter / (count - 1), count)
        weights, bias = discriminant_of(means, factor)
        self.alpha_ = text_share(logit_std(scale * w, 0.0, mean, second), weights, bias, mean, second)
        self.coef_, self.intercept_ = scale * w + self.alpha_ * weights, self.alpha_ * bias
        self.shared_factor_, self.shared_shift_, self.shared_alpha_ = (w.new_zeros(0) for _ in SHARED)
        if self.base_to_new == "gaussian":
            shared = Shared.of(factor, w, mean, self.alpha_)
            self.shared_factor_, self.shared_shift_, self.shared_alpha_ = shared.factor, shared.shift, shared.alpha

    def _prefer(self, frequencies: Tensor) -> None:
        frequent = frequencies.log()
        # Around their mean, which a later class has.
        self.intercept_ = self.intercept_ + frequent - frequent.mean()

    def _of_hints(self, known: Known) -> Tensor:
        classes = len(self.intercept_)
        return (known.counts(classes).to(self.intercept_) + 1) / (len(known) + classes)

    def _frequencies(self, x: Tensor, known: Known) -> Tensor:
        """Of the classes, (C,), float64."""
        if self.prior == "hints":
            return self._of_hints(known)
        return estimate_prior(known.clamp(self._log_proba(x)).exp()).to(self.intercept_)

    def _log_proba(self, x: Tensor) -> Tensor:
        return linear_log_proba(x, self.coef_, self.intercept_)

    def _take_classes(self, kept: Tensor, prototypes: Tensor, scale: float) -> bool:
        if not self.shared_factor_.numel():
            return False
        shared = Shared(self.shared_factor_, self.shared_shift_, self.shared_alpha_)
        rows, intercepts = shared.classifier(prototypes[kept < 0].to(shared.shift), scale)
        self.coef_, self.intercept_ = other_rows(kept, self.coef_, rows), other_rows(kept, self.intercept_, intercepts)
        return True


def _check_labelled(known: Known) -> None:
    if not len(known):
        raise UserError("gda learns from labelled images: give some with hints, at least one of a listed class")


def class_means(shots: Tensor, labels: Tensor, fallback: Tensor) -> tuple[Tensor, Tensor]:
    """Means of labelled images and their scatter around them.

    Args:
        shots: Features (K, D), float64.
        labels: Classes (K,).
        fallback: Means (C, D), float64, of classes without any.

    Returns:
        Means (C, D), and ``sum_k (x_k - mu_y)(x_k - mu_y)^T`` (D, D).
    """
    counts = torch.bincount(labels, minlength=len(fallback))[:, None]  # (C, 1)
    sums = torch.zeros_like(fallback).index_add_(0, labels, shots)
    means = torch.where(counts > 0, sums / counts.clamp_min(1), fallback)
    centred = shots - means[labels]  # (K, D)
    return means, centred.T @ centred

"""Few-shot Gaussian discriminant analysis in closed form.

Wang et al., "A Hard-to-Beat Baseline for Training-free CLIP-based Adaptation", ICLR 2024, section 3.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from finelens.errors import UserError
from finelens.solvers.base import Solver
from finelens.solvers.gaussians import discriminant, linear_log_proba, second_moment, text_means, text_share
from finelens.solvers.known import Known
from finelens.solvers.parameters import COUNT, Constraints


class Gda(Solver):
    """A linear classifier from the class means and the pooled covariance of labelled images, added to the text logits.

    The labelled images are the hints of the fit. The others give the weight of the Gaussian part, without labels: both parts have the same standard
    deviation over all images, as in :class:`~finelens.solvers.GdaEm`. A class without a labelled image keeps its text mean, moved by the distance of
    the centres of images and texts.

    Args:
        chunk_size: Images in work at a time.

    Attributes:
        coef_: Weights (C, D), float64: text and Gaussian parts together.
        intercept_: (C,), float64.
        alpha_: Weight of the Gaussian part.
    """

    state_names: ClassVar[tuple[str, ...]] = ("coef_", "intercept_")
    _parameter_constraints: ClassVar[Constraints] = {"chunk_size": COUNT}

    def __init__(self, *, chunk_size: int = 4096) -> None:
        self.chunk_size = chunk_size

    def _fit(self, x: Tensor, prototypes: Tensor, scale: float, known: Known) -> Tensor:
        if not len(known):
            raise UserError("gda learns from labelled images: give some with hints, at least one of a listed class")
        w = prototypes.double()
        mean, second = second_moment(x, self.chunk_size)
        means, scatter = class_means(x[known.rows].double(), known.labels, text_means(w, mean))
        count = max(2, len(known))
        weights, bias = discriminant(means, scatter / (count - 1), count)
        self.alpha_ = text_share(scale * w, weights, bias, mean, second)
        self.coef_, self.intercept_ = scale * w + self.alpha_ * weights, self.alpha_ * bias
        return self._log_proba(x)

    def _log_proba(self, x: Tensor) -> Tensor:
        return linear_log_proba(x, self.coef_, self.intercept_)


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

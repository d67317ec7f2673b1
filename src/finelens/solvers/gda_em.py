"""Gaussian discriminant analysis without labels: expectation maximisation started from the text posterior.

Classifier and precision matrix: Wang et al., "A Hard-to-Beat Baseline for Training-free CLIP-based Adaptation", ICLR 2024 (the unsupervised variant).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from finelens.solvers.base import Solver
from finelens.solvers.gaussians import TINY, discriminant, is_definite, linear_log_proba, second_moment, text_means, text_share
from finelens.solvers.known import Known
from finelens.solvers.parameters import COUNT, NOT_NEGATIVE, Constraints
from finelens.solvers.settling import is_many, sums_type


@dataclass
class Moments:
    """Sums over images that one M-step needs, float64.

    Attributes:
        mass: Posterior mass n_c, (C,).
        sums: Posterior-weighted sums of features, (C, D).
        scatter: ``sum_i r_i x_i x_i^T`` with ``r_i = sum_c gamma_ic / n_c``, (D, D).
    """

    mass: Tensor
    sums: Tensor
    scatter: Tensor


class GdaEm(Solver):
    """A linear classifier from class means and one covariance, both estimated from posteriors.

    The log-odds of the Gaussians are added to the text logits with the weight ``alpha`` that gives both the same standard deviation over the images
    (after centring over the classes, which a softmax does not see): neither side decides alone, and no label is asked. EM with this combination has
    no proof of ascent; it stops when posteriors stand still.

    Args:
        anchor: Pseudo-images a that hold a class mean at its text: ``mean = n / (n + a) v + a / (n + a) text``; a class without mass keeps its text.
        max_iter: Most EM rounds.
        tol: Stop when posteriors move less than this (mean over images of the L1 distance).
        chunk_size: Images in work at a time.

    Attributes:
        coef_: Weights (C, D), float64: text and Gaussian parts together.
        intercept_: (C,), float64.
        alpha_: Weight of the Gaussian part.
        n_iter_: Rounds that ran.
    """

    state_names: ClassVar[tuple[str, ...]] = ("coef_", "intercept_")
    _parameter_constraints: ClassVar[Constraints] = {"anchor": NOT_NEGATIVE, "max_iter": COUNT, "tol": NOT_NEGATIVE, "chunk_size": COUNT}

    def __init__(self, *, anchor: float = 1.0, max_iter: int = 10, tol: float = 1e-3, chunk_size: int = 1024) -> None:
        self.anchor, self.max_iter, self.tol, self.chunk_size = anchor, max_iter, tol, chunk_size

    def _fit(self, x: Tensor, prototypes: Tensor, scale: float, known: Known) -> Tensor:
        w = prototypes.double()
        mean, second = second_moment(x, self.chunk_size)
        anchors = text_means(w, mean)
        self.coef_, self.intercept_, self.alpha_ = scale * w, w.new_zeros(len(w)), 0.0
        log_gamma, spare = known.clamp(self._log_proba(x)), None
        kind = sums_type(x, len(w)) if is_many(x, len(w)) else torch.float64
        for round_ in range(1, self.max_iter + 1):
            self.n_iter_ = round_
            means, covariance = self._m_step(_moments(x, log_gamma, self.chunk_size, kind), anchors)
            if kind is not torch.float64 and not is_definite(covariance, len(x)):
                kind = torch.float64
                means, covariance = self._m_step(_moments(x, log_gamma, self.chunk_size, kind), anchors)
            weights, bias = discriminant(means, covariance, len(x))
            self.alpha_ = text_share(scale * w, weights, bias, mean, second)
            self.coef_, self.intercept_ = scale * w + self.alpha_ * weights, self.alpha_ * bias
            # Two posteriors take turns in the memory of the first two.
            spare = None if spare is None else known.clamp(linear_log_proba(x, self.coef_, self.intercept_, out=spare))
            previous, log_gamma = log_gamma, known.clamp(self._log_proba(x)) if spare is None else spare
            spare = previous
            if _mean_l1(previous, log_gamma, self.chunk_size) < self.tol:
                break
        return log_gamma

    def _m_step(self, moments: Moments, anchors: Tensor) -> tuple[Tensor, Tensor]:
        """Anchored means (C, D), and the covariance (D, D) as the mean over classes with mass of their own covariances."""
        present = moments.mass > TINY
        v = moments.sums / moments.mass.clamp_min(TINY)[:, None]  # (C, D)
        share = (moments.mass / (moments.mass + self.anchor)).where(present, 0.0)[:, None] if self.anchor else present.double()[:, None]  # (C, 1)
        own = v[present]
        return share * v + (1 - share) * anchors, (moments.scatter - own.T @ own) / len(own)

    def _log_proba(self, x: Tensor) -> Tensor:
        return linear_log_proba(x, self.coef_, self.intercept_)


def _moments(x: Tensor, log_gamma: Tensor, chunk_size: int, kind: torch.dtype) -> Moments:
    """Moments with products in the type ``kind``; chunks are added up in float64."""
    mass = torch.zeros(log_gamma.shape[1], dtype=torch.float64, device=x.device)
    sums = torch.zeros(len(mass), x.shape[1], dtype=torch.float64, device=x.device)
    for rows, part in zip(x.split(chunk_size), log_gamma.split(chunk_size), strict=True):
        gamma = _exp(part, kind)
        mass += gamma.sum(0, dtype=torch.float64)
        sums += gamma.to(kind).T @ rows.to(kind)
    scatter = torch.zeros(x.shape[1], x.shape[1], dtype=torch.float64, device=x.device)
    inverse = torch.where(mass > TINY, 1 / mass.clamp_min(TINY), 0.0)
    for rows, part in zip(x.split(chunk_size), log_gamma.split(chunk_size), strict=True):
        gamma = _exp(part, kind)
        scatter += (rows * (gamma @ inverse.to(gamma))[:, None]).to(kind).T @ rows.to(kind)
    return Moments(mass, sums, scatter)


def _exp(log_gamma: Tensor, kind: torch.dtype) -> Tensor:
    """The posterior in the wider of its own type and that of the products."""
    return log_gamma.to(torch.promote_types(log_gamma.dtype, kind)).exp()


def _mean_l1(before: Tensor, after: Tensor, chunk_size: int) -> float:
    """Mean over images of the L1 distance of two posteriors given as logarithms."""
    pairs = zip(before.split(chunk_size), after.split(chunk_size), strict=True)
    return float(sum(torch.linalg.vector_norm(a.exp().sub_(b.exp()), 1).double() for a, b in pairs)) / len(before)

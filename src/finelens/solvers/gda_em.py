"""Gaussian discriminant analysis without labels: expectation maximisation started from the text posterior.

Classifier and precision matrix: Wang et al., "A Hard-to-Beat Baseline for Training-free CLIP-based Adaptation", ICLR 2024 (the unsupervised variant).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from finelens.solvers.base import Solver
from finelens.solvers.chunks import chunks
from finelens.solvers.gaussians import (
    TINY,
    definite_factor,
    discriminant_of,
    linear_log_proba,
    logit_std,
    precision_factor,
    second_moment,
    text_means,
    text_share,
)
from finelens.solvers.known import Known
from finelens.solvers.parameters import COUNT, NOT_NEGATIVE, Constraints
from finelens.solvers.rows import FitRows, Score, Sums, linear, second_moment_of, sum_type
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
        w, many = prototypes.double(), is_many(x, len(prototypes))
        mean, second = second_moment(x, self.chunk_size, x.dtype if many else torch.float64)
        rounds = _Rounds(x, known, len(w), self.chunk_size, sums_type(x, len(w)) if many else torch.float64)
        self._maximise(rounds, w, scale, mean, second, len(x))
        return linear_log_proba(x, self.coef_, self.intercept_, out=rounds.gamma)

    def _fit_passes(self, rows: FitRows, prototypes: Tensor, scale: float) -> None:
        w = prototypes.double()
        mean, second = second_moment_of(rows)
        self._maximise(_RoundsByPasses(rows, len(w)), w, scale, mean, second, len(rows))

    def _maximise(self, rounds: _Rounds | _RoundsByPasses, w: Tensor, scale: float, mean: Tensor, second: Tensor, count: int) -> None:
        """The rounds, on ``count`` images of these moments."""
        anchors, text = text_means(w, mean), logit_std(scale * w, 0.0, mean, second)
        self.coef_, self.intercept_, self.alpha_ = scale * w, w.new_zeros(len(w)), 0.0
        moments = rounds.next(self.coef_, self.intercept_)
        for round_ in range(1, self.max_iter + 1):
            self.n_iter_ = round_
            means, covariance = self._m_step(moments, anchors)
            factor = definite_factor(covariance, count)
            if factor is None:
                means, covariance = self._m_step(rounds.in_full(), anchors)
                factor = precision_factor(covariance, count)
            weights, bias = discriminant_of(means, factor)
            self.alpha_ = text_share(text, weights, bias, mean, second)
            self.coef_, self.intercept_ = scale * w + self.alpha_ * weights, self.alpha_ * bias
            # The last posteriors are asked for as logarithms, and nothing is summed over them.
            if round_ < self.max_iter:
                moments = rounds.next(self.coef_, self.intercept_)
                if rounds.moved < self.tol:
                    break

    def _m_step(self, moments: Moments, anchors: Tensor) -> tuple[Tensor, Tensor]:
        """Anchored means (C, D), and the covariance (D, D) as the mean over classes with mass of their own covariances."""
        present = moments.mass > TINY
        v = moments.sums / moments.mass.clamp_min(TINY)[:, None]  # (C, D)
        share = (moments.mass / (moments.mass + self.anchor)).where(present, 0.0)[:, None] if self.anchor else present.double()[:, None]  # (C, 1)
        own = v[present]
        return share * v + (1 - share) * anchors, (moments.scatter - own.T @ own) / len(own)

    def _log_proba(self, x: Tensor) -> Tensor:
        return linear_log_proba(x, self.coef_, self.intercept_)


class _Rounds:
    """Posteriors of all images, one matrix that every round overwrites: product, softmax and sums of a chunk while it is in the processor's cache.

    Args:
        x: Unit rows (N, D).
        known: Rows whose posterior is given.
        classes: C.
        chunk_size: Images in work at a time.
        kind: Type of the products that are summed over images; chunks are added up in the wider of it and that of x.

    Attributes:
        gamma: Posteriors (N, C), in the type of x.
        moved: Mean over images of the L1 distance from the posteriors of the round before.
    """

    def __init__(self, x: Tensor, known: Known, classes: int, chunk_size: int, kind: torch.dtype) -> None:
        self.x, self.kind, self.moved, self._chunks = x, kind, 0.0, chunks(len(x), chunk_size)
        self.gamma = x.new_zeros(len(x), classes)
        self.gamma[known.rows, known.labels] = 1.0
        self._given = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        self._given[known.rows] = True
        # Rounded once for all rounds, not widened.
        self._rows = x.to(kind) if kind is torch.bfloat16 else x
        self._logits = x.new_empty(min(chunk_size, len(x)), classes)

    def next(self, coef: Tensor, intercept: Tensor) -> Moments:
        """Posteriors under weights (C, D) and biases (C,), and their moments."""
        return self._moments(self._posteriors(coef.to(self.x).T, intercept.to(self.x)))

    def in_full(self) -> Moments:
        """Moments of the posteriors that are there, from now on with products in float64."""
        self.kind, self._rows = torch.float64, self.x
        return self._moments((at, self.gamma[at]) for at in self._chunks)

    def _posteriors(self, weights: Tensor, bias: Tensor) -> Iterator[tuple[slice, Tensor]]:
        moved = 0.0
        for at in self._chunks:
            rows, before, given = self.x[at], self.gamma[at], self._given[at]
            part = torch.addmm(bias, rows, weights, out=self._logits[: len(rows)])
            torch.softmax(part, 1, out=part)
            if bool(given.any()):
                part[given] = before[given]
            moved += float(before.sub_(part).abs_().sum())
            before.copy_(part)
            yield at, part
        self.moved = moved / len(self.x)

    def _moments(self, posteriors: Iterable[tuple[slice, Tensor]]) -> Moments:
        (_, classes), width = self.gamma.shape, self.x.shape[1]
        zero = self.gamma.new_zeros(1, dtype=torch.promote_types(self.gamma.dtype, self.kind))
        mass, sums, scatter = zero.new_zeros(classes), zero.new_zeros(classes, width), zero.new_zeros(width, width)
        for at, part in posteriors:
            mass += part.to(zero).sum(0)
            sums += part.to(self.kind).T @ self._rows[at].to(self.kind)
        # Roots, so that the product is one of a matrix with itself.
        inverse = torch.where(mass > TINY, 1 / mass.clamp_min(TINY), 0.0)
        for at in self._chunks:
            root = (self.gamma[at].to(zero) @ inverse).sqrt_()
            rows = self._rows[at].to(self.kind) * root[:, None].to(self.kind)
            scatter += rows.T @ rows
        return Moments(mass.double(), sums.double(), scatter.double())


class _RoundsByPasses:
    """The same without the posteriors: two passes a round, since what an image counts in the scatter takes the masses of all; how far posteriors move
    is seen on a sample.

    Args:
        rows: The images.
        classes: C.

    Attributes:
        moved: As of :class:`_Rounds`, of the sample.
    """

    def __init__(self, rows: FitRows, classes: int) -> None:
        self._rows, self._classes, self.moved = rows, classes, 0.0
        self._positions = rows.sampled()
        self._x = rows.at(self._positions)
        self._gamma = torch.zeros(len(self._x), classes)
        self._score: Score = linear(torch.zeros(classes, rows.width))

    def next(self, coef: Tensor, intercept: Tensor) -> Moments:
        """Moments of the posteriors under weights (C, D) and biases (C,)."""
        self._score = linear(coef, intercept)
        gamma = self._rows.clamp_(self._positions, self._score(self._positions, self._x)).softmax(1)
        self.moved = float(self._gamma.sub_(gamma).abs_().sum()) / len(gamma)
        self._gamma = gamma
        return self._moments(sum_type())

    def in_full(self) -> Moments:
        """The same with products in float64."""
        return self._moments(torch.float64)

    def _moments(self, kind: torch.dtype) -> Moments:
        found, width = Sums.of(self._rows, self._score, self._classes, kind=kind), self._rows.width
        inverse = torch.where(found.mass > TINY, 1 / found.mass.clamp_min(TINY), 0.0).float()
        scatter = torch.zeros(width, width, dtype=torch.float64)
        for at, x in self._rows.each():
            z = self._rows.clamp_(at, self._score(at, x))
            torch.softmax(z, 1, out=z)
            rows = (x * (z @ inverse).sqrt_()[:, None]).to(kind)
            scatter += rows.T @ rows
        return Moments(found.mass, found.sums, scatter)

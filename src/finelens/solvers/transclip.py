"""TransCLIP, zero-shot form (Zanella, Gérin, Ben Ayed: "Boosting Vision-Language Models with Transduction", NeurIPS 2024)."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from finelens.solvers.assignments import likelihood_weight, mean_square, update_assignments, weighted_sums
from finelens.solvers.base import Solver
from finelens.solvers.known import Known
from finelens.solvers.neighbours import symmetric_affinity
from finelens.solvers.parameters import COUNT, POSITIVE, Constraints
from finelens.solvers.rows import FitRows, Moments, TopRows
from finelens.solvers.settling import Settling, is_many
from finelens.solvers.settling_passes import SettlingPasses

TINY = 1e-12


class TransClip(Solver):
    """A Gaussian mixture with one diagonal covariance, held to the text posterior and smoothed over nearest neighbours.

    The number of classes is that of the prototypes; a class without mass keeps its last mean. New images are scored by text and mixture alone.

    Args:
        neighbours: Neighbours of an image.
        temperature: Divisor of the log-likelihood at 512 coordinates; it grows with the width.
        confident: Images per class that its first mean is made of, those of largest text posterior.
        rounds: Rounds of assignments, means and variance.
        inner_rounds: Updates of the assignments in a round.
        chunk_size: Images in work at a time.

    Attributes:
        means_: (C, D), float64, unit rows.
        variance_: (D,), float64.
        text_: Scaled prototypes (C, D), float64.
    """

    state_names: ClassVar[tuple[str, ...]] = ("means_", "variance_", "text_")
    internal: ClassVar[frozenset[str]] = Solver.internal | {"inner_rounds"}
    means_: Tensor
    variance_: Tensor
    _parameter_constraints: ClassVar[Constraints] = {
        **dict.fromkeys(("neighbours", "confident", "rounds", "inner_rounds", "chunk_size"), COUNT),
        "temperature": POSITIVE,
    }

    def __init__(
        self, *, neighbours: int = 3, temperature: float = 50.0, confident: int = 8, rounds: int = 10, inner_rounds: int = 5, chunk_size: int = 1024
    ) -> None:
        self.neighbours, self.temperature, self.confident, self.rounds, self.inner_rounds = neighbours, temperature, confident, rounds, inner_rounds
        self.chunk_size = chunk_size

    def _fit(self, x: Tensor, prototypes: Tensor, scale: float, known: Known) -> Tensor:
        self.text_ = scale * prototypes.double()
        if is_many(x, len(prototypes)):
            return self._settle(x, known)
        log_y = known.clamp(_text_posterior(x, self.text_))
        z = log_y.exp()
        self._start(x, z)
        graph = symmetric_affinity(x, self.neighbours, chunk_size=self.chunk_size)
        squares = mean_square(x, self.chunk_size)
        weight = 1 / (2 * self.neighbours)
        for _ in range(self.rounds):
            likelihood = self._likelihood(x)
            z = update_assignments(log_y, likelihood, graph, z, neighbour_weight=weight, steps=self.inner_rounds).exp()
            self._m_step(x, z, squares)
        likelihood = self._likelihood(x)
        return update_assignments(log_y, likelihood, graph, z, neighbour_weight=weight, steps=1)

    def _settle(self, x: Tensor, known: Known) -> Tensor:
        graph = symmetric_affinity(x, self.neighbours, chunk_size=self.chunk_size) / (2 * self.neighbours)
        many = Settling(x, graph, known, len(self.text_), squares=False)
        many.start(self.text_)
        self._start(x, many.z)
        return many.settle(*self._steps(many, mean_square(x, self.chunk_size), len(x)), self.rounds)

    def _fit_passes(self, rows: FitRows, prototypes: Tensor, scale: float) -> None:
        self.text_ = scale * prototypes.double()
        many, top = SettlingPasses(rows, self.neighbours, len(prototypes), squares=False), TopRows(self.confident, len(prototypes))
        many.start(self.text_, top)
        self.means_ = top.means(rows)
        self.variance_ = torch.full((rows.width,), 1 / rows.width, dtype=torch.float64)
        many.settle(*self._steps(many, Moments.of(rows).squares, len(rows)), self.rounds)

    def _steps(
        self, many: Settling | SettlingPasses, squares: Tensor, count: int
    ) -> tuple[Callable[[], tuple[Tensor, None, Tensor]], Callable[[], None]]:
        """What the statistics add to the text's logits, and the statistics by the sums, of ``count`` images with these mean squares (D,)."""
        weight = likelihood_weight(self.temperature, len(squares))

        def scores() -> tuple[Tensor, None, Tensor]:
            scaled, constant = shared_parameters(self.means_, self.variance_)
            return weight * scaled, None, weight * constant

        def update() -> None:
            self.means_, self.variance_ = statistics_of_sums(many.sums, many.mass, squares, self.means_, count)

        return scores, update

    def _start(self, x: Tensor, z: Tensor) -> None:
        dim = x.shape[1]
        self.means_ = confident_means(x, z, self.confident)
        self.variance_ = torch.full((dim,), 1 / dim, dtype=torch.float64, device=x.device)

    def _likelihood(self, x: Tensor) -> Tensor:
        weight = likelihood_weight(self.temperature, x.shape[1])
        return shared_log_likelihood(x, self.means_, self.variance_).mul_(weight)

    def _m_step(self, x: Tensor, z: Tensor, squares: Tensor) -> None:
        self.means_, self.variance_ = unit_statistics(x, z, squares, self.means_, self.chunk_size)

    def _log_proba(self, x: Tensor) -> Tensor:
        return (_text_posterior(x, self.text_) + self._likelihood(x)).log_softmax(1)


def _text_posterior(x: Tensor, text: Tensor) -> Tensor:
    return (x @ text.to(x).T).log_softmax(1)


def confident_means(x: Tensor, z: Tensor, count: int) -> Tensor:
    """Unit means (C, D), float64, of the ``count`` images of largest posterior in each class, weighted by it."""
    weights, index = z.topk(min(count, len(z)), dim=0)  # (count, C)
    total = torch.zeros(z.shape[1], x.shape[1], dtype=torch.float64, device=x.device)
    for weight, rows in zip(weights, index, strict=True):
        total += weight.double()[:, None] * x[rows].double()  # (C, D)
    return F.normalize(total, dim=1)


def unit_statistics(x: Tensor, z: Tensor, squares: Tensor, before: Tensor, chunk_size: int) -> tuple[Tensor, Tensor]:
    """Unit means (C, D) and one diagonal variance (D,), float64, of images by their posteriors alone.

    Args:
        x: (N, D).
        z: Posteriors (N, C).
        squares: Mean of ``x^2``, (D,).
        before: Means (C, D) that classes without mass keep.
        chunk_size: Images in work at a time.
    """
    return statistics_of_sums(weighted_sums(x, z, chunk_size), z.sum(0, dtype=torch.float64), squares, before, len(x))


def statistics_of_sums(sums: Tensor, mass: Tensor, squares: Tensor, before: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The same from ``z^T x`` (C, D) and masses (C,) over ``count`` images."""
    means = F.normalize(sums, dim=1).where((sums.norm(dim=1) > TINY)[:, None], before)  # (C, D)
    deviation = squares + (mass[:, None] * means.square() - 2 * sums * means).sum(0) / count  # (D,)
    return means, floor_variance(deviation)


def shared_log_likelihood(x: Tensor, means: Tensor, variance: Tensor) -> Tensor:
    """``- sum_d (x - mu_c)^2 / (2 s_d)`` (N, C) without what all classes share."""
    scaled, constant = shared_parameters(means, variance)
    return torch.addmm(constant.to(x), x, scaled.to(x).T)


def shared_parameters(means: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """Weights (C, D) and constants (C,) of that log-likelihood."""
    scaled = means / variance  # (C, D)
    return scaled, -0.5 * (scaled * means).sum(1)


def floor_variance(variance: Tensor) -> Tensor:
    """Variances no smaller than a thousandth of an isotropic unit vector's, 1 / D: duplicates alone would give 0."""
    return variance.clamp_min(1e-3 / variance.shape[-1])

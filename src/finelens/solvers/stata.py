"""StatA (Zanella, Fuchs, De Vleeschouwer, Ben Ayed: "Realistic Test-Time Adaptation of Vision-Language Models", CVPR 2025)."""

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
from finelens.solvers.rows import FitRows, Moments
from finelens.solvers.settling import Settling, is_many
from finelens.solvers.settling_passes import SettlingPasses
from finelens.solvers.transclip import floor_variance


class StatA(Solver):
    """A Gaussian mixture whose classes are held at their text statistics by a penalty that weakens with the number of images of the class.

    A class that no image is assigned to stays exactly at its text mean and the common first variance, so absent classes do no harm.

    Args:
        anchor: Pseudo-images alpha behind the text statistics of each class.
        neighbours: Neighbours of an image.
        temperature: Divisor of the log-likelihood at 512 coordinates; it grows with the width.
        rounds: Rounds of assignments and statistics.
        inner_rounds: Updates of the assignments in a round.
        chunk_size: Images in work at a time.

    Attributes:
        means_: (C, D), float64, unit rows.
        variances_: (C, D), float64.
        text_: Scaled prototypes (C, D), float64.
    """

    state_names: ClassVar[tuple[str, ...]] = ("means_", "variances_", "text_")
    internal: ClassVar[frozenset[str]] = Solver.internal | {"inner_rounds"}
    _parameter_constraints: ClassVar[Constraints] = {
        **dict.fromkeys(("anchor", "temperature"), POSITIVE),
        **dict.fromkeys(("neighbours", "rounds", "inner_rounds", "chunk_size"), COUNT),
    }

    def __init__(
        self, *, anchor: float = 1.0, neighbours: int = 3, temperature: float = 50.0, rounds: int = 10, inner_rounds: int = 5, chunk_size: int = 1024
    ) -> None:
        self.anchor, self.neighbours, self.temperature, self.rounds, self.inner_rounds = anchor, neighbours, temperature, rounds, inner_rounds
        self.chunk_size = chunk_size

    def _fit(self, x: Tensor, prototypes: Tensor, scale: float, known: Known) -> Tensor:
        text = prototypes.double()
        self.text_ = scale * text
        if is_many(x, len(text)):
            return self._settle(x, text, known)
        log_y = known.clamp((x @ self.text_.to(x).T).log_softmax(1))
        z = log_y.exp()
        # The deviation is divided by N once, after all images are summed.
        sums, mass = weighted_sums(x, z, self.chunk_size), z.sum(0, dtype=torch.float64)
        first = self._start(mean_square(x, self.chunk_size), mass, sums, text, len(x))
        graph = symmetric_affinity(x, self.neighbours, chunk_size=self.chunk_size)
        weight = 1 / (2 * self.neighbours)
        for _ in range(self.rounds):
            likelihood = self._likelihood(x)
            z = update_assignments(log_y, likelihood, graph, z, neighbour_weight=weight, steps=self.inner_rounds).exp()
            self._m_step(x, z, text, first)
        likelihood = self._likelihood(x)
        return update_assignments(log_y, likelihood, graph, z, neighbour_weight=weight, steps=1)

    def _settle(self, x: Tensor, text: Tensor, known: Known) -> Tensor:
        graph = symmetric_affinity(x, self.neighbours, chunk_size=self.chunk_size) / (2 * self.neighbours)
        many = Settling(x, graph, known, len(text), squares=True)
        many.start(self.text_)
        return many.settle(*self._steps(many, mean_square(x, self.chunk_size), text, len(x)), self.rounds)

    def _fit_passes(self, rows: FitRows, prototypes: Tensor, scale: float) -> None:
        text = prototypes.double()
        self.text_ = scale * text
        many = SettlingPasses(rows, self.neighbours, len(text), squares=True)
        many.start(self.text_)
        many.settle(*self._steps(many, Moments.of(rows).squares, text, len(rows)), self.rounds)

    def _steps(
        self, many: Settling | SettlingPasses, squares: Tensor, text: Tensor, count: int
    ) -> tuple[Callable[[], tuple[Tensor, Tensor, Tensor]], Callable[[], None]]:
        """What the statistics add to the text's logits, and the statistics by the sums, of ``count`` images with these mean squares (D,)."""
        first = self._start(squares, many.mass, many.sums, text, count)
        weight = likelihood_weight(self.temperature, text.shape[1])

        def scores() -> tuple[Tensor, Tensor, Tensor]:
            linear, square, constant = natural_parameters(self.means_, self.variances_)
            return weight * linear, weight * square, weight * constant

        def update() -> None:
            hits = torch.bincount(many.best, minlength=len(text)).double()
            self._update(hits, many.mass, many.sums, many.squares, text, first)

        return scores, update

    def _start(self, squares: Tensor, mass: Tensor, sums: Tensor, text: Tensor, count: int) -> Tensor:
        """Means at the texts, with the variance (D,) of the text posteriors around them, which is returned."""
        first = floor_variance(squares + (mass[:, None] * text.square() - 2 * sums * text).sum(0) / count)
        self.means_, self.variances_ = text, first.expand_as(text).clone()
        return first

    def _likelihood(self, x: Tensor) -> Tensor:
        weight = likelihood_weight(self.temperature, x.shape[1])
        return class_log_likelihood(x, self.means_, self.variances_).mul_(weight)

    def _m_step(self, x: Tensor, z: Tensor, text: Tensor, first: Tensor) -> None:
        hits = torch.bincount(z.argmax(1), minlength=z.shape[1]).double()
        sums, squares = (weighted_sums(x, z, self.chunk_size, squares=squares) for squares in (False, True))
        self._update(hits, z.sum(0, dtype=torch.float64), sums, squares, text, first)

    def _update(self, hits: Tensor, mass: Tensor, sums: Tensor, squares: Tensor, text: Tensor, first: Tensor) -> None:
        beta = (hits / (hits + self.anchor))[:, None]  # (C, 1)
        mass = mass.clamp_min(torch.finfo(torch.float64).tiny)[:, None]
        v, square = sums / mass, squares / mass  # (C, D)
        self.means_ = F.normalize(beta * v + (1 - beta) * text, dim=1)
        deviation = square - 2 * v * self.means_ + self.means_.square()  # (C, D)
        self.variances_ = floor_variance(beta * deviation + (1 - beta) * (first + (text - self.means_).square()))

    def _log_proba(self, x: Tensor) -> Tensor:
        return ((x @ self.text_.to(x).T).log_softmax(1) + self._likelihood(x)).log_softmax(1)


def class_log_likelihood(x: Tensor, means: Tensor, variances: Tensor) -> Tensor:
    """``- sum_d [(x - mu_cd)^2 / s_cd + log s_cd] / 2``, (N, C)."""
    linear, square, constant = natural_parameters(means, variances)
    return torch.addmm(constant.to(x), x, linear.to(x).T).addmm_(x.square(), square.to(x).T)


def natural_parameters(means: Tensor, variances: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Weights (C, D) of x, weights (C, D) of x^2 and constants (C,) of the log-density of diagonal Gaussians."""
    precision = 1 / variances  # (C, D)
    return precision * means, -0.5 * precision, -0.5 * (precision * means.square() + variances.log()).sum(1)

"""StatA (Zanella, Fuchs, De Vleeschouwer, Ben Ayed: "Realistic Test-Time Adaptation of Vision-Language Models", CVPR 2025)."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from finelens.solvers.assignments import likelihood_weight, mean_square, update_assignments, weighted_sums
from finelens.solvers.base import Solver
from finelens.solvers.known import Known
from finelens.solvers.neighbours import symmetric_affinity
from finelens.solvers.parameters import COUNT, POSITIVE, Constraints
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
        "anchor": POSITIVE,
        "neighbours": COUNT,
        "temperature": POSITIVE,
        "rounds": COUNT,
        "inner_rounds": COUNT,
        "chunk_size": COUNT,
    }

    def __init__(
        self, *, anchor: float = 1.0, neighbours: int = 3, temperature: float = 50.0, rounds: int = 10, inner_rounds: int = 5, chunk_size: int = 1024
    ) -> None:
        self.anchor, self.neighbours, self.temperature, self.rounds, self.inner_rounds = anchor, neighbours, temperature, rounds, inner_rounds
        self.chunk_size = chunk_size

    def _fit(self, x: Tensor, prototypes: Tensor, scale: float, known: Known) -> Tensor:
        text = prototypes.double()
        self.text_ = scale * text
        log_y = known.clamp((x @ self.text_.to(x).T).log_softmax(1))
        z = log_y.exp()
        # The deviation is divided by N once, after all images are summed.
        sums, mass = weighted_sums(x, z, self.chunk_size), z.sum(0, dtype=torch.float64)
        first = mean_square(x, self.chunk_size) + (mass[:, None] * text.square() - 2 * sums * text).sum(0) / len(x)  # (D,)
        first = floor_variance(first)
        self.means_, self.variances_ = text, first.expand_as(text).clone()
        graph = symmetric_affinity(x, self.neighbours, chunk_size=self.chunk_size)
        weight = 1 / (2 * self.neighbours)
        for _ in range(self.rounds):
            likelihood = self._likelihood(x)
            z = update_assignments(log_y, likelihood, graph, z, neighbour_weight=weight, steps=self.inner_rounds).exp()
            self._m_step(x, z, text, first)
        likelihood = self._likelihood(x)
        return update_assignments(log_y, likelihood, graph, z, neighbour_weight=weight, steps=1)

    def _likelihood(self, x: Tensor) -> Tensor:
        weight = likelihood_weight(self.temperature, x.shape[1])
        return class_log_likelihood(x, self.means_, self.variances_).mul_(weight)

    def _m_step(self, x: Tensor, z: Tensor, text: Tensor, first: Tensor) -> None:
        hits = torch.bincount(z.argmax(1), minlength=z.shape[1]).double()
        beta = (hits / (hits + self.anchor))[:, None]  # (C, 1)
        mass = z.sum(0, dtype=torch.float64).clamp_min(torch.finfo(torch.float64).tiny)[:, None]
        v = weighted_sums(x, z, self.chunk_size) / mass  # (C, D)
        square = weighted_sums(x, z, self.chunk_size, squares=True) / mass  # (C, D)
        self.means_ = F.normalize(beta * v + (1 - beta) * text, dim=1)
        deviation = square - 2 * v * self.means_ + self.means_.square()  # (C, D)
        self.variances_ = floor_variance(beta * deviation + (1 - beta) * (first + (text - self.means_).square()))

    def _log_proba(self, x: Tensor) -> Tensor:
        return ((x @ self.text_.to(x).T).log_softmax(1) + self._likelihood(x)).log_softmax(1)


def class_log_likelihood(x: Tensor, means: Tensor, variances: Tensor) -> Tensor:
    """``- sum_d [(x - mu_cd)^2 / s_cd + log s_cd] / 2``, (N, C)."""
    precision = 1 / variances  # (C, D)
    constant = -0.5 * (precision * means.square() + variances.log()).sum(1)  # (C,)
    linear = torch.addmm(constant.to(x), x, (precision * means).to(x).T)
    return linear.addmm_(x.square(), precision.to(x).T, alpha=-0.5)

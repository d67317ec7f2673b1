"""Gaussian discriminant analysis on a stream, in the manner of DOTA (Han et al., 2024) and OGA (Fuchs et al., 2025)."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from finelens.solvers.gaussians import TINY, discriminant, logit_std, text_means, text_share
from finelens.solvers.online import OnlineSolver
from finelens.solvers.parameters import NOT_NEGATIVE, Constraints


class OnlineGda(OnlineSolver):
    """Class means and one covariance from the posteriors of the images so far; the linear classifier that follows is renewed
    when their number has grown by a half or a third: after 2, 3, 4, 6, 8, 12, 16, 24, ... images.

    Args:
        anchor: Pseudo-images that hold a class mean at its text.
        seed: See :class:`~finelens.solvers.online.OnlineSolver`.
        chunk_size: See there.

    Attributes:
        text_: Scaled prototypes (C, D), float64.
        coef_: Weights (C, D), float64: text and Gaussian parts together.
        intercept_: (C,), float64.
        mass_: Posterior mass of each class, (C,), float64.
        sums_: Posterior-weighted sums of features, (C, D), float64.
        second_: Sum of ``x x^T``, (D, D), float64.
        seen_: Images so far, int64.
        scale_: Logit scale, float64.
    """

    state_names: ClassVar[tuple[str, ...]] = ("text_", "coef_", "intercept_", "mass_", "sums_", "second_", "seen_", "scale_")
    _parameter_constraints: ClassVar[Constraints] = {**OnlineSolver._parameter_constraints, "anchor": NOT_NEGATIVE}

    def __init__(self, *, anchor: float = 1.0, seed: int = 0, chunk_size: int = 4096) -> None:
        super().__init__(seed=seed, chunk_size=chunk_size)
        self.anchor = anchor

    def _begin(self, prototypes: Tensor, scale: float) -> None:
        c, dim = prototypes.shape
        self.text_ = self.coef_ = scale * prototypes
        self.intercept_, self.mass_ = prototypes.new_zeros(c), prototypes.new_zeros(c)
        self.sums_, self.second_ = prototypes.new_zeros(c, dim), prototypes.new_zeros(dim, dim)
        self.seen_ = torch.zeros((), dtype=torch.int64, device=prototypes.device)
        self.scale_ = prototypes.new_tensor(scale)

    def _arrive(self, x: Tensor, label: int | None) -> Tensor:
        answer = self._score(x[None])[0]
        gamma = answer.exp()
        if label is not None:
            gamma = torch.zeros_like(gamma)
            gamma[label] = 1
        self.mass_ = self.mass_ + gamma
        self.sums_ = self.sums_ + torch.outer(gamma, x)
        self.second_.addr_(x, x)
        self.seen_ = self.seen_ + 1
        if _is_due(int(self.seen_)):
            self._renew(int(self.seen_))
        return answer

    def _renew(self, n: int) -> None:
        text = self.text_ / self.scale_
        mean, second = self.sums_.sum(0) / n, self.second_ / n
        prior = text_means(text, mean)
        v = self.sums_ / self.mass_.clamp_min(TINY)[:, None]  # (C, D)
        share = torch.where(self.mass_ > TINY, self.mass_ / (self.mass_ + self.anchor), 0.0)[:, None]  # (C, 1)
        covariance = second - (self.mass_[:, None] * v).T @ v / n
        weights, bias = discriminant(share * v + (1 - share) * prior, covariance, n)
        alpha = text_share(logit_std(self.text_, 0.0, mean, second), weights, bias, mean, second)
        self.coef_, self.intercept_ = self.text_ + alpha * weights, alpha * bias

    def _score(self, x: Tensor) -> Tensor:
        return (x @ self.coef_.T + self.intercept_).log_softmax(1)


def _is_due(n: int) -> bool:
    """Whether the first two binary digits of n have just changed."""
    return n > 1 and n % (1 << (n.bit_length() - 2)) == 0

"""The return rule: probability that a class gains over the text without support by the images goes back to the class that the text names.

The mathematics is that of MARS (2026), with class means weighted by the text posterior, and with a share of the gains instead of all. It is a filter
on any finished posterior.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from finelens.solvers.assignments import weighted_sums
from finelens.solvers.chunks import chunks

TINY = 1e-12


@dataclass(frozen=True)
class ReturnRule:
    """What is known of the classes' images.

    With text posterior a_i, answer p_i, ``c = argmax a_i`` and gains ``g_ij = max(p_ij - a_ij, 0)`` for j other than c, a gain is without support
    where the image lies nearer to the mean of c than to that of j: ``h_ij = [s_ic > s_ij]``, s the products with the means. An image whose answer
    b is not c and that lies nearer to the mean of b keeps all. Class j gives back the share ``rho_cj`` of each unsupported gain.

    Attributes:
        means: Unit means mu of the images of each class by the text, (C, D), float64.
        shares: rho, (C, C), float64; rows are classes that the text names.
    """

    means: Tensor
    shares: Tensor

    @classmethod
    def learn(cls, x: Tensor, text: Tensor, answer: Tensor, *, share: float, chunk_size: int) -> ReturnRule:
        """The rule of these images.

        ``rho_cj`` is ``share`` times the sum of ``g h`` over that of g, both over the images that the text names c.

        Args:
            x: Features (N, D).
            text: Text posteriors a, (N, C).
            answer: Posteriors p, (N, C).
            share: Part of the unsupported gains that is given back.
            chunk_size: Images in work at a time.
        """
        means = F.normalize(weighted_sums(x, text, chunk_size), dim=1)
        return cls.of_parts(zip(x.split(chunk_size), text.split(chunk_size), answer.split(chunk_size), strict=True), means, share=share)

    @classmethod
    def of_parts(cls, parts: Iterable[tuple[Tensor, Tensor, Tensor]], means: Tensor, *, share: float) -> ReturnRule:
        """The same of features, text posteriors and posteriors of some images at a time, and the unit means (C, D) of each class by the text."""
        gained = torch.zeros(len(means), len(means), dtype=torch.float64, device=means.device)
        unsupported = torch.zeros_like(gained)
        for rows, a, p in parts:
            gain, lost, named = _gains(rows, a, p, means)
            gained.index_add_(0, named, gain.double())
            unsupported.index_add_(0, named, lost.double())
        return cls(means, share * unsupported / gained.clamp_min(TINY))

    def apply(self, x: Tensor, text: Tensor, answer: Tensor, *, chunk_size: int) -> tuple[Tensor, Tensor]:
        """The answers (N, C) after the return, rows still of sum 1, and how much of each image's probability went back, (N,).

        Args:
            x: Features (N, D), or their first columns alone.
            text: Text posteriors (N, C).
            answer: Posteriors (N, C).
            chunk_size: Images in work at a time.
        """
        after, returned = torch.empty_like(answer), answer.new_empty(answer.shape[0])
        for rows in chunks(x.shape[0], chunk_size):
            _, lost, named = _gains(x[rows], text[rows], answer[rows], self.means)
            back = lost * self.shares.to(lost)[named]  # (chunk, C)
            returned[rows] = back.sum(1)
            after[rows] = (answer[rows] - back).scatter_add_(1, named[:, None], returned[rows, None])
        return after, returned


def _gains(x: Tensor, text: Tensor, answer: Tensor, means: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gains g (N, C), those without support ``g h`` (N, C), and the classes that the text names (N,)."""
    near = x @ means[:, : x.shape[1]].to(x).T  # (N, C)
    named, now = text.argmax(1), answer.argmax(1)
    gain = (answer - text).clamp_min(0).scatter(1, named[:, None], 0.0)
    own = near.gather(1, named[:, None])  # (N, 1)
    lost = gain.where(own > near, 0.0)
    lost[(now != named) & (near.gather(1, now[:, None]) > own)[:, 0]] = 0
    return gain, lost, named

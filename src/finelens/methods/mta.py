"""MTA (Zanella and Ben Ayed, CVPR 2024, arXiv 2405.02266): mean shift over the views of an image. Documentation: docs/methods/mta.md.

Shapes: B images, N views, C classes, E joint width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from finelens.core.options import require
from finelens.methods.parts.frozen import cosine_logits
from finelens.methods.parts.views import CropOptions, CropTask

# A fixed number, so that an answer does not depend on the other images of its batch; both alternations have long settled by then.
ROUNDS, SCORE_ROUNDS = 10, 10


@dataclass(frozen=True)
class MtaConfig(CropOptions):
    """Options of the method (``--set method.key=value``), besides those of :class:`~finelens.methods.parts.views.CropOptions`.

    Attributes:
        agreement: Weight of the agreement between the views' posteriors in the inlierness scores.
        entropy: Weight of the entropy of the inlierness scores; larger is more even.
        neighbours: Share of the other views that sets the bandwidth of each.
    """

    agreement: float = 4.0
    entropy: float = 0.2
    neighbours: float = 0.3

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.agreement < math.inf, "method.agreement", "at least 0 and finite", self.agreement)
        require(0 < self.entropy < math.inf, "method.entropy", "above 0 and finite", self.entropy)
        require(0 < self.neighbours <= 1, "method.neighbours", "over 0 and at most 1", self.neighbours)


CONFIG = MtaConfig


class Mta(CropTask):
    """Scores the mode of an image's views."""

    config: MtaConfig

    def answer_all(self, features: Tensor) -> Tensor:
        """``s <mode, w_c> + b``."""
        posteriors = cosine_logits(self.engine, features, self.head).softmax(-1)  # (B, N, C)
        config = self.config
        mode, _ = find_mode(features, posteriors, agreement=config.agreement, entropy=config.entropy, neighbours=config.neighbours)
        return cosine_logits(self.engine, mode, self.head)


build = Mta.build


def bandwidths(features: Tensor, neighbours: float) -> Tensor:
    """Squared bandwidth of each view: the mean squared distance to its nearest share of the others, (B, N)."""
    distances = torch.cdist(features, features, compute_mode="donot_use_mm_for_euclid_dist").square()  # (B, N, N)
    count = max(1, int(neighbours * (features.shape[1] - 1)))
    nearest = distances.topk(count + 1, largest=False).values  # the first is the view itself
    return nearest[..., 1:].mean(-1).clamp(min=torch.finfo(features.dtype).eps)


def find_mode(features: Tensor, posteriors: Tensor, *, agreement: float, entropy: float, neighbours: float) -> tuple[Tensor, Tensor]:
    """Alternate inlierness scores and mean shift, from the first view.

    ``y <- softmax_p((K_p(m) + agreement sum_q a_pq y_q) / entropy)`` with ``a_pq = <posterior_p, posterior_q>``, then
    ``m <- sum_p y_p K_p(m) f_p / sum_p y_p K_p(m)``, unit norm, with the Gaussian kernel ``K_p(m) = exp(-|f_p - m|^2 / (2 h_p^2))``.

    Args:
        features: Unit norm, the untouched view first, (B, N, E).
        posteriors: (B, N, C).
        agreement: Weight of the agreement, published 4.
        entropy: Weight of the entropy, published 0.2.
        neighbours: See :func:`bandwidths`, published 0.3.

    Returns:
        Mode (B, E), unit norm, and scores (B, N), which sum to 1.
    """
    affinity = posteriors @ posteriors.mT  # (B, N, N)
    width = 2 * bandwidths(features, neighbours)
    mode = features[:, 0]
    scores = torch.full_like(width, 1 / features.shape[1])
    for _ in range(ROUNDS):
        kernel = torch.exp(-(features - mode[:, None]).square().sum(-1) / width)  # (B, N)
        for _ in range(SCORE_ROUNDS):
            scores = ((kernel + agreement * torch.einsum("bpq,bq->bp", affinity, scores)) / entropy).softmax(-1)
        mode = F.normalize(torch.einsum("bp,bpe->be", scores * kernel, features), dim=-1)
    return mode, scores

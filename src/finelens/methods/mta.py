"""MTA (Zanella and Ben Ayed, CVPR 2024, arXiv 2405.02266): mean shift over the views of an image. Documentation: docs/methods/mta.md.

Shapes: B images, N views, C classes, E joint width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from finelens.classes.heads import ClassHeads
from finelens.core.options import require
from finelens.engine.engine import Engine
from finelens.methods.parts.frozen import cosine_logits
from finelens.methods.parts.views import ViewTask
from finelens.protocol import InferenceViews
from finelens.training.config import TrainingConfig

# A fixed number, so that an answer does not depend on the other images of its batch; both alternations have long settled by then.
ROUNDS, SCORE_ROUNDS = 10, 10


@dataclass(frozen=True)
class MtaConfig:
    """Options of the method (``--set method.key=value``).

    Attributes:
        head: Text prototypes: the ensemble of ``templates``, or the mean of each class's ``descriptions``.
        views: Views of an image, the centre view among them.
        agreement: Weight of the agreement between the views' posteriors in the inlierness scores.
        entropy: Weight of the entropy of the inlierness scores; larger is more even.
        neighbours: Share of the other views that sets the bandwidth of each.
        smallest: Smallest area of a view as a share of the image.
    """

    head: Literal["templates", "descriptions"] = "templates"
    views: int = 64
    agreement: float = 4.0
    entropy: float = 0.2
    neighbours: float = 0.3
    smallest: float = 0.08

    def __post_init__(self) -> None:
        require(self.views >= 2, "method.views", "at least 2", self.views)
        require(0 <= self.agreement < math.inf, "method.agreement", "at least 0 and finite", self.agreement)
        require(0 < self.entropy < math.inf, "method.entropy", "above 0 and finite", self.entropy)
        require(0 < self.neighbours <= 1, "method.neighbours", "over 0 and at most 1", self.neighbours)
        require(0 < self.smallest <= 1, "method.smallest", "over 0 and at most 1", self.smallest)


CONFIG = MtaConfig


def build(engine: Engine, heads: ClassHeads, config: MtaConfig, training: TrainingConfig, seed: int) -> Mta:
    """The task of this method; arguments are those of :class:`finelens.methods.registry.Method`."""
    return Mta(engine, getattr(heads, config.head), config)


class Mta(ViewTask):
    """Scores the mode of an image's views."""

    def __init__(self, engine: Engine, head: Tensor, config: MtaConfig) -> None:
        super().__init__(engine, head, InferenceViews(config.views - 1, "resized", config.smallest, 1.0))
        self.config = config

    def answer(self, centre: Tensor, views: Tensor) -> Tensor:
        """``s <mode, w_c> + b``."""
        features = torch.cat([centre[:, None], views], dim=1)  # (B, N, E)
        posteriors = cosine_logits(self.engine, features, self.head).softmax(-1)  # (B, N, C)
        config = self.config
        mode, _ = find_mode(features, posteriors, agreement=config.agreement, entropy=config.entropy, neighbours=config.neighbours)
        return cosine_logits(self.engine, mode, self.head)


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

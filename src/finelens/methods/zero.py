"""ZERO (Farina et al., NeurIPS 2024, arXiv 2405.18330): a vote of confident views. Documentation: docs/methods/zero.md."""

from __future__ import annotations

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


@dataclass(frozen=True)
class ZeroConfig:
    """Options of the method (``--set method.key=value``).

    Attributes:
        head: Text prototypes: the ensemble of ``templates``, or the mean of each class's ``descriptions``.
        views: Views that vote, the centre view among them.
        keep: Share of the views, the most confident ones, whose votes count.
        smallest: Smallest area of a view as a share of the image.
    """

    head: Literal["templates", "descriptions"] = "templates"
    views: int = 64
    keep: float = 0.3
    smallest: float = 0.08

    def __post_init__(self) -> None:
        require(self.views >= 2, "method.views", "at least 2", self.views)
        require(0 < self.keep <= 1, "method.keep", "over 0 and at most 1", self.keep)
        require(0 < self.smallest <= 1, "method.smallest", "over 0 and at most 1", self.smallest)


CONFIG = ZeroConfig


def build(engine: Engine, heads: ClassHeads, config: ZeroConfig, training: TrainingConfig, seed: int) -> Zero:
    """The task of this method; arguments are those of :class:`finelens.methods.registry.Method`."""
    return Zero(engine, getattr(heads, config.head), config)


class Zero(ViewTask):
    """Lets the most confident views vote with temperature zero."""

    def __init__(self, engine: Engine, head: Tensor, config: ZeroConfig) -> None:
        super().__init__(engine, head, InferenceViews(config.views - 1, "resized", config.smallest, 1.0))
        self.config = config

    def answer(self, centre: Tensor, views: Tensor) -> Tensor:
        """Logs of the vote shares, see :func:`vote`."""
        features = torch.cat([centre[:, None], views], dim=1)  # (B, N, E)
        return vote(cosine_logits(self.engine, features, self.head), max(1, int(self.config.keep * features.shape[1])))


def vote(logits: Tensor, keep: int) -> Tensor:
    """Log of the share of votes, with the mean posterior of the voters to break ties.

    The mean posterior counts less than one vote, so it decides between equal counts only, and a class without a vote keeps a finite logit.

    Args:
        logits: Of each view, (B, N, C).
        keep: Views with the lowest entropy that vote, K.

    Returns:
        (B, C); its exponentials sum to 1.
    """
    log_p = logits.log_softmax(-1)
    entropy = -(log_p.exp() * log_p).sum(-1)  # (B, N)
    kept = entropy.topk(keep, largest=False).indices  # (B, K)
    posteriors = log_p.gather(1, kept[..., None].expand(-1, -1, logits.shape[-1])).exp()  # (B, K, C)
    votes = F.one_hot(posteriors.argmax(-1), logits.shape[-1]).to(posteriors).mean(1)  # (B, C)
    share = 1 / (keep + 2)
    return ((1 - share) * votes + share * posteriors.mean(1)).clamp(min=torch.finfo(votes.dtype).tiny).log()

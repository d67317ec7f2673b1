"""ZERO (Farina et al., NeurIPS 2024, arXiv 2405.18330): a vote of confident views. Documentation: docs/methods/zero.md."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from finelens.core.options import require
from finelens.methods.parts.frozen import cosine_logits
from finelens.methods.parts.views import CropOptions, CropTask


@dataclass(frozen=True)
class ZeroConfig(CropOptions):
    """Options of the method (``--set method.key=value``), besides those of :class:`~finelens.methods.parts.views.CropOptions`.

    Attributes:
        keep: Share of the views, the most confident ones, whose votes count.
    """

    keep: float = 0.3

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 < self.keep <= 1, "method.keep", "over 0 and at most 1", self.keep)


CONFIG = ZeroConfig


class Zero(CropTask):
    """Lets the most confident views vote with temperature zero."""

    config: ZeroConfig

    def answer_all(self, features: Tensor) -> Tensor:
        """Logs of the vote shares, see :func:`vote`."""
        return vote(cosine_logits(self.engine, features, self.head), max(1, int(self.config.keep * features.shape[1])))


build = Zero.build


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

"""The class prior that the marginal term of the self-training methods draws a batch to."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from finelens.solvers.prior import estimate_prior
from finelens.training.losses import marginal_loss
from finelens.training.state import resize_on_load

Marginal = Literal["uniform", "prior", "none"]


class ClassPrior(nn.Module):
    """Uniform as published, estimated without labels and renewed every epoch, or no marginal term at all.

    Its state covers the posteriors that the next estimate rests on, so a resumed run goes on as if it had not stopped.

    Args:
        kind: ``uniform``, ``prior`` or ``none``.
        classes: Number of classes C.
        dtype: Float type of the prior.
    """

    def __init__(self, kind: Marginal, classes: int, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.kind = kind
        self.register_buffer("prior", torch.full((classes,), 1 / classes, dtype=dtype))  # (C,)
        self.register_buffer("posteriors", torch.zeros(0, classes, dtype=dtype))  # (N, C), N = 0 unless estimated
        self.prior: Tensor
        self.posteriors: Tensor
        resize_on_load(self, "posteriors")

    def start(self, posteriors: Tensor) -> None:
        """First estimate, from the posteriors (N, C) of the unadapted model, in store order."""
        if self.kind == "prior":
            self.posteriors = posteriors.detach().to(self.prior.dtype)
            self._estimate()

    def remember(self, index: Tensor, posteriors: Tensor) -> None:
        """Replace the posteriors of the images at positions ``index`` (B,) by newer ones (B, C)."""
        if self.kind == "prior":
            self.posteriors[index] = posteriors.detach().to(self.posteriors.dtype)

    def end_epoch(self) -> dict[str, float]:
        """Renew the estimate; returns numbers to log."""
        if self.kind != "prior":
            return {}
        self._estimate()
        return {"prior_largest": self.prior.max().item(), "prior_smallest": self.prior.min().item()}

    def loss(self, log_marginal: Tensor) -> Tensor | None:
        """``- sum_c prior_c log pbar_c`` of a log batch marginal (C,); None where there is no marginal term."""
        return None if self.kind == "none" else marginal_loss(log_marginal, self.prior)

    def _estimate(self) -> None:
        self.prior = estimate_prior(self.posteriors).to(self.prior)

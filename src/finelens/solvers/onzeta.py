"""OnZeta (Qian, Hu: "Online Zero-shot Classification with CLIP", ECCV 2024)."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from finelens.solvers.online import OnlineSolver
from finelens.solvers.parameters import FRACTION, Constraints

# Published steps and temperatures; those of the visual side are relative to the text temperature (0.04 against 0.01).
LABEL_STEP = 20.0
PROXY_STEP = 0.5
FLATTER = 4.0


class OnZeta(OnlineSolver):
    """Learns class weights that keep the stream balanced, and visual class vectors from the balanced posteriors; both by one step an image.

    Args:
        balance: Least mean posterior of a class over the stream, as a share of 1 / C.
        share: Largest weight of the visual posterior; at image i it is ``share sqrt(i / (i + C))``.
        seed: See :class:`~finelens.solvers.online.OnlineSolver`.
        chunk_size: See there.

    Attributes:
        text_: Scaled prototypes (C, D), float64.
        proxies_: Visual class vectors (C, D), float64, unit rows.
        rho_: Log-weights of the classes, (C,), float64, at least 0.
        seen_: Images so far, int64.
        scale_: Logit scale, float64.
    """

    state_names: ClassVar[tuple[str, ...]] = ("text_", "proxies_", "rho_", "seen_", "scale_")
    _parameter_constraints: ClassVar[Constraints] = {**OnlineSolver._parameter_constraints, "balance": FRACTION, "share": FRACTION}

    def __init__(self, *, balance: float = 1.0, share: float = 0.8, seed: int = 0, chunk_size: int = 4096) -> None:
        super().__init__(seed=seed, chunk_size=chunk_size)
        self.balance, self.share = balance, share

    def _begin(self, prototypes: Tensor, scale: float) -> None:
        self.text_, self.proxies_ = scale * prototypes, prototypes
        self.rho_ = prototypes.new_zeros(len(prototypes))
        self.seen_ = torch.zeros((), dtype=torch.int64, device=prototypes.device)
        self.scale_ = prototypes.new_tensor(scale)

    def _arrive(self, x: Tensor, label: int | None) -> Tensor:
        self.seen_ = self.seen_ + 1
        root = self.seen_.double().sqrt()
        p = self._text_posterior(x)
        if label is not None:
            p = F.one_hot(torch.tensor(label, device=x.device), len(p)).to(p)
        self.rho_ = (self.rho_ - LABEL_STEP / root * (p - self.balance / len(p))).clamp_min(0)
        q = self._visual_posterior(x)
        answer = self._mixed(p, q)
        step = PROXY_STEP / root * self.scale_ / FLATTER
        self.proxies_ = F.normalize(self.proxies_ - step * torch.outer(q - p, x), dim=1)
        return answer

    def _text_posterior(self, x: Tensor) -> Tensor:
        return (x @ self.text_.T + self.rho_).softmax(-1)

    def _visual_posterior(self, x: Tensor) -> Tensor:
        return (self.scale_ / FLATTER * x @ self.proxies_.T).softmax(-1)

    def _mixed(self, p: Tensor, q: Tensor) -> Tensor:
        seen = self.seen_.double()
        beta = self.share * (seen / (seen + len(self.text_))).sqrt()
        return (beta * q + (1 - beta) * p).clamp_min(torch.finfo(p.dtype).tiny).log()

    def _score(self, x: Tensor) -> Tensor:
        return self._mixed(self._text_posterior(x), self._visual_posterior(x))

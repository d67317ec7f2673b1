"""InMaP (Qian, Xu, Hu: "Intra-Modal Proxy Learning for Zero-Shot Visual Categorization with CLIP", NeurIPS 2023)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import ClassVar

import torch
from torch import Tensor

from finelens.solvers.base import Solver
from finelens.solvers.gaussians import TINY
from finelens.solvers.known import Known
from finelens.solvers.parameters import COUNT, FRACTION, POSITIVE, PRIOR, Constraints
from finelens.solvers.rows import FitRows, linear
from finelens.solvers.sampled_balance import balanced, prior_of
from finelens.solvers.sinkhorn import Prior, balance, class_prior


class InMap(Solver):
    """Learns one unit proxy a class in image space from balanced text posteriors; images are then compared with images only.

    The targets are the text posteriors, balanced by Sinkhorn to a class prior and made one-hot where they are sure. Proxies start at the texts and
    minimise the cross-entropy of ``softmax(scale / softness x V^T)`` to the targets by L-BFGS, whose line search never lets it rise.

    Args:
        prior: ``estimated`` (from the text posteriors, without labels), ``uniform``, or C numbers above 0.
        threshold: A target whose largest entry is above it becomes one-hot.
        softness: Temperature of the proxies over the model's own.
        max_iter: Most rounds of L-BFGS.
        chunk_size: Images in work at a time.

    Attributes:
        coef_: Scaled proxies (C, D), float64.
        prior_: (C,), float64.
        loss_: Mean cross-entropy at the end.
        n_iter_: Evaluations of it.
    """

    state_names: ClassVar[tuple[str, ...]] = ("coef_",)
    # Sinkhorn rounds of the published code.
    BALANCE_ROUNDS: ClassVar[int] = 20

    _parameter_constraints: ClassVar[Constraints] = {
        "prior": PRIOR,
        "threshold": FRACTION,
        "softness": POSITIVE,
        "max_iter": COUNT,
        "chunk_size": COUNT,
    }

    def __init__(
        self, *, prior: Prior = "estimated", threshold: float = 0.6, softness: float = 4.0, max_iter: int = 50, chunk_size: int = 4096
    ) -> None:
        self.prior, self.threshold, self.softness, self.max_iter, self.chunk_size = prior, threshold, softness, max_iter, chunk_size

    def _fit(self, x: Tensor, prototypes: Tensor, scale: float, known: Known) -> Tensor:
        logits = (scale * x) @ prototypes.T  # (N, C)
        self.prior_ = class_prior(self.prior, logits, known)
        potentials, _ = balance(logits, self.prior_, known, max_iter=self.BALANCE_ROUNDS, tol=1e-3, chunk_size=self.chunk_size)
        targets = sharpen(known.clamp(logits + potentials.to(x)).softmax(1), self.threshold)

        def parts() -> Iterator[tuple[Tensor, Tensor]]:
            return zip(x.split(self.chunk_size), targets.split(self.chunk_size), strict=True)

        self._learn(parts, len(x), prototypes, scale)
        return self._log_proba(x)

    def _fit_passes(self, rows: FitRows, prototypes: Tensor, scale: float) -> None:
        text = linear(scale * prototypes)
        self.prior_ = prior_of(rows, self.prior, text, len(prototypes), self.chunk_size)
        potentials = balanced(rows, text, self.prior_, steps=self.BALANCE_ROUNDS, tol=1e-3, chunk_size=self.chunk_size).float()

        def parts() -> Iterator[tuple[Tensor, Tensor]]:
            for at, x in rows.each():
                yield x, sharpen(rows.clamp_(at, text(at, x).add_(potentials)).softmax(1), self.threshold)

        self._learn(parts, len(rows), prototypes, scale)

    def _learn(self, parts: Callable[[], Iterable[tuple[Tensor, Tensor]]], count: int, prototypes: Tensor, scale: float) -> None:
        """Learn the proxies from rows (n, D) and targets (n, C) of some images at a time, as often as they are asked for."""
        sharpness = scale / self.softness
        proxies, self.loss_, self.n_iter_ = learn_proxies(parts, count, prototypes.double(), sharpness, self.max_iter)
        self.coef_ = sharpness * proxies

    def _log_proba(self, x: Tensor) -> Tensor:
        return (x @ self.coef_.to(x).T).log_softmax(1)


def sharpen(targets: Tensor, threshold: float) -> Tensor:
    """Rows (N, C) whose largest entry is above the threshold become one-hot."""
    top, index = targets.max(1)
    sure = (top > threshold).nonzero()[:, 0]
    targets = targets.clone()
    targets[sure] = 0
    targets[sure, index[sure]] = 1
    return targets


def learn_proxies(
    parts: Callable[[], Iterable[tuple[Tensor, Tensor]]], count: int, start: Tensor, sharpness: float, max_iter: int
) -> tuple[Tensor, float, int]:
    """Unit proxies (C, D) of small cross-entropy, its value, and how often it was evaluated.

    Args:
        parts: Gives unit features (n, D) and targets (n, C) of some images at a time.
        count: N.
        start: Unit proxies to start from, (C, D), float64; a zero row stays zero.
        sharpness: Multiplier of cosines.
        max_iter: Most rounds of L-BFGS.
    """
    free = start.clone()
    optimiser = torch.optim.LBFGS([free], max_iter=max_iter, tolerance_grad=1e-8, tolerance_change=1e-12, line_search_fn="strong_wolfe")
    evaluations = 0

    def closure() -> Tensor:
        nonlocal evaluations
        evaluations += 1
        loss, free.grad = proxy_loss(parts(), count, free, sharpness)
        return loss

    optimiser.step(closure)
    loss, _ = proxy_loss(parts(), count, free, sharpness)
    return torch.nn.functional.normalize(free, dim=1), float(loss), evaluations


def proxy_loss(parts: Iterable[tuple[Tensor, Tensor]], count: int, free: Tensor, sharpness: float) -> tuple[Tensor, Tensor]:
    """Mean cross-entropy of ``softmax(sharpness x l2norm(free)^T)`` to the targets, float64, and its gradient in ``free`` (C, D)."""
    length = free.norm(dim=1, keepdim=True).clamp_min(TINY)
    proxies = free / length
    loss, gradient = free.new_zeros(()), torch.zeros_like(free)
    for rows, wanted in parts:
        log_q = (sharpness * rows @ proxies.to(rows).T).log_softmax(1)
        loss -= (wanted * log_q).sum(dtype=torch.float64)
        gradient += log_q.exp_().sub_(wanted).T @ rows
    gradient *= sharpness / count
    along = (gradient * proxies).sum(1, keepdim=True)  # only what turns a proxy counts
    return loss / count, torch.where(length > TINY, (gradient - along * proxies) / length, 0.0)

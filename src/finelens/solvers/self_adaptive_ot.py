"""Self-adaptive optimal transport (Hu, Xu, Duan, Tai, Li: "SOTA", CVPR 2026, arXiv 2506.13723)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from finelens.solvers.assignments import likelihood_weight, mean_square
from finelens.solvers.columns import split_views
from finelens.solvers.known import Known
from finelens.solvers.parameters import COUNT, POSITIVE, Constraints
from finelens.solvers.sinkhorn import balance
from finelens.solvers.transclip import confident_means, shared_log_likelihood, unit_statistics
from finelens.solvers.views import ViewsSolver

TINY = 1e-12
STEPS = 15


class SelfAdaptiveOt(ViewsSolver):
    """A transport plan with even class masses from the sum of what each feature space and the text say; each space counts by how far it agrees.

    ``X`` is one feature matrix, or a list of them with the same images in the same rows; the first is the one that the prototypes belong to. New
    images may come with the first matrix alone: the others then keep silent.

    With Y the text posterior and ``P_v = softmax_c log N(x_v; mu_vc, s_v) / T`` a round is ``F = sum_v a_v P_v + Y``, ``z = Sinkhorn(exp(F / eps))``,
    a_v in proportion to the share of images for which P_v and z name the same class, and unit means and variances from z alone.

    Args:
        temperature: Divisor T of a log-likelihood at 512 coordinates; it grows with the width.
        eps: Regularisation of the transport.
        confident: Images per class of the first means.
        rounds: Rounds.
        chunk_size: Images in work at a time.

    Attributes:
        text_: Scaled prototypes (C, D_1), float64.
        means_: (C, D_1 + ... + D_V), float64, unit rows view by view.
        variances_: (D_1 + ... + D_V,), float64.
        weights_: V times a, (V,), float64, mean 1.
        widths_: D_1 to D_V, (V,), int64.
    """

    state_names: ClassVar[tuple[str, ...]] = ("text_", "means_", "variances_", "weights_", "widths_")
    _parameter_constraints: ClassVar[Constraints] = {
        "temperature": POSITIVE,
        "eps": POSITIVE,
        "confident": COUNT,
        "rounds": COUNT,
        "chunk_size": COUNT,
    }

    def __init__(self, *, temperature: float = 50.0, eps: float = 0.01, confident: int = 8, rounds: int = 10, chunk_size: int = 4096) -> None:
        self.temperature, self.eps, self.confident, self.rounds, self.chunk_size = temperature, eps, confident, rounds, chunk_size

    def _fit(self, x: Tensor, prototypes: Tensor, scale: float, known: Known) -> Tensor:
        widths = self.widths_.tolist()
        self.text_ = scale * prototypes.double()
        views = x.split(widths, 1)
        squares = [mean_square(view, self.chunk_size) for view in views]
        text = known.clamp(views[0] @ self.text_.to(x).T).softmax(1)  # Y, (N, C)
        means = [confident_means(view, text, self.confident) for view in views]
        variances = [torch.full_like(square, 1 / len(square)) for square in squares]
        self.weights_ = means[0].new_ones(len(widths))
        prior = means[0].new_full((len(prototypes),), 1 / len(prototypes))
        for _ in range(self.rounds):
            said = [self._posterior(*parts) for parts in zip(views, means, variances, strict=True)]
            log_z = self._plan(self._sum(text, said), prior, known)
            z = log_z.exp()
            self.weights_ = _agreement(said, z)
            del said
            found = [unit_statistics(view, z, square, mean, self.chunk_size) for view, square, mean in zip(views, squares, means, strict=True)]
            means, variances = [mean for mean, _ in found], [variance for _, variance in found]
        self.means_, self.variances_ = torch.cat(means, 1), torch.cat(variances)
        return log_z

    def _posterior(self, x: Tensor, means: Tensor, variance: Tensor) -> Tensor:
        """P_v (N, C) of one view (N, D_v)."""
        weight = likelihood_weight(self.temperature, x.shape[1])
        return shared_log_likelihood(x, means, variance).mul_(weight).softmax(1)

    def _sum(self, text: Tensor, said: Sequence[Tensor]) -> Tensor:
        """F (N, C): the text's posterior and those of the views that the images have, by weight."""
        total = text.clone()
        for weight, posterior in zip(self.weights_.tolist(), said, strict=False):
            total.add_(posterior, alpha=weight / len(self.weights_))
        return total

    def _plan(self, total: Tensor, prior: Tensor, known: Known) -> Tensor:
        """Log z (N, C): ``exp(F / eps)`` with columns brought to even masses and rows to 1."""
        logits = total / self.eps
        potentials, _ = balance(logits, prior, known, max_iter=STEPS, tol=0.0, chunk_size=self.chunk_size)
        return known.clamp(logits + potentials.to(logits)).log_softmax(1)

    def _log_proba(self, x: Tensor) -> Tensor:
        widths = self.widths_.tolist()
        text = (x[:, : widths[0]] @ self.text_.to(x).T).softmax(1)
        parts = zip(split_views(x, widths), self.means_.split(widths, 1), self.variances_.split(widths), strict=False)
        total = self._sum(text, [self._posterior(*part) for part in parts])
        return (total / total.sum(1, keepdim=True)).clamp_min(torch.finfo(x.dtype).tiny).log()


def _agreement(said: Sequence[Tensor], z: Tensor) -> Tensor:
    """Weights (V,), float64, mean 1, in proportion to the share of images that a view's posterior (N, C) gives the class of the plan z (N, C)."""
    labels = z.argmax(1)
    shares = torch.stack([(posterior.argmax(1) == labels).double().mean() for posterior in said]).clamp_min(TINY)
    return shares / shares.mean()

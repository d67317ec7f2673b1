"""Several encoders at once: a Gaussian mixture in each, one assignment for all.

Ours, after the description of joint optimal transport over CLIP and vision-only encoders; no code of it was released. It is no reproduction.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from sklearn.utils._param_validation import StrOptions
from torch import Tensor

from finelens.errors import UserError
from finelens.protocol import Hints
from finelens.solvers.assignments import likelihood_weight, mean_square, weighted_sums
from finelens.solvers.base import Features, Solver, unit_rows
from finelens.solvers.gaussians import text_means
from finelens.solvers.known import Known
from finelens.solvers.parameters import COUNT, NOT_NEGATIVE, POSITIVE, Constraints
from finelens.solvers.sinkhorn import balance, class_prior
from finelens.solvers.transclip import confident_means, floor_variance, shared_log_likelihood

Views = Features | Sequence[Features]


class JointGmm(Solver):
    """Gaussian mixtures in several feature spaces that share one posterior an image.

    ``X`` is one feature matrix, or a list of them with the same images in the same rows; the first is the one that the prototypes belong to. New
    images may come with the first matrix alone: the others then keep silent.

    For given view weights a round cannot lower ``sum_i <z_i, log y_i> + H(z_i) + sum_v w_v l_v [sum_ic z_ic log N(x_vi; mu_vc, s_v) + a sum_c
    log N(m_vc; mu_vc, s_v)]``, with l_v the weight of a log-likelihood at the view's width and m_vc the first means. Between rounds the weights
    follow the agreement of the views.

    Args:
        prior: ``free`` leaves the class masses alone; ``estimated``, ``uniform`` or C numbers above 0 bring them there (Sinkhorn) in every round.
        anchor: Pseudo-images a that hold each mean at its first value: in the first view the text's, in others that of the most confident images.
        confident: Images per class of those means.
        temperature: Divisor of a log-likelihood at 512 coordinates; it grows with the width.
        rounds: Rounds of weights, assignments and statistics.
        chunk_size: Images in work at a time.

    Attributes:
        text_: Scaled prototypes (C, D_1), float64.
        means_: (C, D_1 + ... + D_V), float64, view by view.
        variances_: (D_1 + ... + D_V,), float64.
        weights_: Of the views, (V,), float64, mean 1.
        potentials_: (C,), float64; zero where the prior is free.
        widths_: D_1 to D_V, (V,), int64.
    """

    state_names: ClassVar[tuple[str, ...]] = ("text_", "means_", "variances_", "weights_", "potentials_", "widths_")
    _parameter_constraints: ClassVar[Constraints] = {
        "prior": [StrOptions({"free", "estimated", "uniform"}), "array-like"],
        "anchor": NOT_NEGATIVE,
        "confident": COUNT,
        "temperature": POSITIVE,
        "rounds": COUNT,
        "chunk_size": COUNT,
    }

    def __init__(
        self,
        *,
        prior: Literal["free", "estimated", "uniform"] | Sequence[float] = "free",
        anchor: float = 1.0,
        confident: int = 8,
        temperature: float = 50.0,
        rounds: int = 10,
        chunk_size: int = 4096,
    ) -> None:
        self.prior, self.anchor, self.confident, self.temperature, self.rounds = prior, anchor, confident, temperature, rounds
        self.chunk_size = chunk_size

    def _run(self, X: Any, prototypes: Features, logit_scale: float, hints: Hints | None) -> Tensor:
        views = _read_views(X)
        self.widths_ = torch.tensor([view.shape[1] for view in views])
        return self._solve(views, prototypes, logit_scale, hints)

    def _new_rows(self, X: Any) -> Tensor:
        views = _read_views(X)
        got, fitted = [view.shape[1] for view in views], self.widths_.tolist()
        if got not in (fitted, fitted[:1]):
            raise UserError(f"the views of X have widths {got}, but JointGmm was fitted on {fitted}; give all of them, or the first alone")
        return torch.cat(views, 1)

    def _fit(self, x: Tensor, prototypes: Tensor, scale: float, known: Known) -> Tensor:
        self.text_ = scale * prototypes.double()
        views = x.split(self.widths_.tolist(), 1)
        logits = views[0] @ self.text_.to(x).T  # (N, C)
        log_y = known.clamp(logits.log_softmax(1))
        prior = None if isinstance(self.prior, str) and self.prior == "free" else class_prior(self.prior, logits, known)
        z = log_y.exp()
        squares = mean_square(x, self.chunk_size)
        first = [text_means(prototypes.double(), views[0].mean(0, dtype=torch.float64))]
        first += [confident_means(view, z, self.confident) for view in views[1:]]
        anchors = torch.cat(first, 1)  # (C, D_1 + ... + D_V)
        self.potentials_ = torch.zeros(len(prototypes), dtype=torch.float64, device=x.device)
        self.means_ = anchors
        self.variances_ = self._variance(weighted_sums(x, z, self.chunk_size), z.sum(0, dtype=torch.float64), squares, anchors, len(x))
        for _ in range(self.rounds):
            likelihoods = self._likelihoods(views)
            self.weights_ = view_weights(log_y, likelihoods, self.chunk_size)
            z = self._assign(log_y, likelihoods, prior, known).exp()
            self._m_step(x, z, squares, anchors)
        return self._assign(log_y, self._likelihoods(views), prior, known)

    def _likelihoods(self, views: Sequence[Tensor]) -> list[Tensor]:
        """Log-likelihoods (N, C) of each view by its own mixture, weighted for its width, up to a term per image."""
        widths = self.widths_.tolist()
        parts = zip(views, self.means_.split(widths, 1), self.variances_.split(widths), strict=False)
        return [shared_log_likelihood(x, means, s).mul_(likelihood_weight(self.temperature, x.shape[1])) for x, means, s in parts]

    def _assign(self, log_y: Tensor, likelihoods: Sequence[Tensor], prior: Tensor | None, known: Known) -> Tensor:
        logits = log_y.clone()
        for weight, likelihood in zip(self.weights_.tolist(), likelihoods, strict=True):
            logits.add_(likelihood, alpha=weight)
        if prior is not None:
            self.potentials_, _ = balance(logits, prior, known, max_iter=100, tol=1e-3, chunk_size=self.chunk_size, start=self.potentials_)
        return logits.add_(self.potentials_.to(logits)).log_softmax(1)

    def _m_step(self, x: Tensor, z: Tensor, squares: Tensor, anchors: Tensor) -> None:
        sums, mass = weighted_sums(x, z, self.chunk_size), z.sum(0, dtype=torch.float64)
        total = (mass + self.anchor)[:, None]
        self.means_ = torch.where(total > 0, (sums + self.anchor * anchors) / total.clamp_min(torch.finfo(torch.float64).tiny), self.means_)
        self.variances_ = self._variance(sums, mass, squares, anchors, len(x))

    def _variance(self, sums: Tensor, mass: Tensor, squares: Tensor, anchors: Tensor, n: int) -> Tensor:
        """Mean squared distance (D_1 + ... + D_V,) of images and pseudo-images from their means: the best variance for those means."""
        own = n * squares + (mass[:, None] * self.means_.square() - 2 * sums * self.means_).sum(0)
        held = self.anchor * (anchors - self.means_).square().sum(0)
        variance = (own + held) / (n + self.anchor * len(mass))
        return torch.cat([floor_variance(part) for part in variance.split(self.widths_.tolist())])

    def _log_proba(self, x: Tensor) -> Tensor:
        widths = self.widths_.tolist()
        views = x.split(widths, 1) if x.shape[1] == sum(widths) else (x,)
        likelihoods = self._likelihoods(views)
        logits = (views[0] @ self.text_.to(x).T).add_(self.potentials_.to(x))
        for weight, likelihood in zip(self.weights_.tolist(), likelihoods, strict=False):
            logits.add_(likelihood, alpha=weight)
        return logits.log_softmax(1)


def view_weights(log_y: Tensor, likelihoods: Sequence[Tensor], chunk_size: int) -> Tensor:
    """Weights (V,), mean 1, in proportion to how far a view's own posterior agrees with the text's and those of the other views.

    Two posteriors agree by ``mean_i <p_i, q_i>``, the chance that draws from both name the same class.

    Args:
        log_y: Log text posteriors (N, C).
        likelihoods: Weighted log-likelihoods (N, C) of each view.
        chunk_size: Images in work at a time.
    """
    opinions = len(likelihoods) + 1
    agreement = torch.zeros(opinions, opinions, dtype=torch.float64, device=log_y.device)
    for parts in zip(log_y.split(chunk_size), *(part.split(chunk_size) for part in likelihoods), strict=True):
        posteriors = torch.stack([part.softmax(1) for part in parts]).flatten(1)  # (1 + V, n C)
        agreement += posteriors @ posteriors.T
    others = (agreement - agreement.diag().diag()).sum(1)[1:]
    return others / others.mean()


def _read_views(X: Any) -> list[Tensor]:
    views = [unit_rows(view, f"X[{i}]") for i, view in enumerate(X)] if _is_several(X) else [unit_rows(X, "X")]
    rows = {len(view) for view in views}
    if len(rows) > 1:
        raise UserError(f"the views of X have {sorted(rows)} rows; give the same images in the same order in each")
    return [view.to(views[0]) for view in views]


def _is_several(X: Any) -> bool:
    return isinstance(X, (list, tuple)) and bool(X) and all(isinstance(view, (Tensor, np.ndarray)) and view.ndim == 2 for view in X)

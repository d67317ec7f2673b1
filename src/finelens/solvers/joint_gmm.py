"""Several encoders at once: a Gaussian mixture in each, one assignment for all.

Ours, after the description of joint optimal transport over CLIP and vision-only encoders, from before its code was public. It is no reproduction;
the published form is :mod:`~finelens.solvers.self_adaptive_ot`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

from torch import Tensor

from finelens.solvers.columns import silenced
from finelens.solvers.known import Known
from finelens.solvers.mixture import Mixture, MixtureFit
from finelens.solvers.mixture_passes import MixturePasses
from finelens.solvers.parameters import COUNT, NOT_NEGATIVE, POSITIVE, Constraints, WordOrShares
from finelens.solvers.rows import FitRows, linear
from finelens.solvers.sampled_balance import prior_of
from finelens.solvers.sinkhorn import class_prior
from finelens.solvers.views import TRIED, ViewsSolver, unheard_views

# Class masses: how they come about, or one number a class.
Masses = Literal["free", "estimated", "uniform"] | Sequence[float]


class JointGmm(ViewsSolver):
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
        weights_: Of the views, (V,), float64, mean 1 of those that are listened to, 0 of others (:func:`~finelens.solvers.views.unheard_views`).
        potentials_: (C,), float64; zero where the prior is free.
        widths_: D_1 to D_V, (V,), int64.
    """

    state_names: ClassVar[tuple[str, ...]] = ("text_", "means_", "variances_", "weights_", "potentials_", "widths_")
    _parameter_constraints: ClassVar[Constraints] = {
        "prior": WordOrShares(frozenset({"free", "estimated", "uniform"})),
        "anchor": NOT_NEGATIVE,
        "confident": COUNT,
        "temperature": POSITIVE,
        "rounds": COUNT,
        "chunk_size": COUNT,
    }

    def __init__(
        self, *, prior: Masses = "free", anchor: float = 1.0, confident: int = 8, temperature: float = 50.0, rounds: int = 10, chunk_size: int = 4096
    ) -> None:
        self.prior, self.anchor, self.confident, self.temperature, self.rounds = prior, anchor, confident, temperature, rounds
        self.chunk_size = chunk_size

    def _fit(self, x: Tensor, prototypes: Tensor, scale: float, known: Known) -> Tensor:
        widths = self.widths_.tolist()
        self.text_ = scale * prototypes.double()
        logits = x[:, : widths[0]] @ self.text_.to(x).T  # (N, C)
        x = silenced(x, unheard_views(x, logits.argmax(1), widths, len(prototypes)), widths)
        prior = None if isinstance(self.prior, str) and self.prior == "free" else class_prior(self.prior, logits, known)
        fit = MixtureFit(
            x,
            logits.log_softmax(1),
            prototypes,
            known,
            widths=widths,
            anchor=self.anchor,
            confident=self.confident,
            temperature=self.temperature,
            chunk_size=self.chunk_size,
        )
        mixture = fit.start()
        answers = fit.run(mixture, self.rounds, prior).log_softmax(1)
        self._keep(mixture)
        return answers

    def _fit_passes(self, rows: FitRows, prototypes: Tensor, scale: float) -> None:
        self.text_ = scale * prototypes.double()
        tried = rows.at(rows.evenly(TRIED))
        named = (tried[:, : prototypes.shape[1]] @ prototypes.T).argmax(1)
        rows = rows.without(unheard_views(tried, named, rows.widths, len(prototypes)))
        score, prior = linear(self.text_), None
        if self.prior != "free":
            prior = prior_of(rows, self.prior, score, len(prototypes), self.chunk_size)
        fit = MixturePasses(
            rows,
            self.text_,
            prototypes,
            anchor=self.anchor,
            confident=self.confident,
            temperature=self.temperature,
            chunk_size=self.chunk_size,
        )
        mixture = fit.start()
        fit.run(mixture, self.rounds, prior)
        self._keep(mixture)

    def _keep(self, mixture: Mixture) -> None:
        self.means_, self.variances_, self.weights_, self.potentials_ = mixture.means, mixture.variances, mixture.weights, mixture.potentials

    def _log_proba(self, x: Tensor) -> Tensor:
        widths = self.widths_.tolist()
        mixture = Mixture(self.means_, self.variances_, self.weights_, self.potentials_, widths, self.temperature)
        return mixture.scores(x, x[:, : widths[0]] @ self.text_.to(x).T).log_softmax(1)

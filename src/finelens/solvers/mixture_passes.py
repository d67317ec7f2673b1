"""Gaussian mixtures in several feature spaces of more images than memory holds; the same rounds as :mod:`~finelens.solvers.mixture`, by passes.

A round is one pass: logits are linear in the features, so posteriors of a chunk come from one product and leave nothing but sums. Even masses come
from :class:`~finelens.solvers.sampled_balance.SampledBalance`; how far views agree, which is one number each, from a sample.
"""

from __future__ import annotations

import torch
from torch import Tensor

from finelens.solvers.gaussians import text_means
from finelens.solvers.mixture import HeldMeans, Mixture, view_weights
from finelens.solvers.rows import FitRows, Moments, Score, Sums, TopRows, linear
from finelens.solvers.sampled_balance import SampledBalance


class MixturePasses(HeldMeans):
    """Fits mixtures by passes.

    Args:
        rows: The images.
        text: Weights of the text logits, (C, D_1), float64.
        prototypes: Unit, (C, D_1).
        anchor: Pseudo-images that hold each mean.
        confident: Images per class of the first means in views without text.
        temperature: See :class:`~finelens.solvers.mixture.Mixture`.
        chunk_size: Images in work at a time where steps go over the sample.
        moments: Of the rows; None to look.
        shift: What is added to the text logits, (C,), float64; None for nothing.
    """

    def __init__(
        self,
        rows: FitRows,
        text: Tensor,
        prototypes: Tensor,
        *,
        anchor: float,
        confident: int,
        temperature: float,
        chunk_size: int,
        moments: Moments | None = None,
        shift: Tensor | None = None,
    ) -> None:
        moments = Moments.of(rows) if moments is None else moments
        self.rows, self.chunk_size = rows, chunk_size
        self.tell(text, text.new_zeros(len(text)) if shift is None else shift)
        first, widths = prototypes.shape[1], list(rows.widths)
        top = TopRows(confident, len(text))
        self._text_sums = Sums.of(rows, linear(text, self.shift), len(text), (lambda at, x, z: top.add(at, z)) if len(widths) > 1 else None)
        anchors = [text_means(prototypes.double(), moments.mean[:first])]
        if len(widths) > 1:
            # By view, each of unit length.
            anchors += [torch.nn.functional.normalize(view, dim=1) for view in top.means(rows).split(widths, 1)[1:]]
        super().__init__(torch.cat(anchors, 1), moments.squares, len(rows), widths=widths, anchor=anchor, temperature=temperature)

    def tell(self, text: Tensor, shift: Tensor) -> None:
        """Other text logits for the rounds that come: weights (C, D_1) and what is added, (C,), float64."""
        self.text, self.shift = text, shift

    def start(self) -> Mixture:
        """The first means, with the variance of the text posteriors around them."""
        return self.first(self._text_sums.sums, self._text_sums.mass)

    def run(self, mixture: Mixture, rounds: int, prior: Tensor | None = None, *, evenness: float = 1.0, max_iter: int = 100) -> None:
        """Rounds of view weights, assignments and statistics, and the last potentials; arguments as for ``MixtureFit.run``."""
        dual = torch.zeros_like(mixture.potentials)
        even = None if prior is None else SampledBalance(self.rows, prior, steps=max_iter, chunk_size=self.chunk_size)
        for _ in range(rounds):
            self._weigh(mixture)
            dual = self._bring(mixture, even, dual, evenness)
            found = Sums.of(self.rows, self.score(mixture), len(self.text))
            if even is not None:
                even.take(self._free_score(mixture), mixture.potentials, found.free)
            self.take(mixture, found.sums, found.mass)
        self._bring(mixture, even, dual, evenness)

    def score(self, mixture: Mixture) -> Score:
        """The mixture's logits."""
        weights, bias = mixture.linear(self.text)
        return linear(weights, bias + self.shift)

    def _free_score(self, mixture: Mixture) -> Score:
        """Those without potentials."""
        weights, bias = mixture.linear(self.text)
        return linear(weights, bias + self.shift - mixture.potentials)

    def _bring(self, mixture: Mixture, even: SampledBalance | None, dual: Tensor, evenness: float) -> Tensor:
        """Set the potentials; returns the whole ones (C,) that the next round starts from."""
        if even is None:
            return dual
        score = self._free_score(mixture)
        if even.ratio is None:
            even.look(score, evenness * even.potentials(score, dual))
        dual = even.potentials(score, dual)
        mixture.potentials = evenness * dual
        return dual

    def _weigh(self, mixture: Mixture) -> None:
        mixture.weights = torch.zeros_like(mixture.weights)
        if len(self.heard) == 1:
            mixture.weights[self.heard] = 1.0
            return
        positions = self.rows.sampled()
        x = self.rows.at(positions)
        given = self.rows.clamp_(positions, linear(self.text, self.shift)(positions, x).log_softmax(1))
        likelihoods = mixture.likelihoods(x)
        mixture.weights[self.heard] = view_weights(given, [likelihoods[v] for v in self.heard], self.chunk_size)

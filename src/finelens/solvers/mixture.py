"""Gaussian mixtures in several feature spaces that share one posterior an image: their statistics, their weights and the rounds that find them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from finelens.solvers.assignments import likelihood_weight, mean_square, weighted_sums
from finelens.solvers.columns import split_views
from finelens.solvers.gaussians import text_means
from finelens.solvers.known import Known
from finelens.solvers.sinkhorn import balance
from finelens.solvers.transclip import confident_means, floor_variance, shared_log_likelihood, shared_parameters


@dataclass
class Mixture:
    """One mixture a view, side by side.

    Attributes:
        means: (C, D_1 + ... + D_V), float64.
        variances: Of all classes, (D_1 + ... + D_V,), float64.
        weights: How much each view counts, (V,), float64, mean 1.
        potentials: What is added to the classes' logits, (C,), float64.
        widths: D_1 to D_V.
        temperature: Divisor of a log-likelihood at 512 coordinates; it grows with the width.
    """

    means: Tensor
    variances: Tensor
    weights: Tensor
    potentials: Tensor
    widths: Sequence[int]
    temperature: float

    def likelihoods(self, x: Tensor) -> list[Tensor]:
        """Log-likelihoods (N, C) of each view that x has by its own mixture, weighted for its width, up to a term per image."""
        widths = list(self.widths)
        parts = zip(split_views(x, widths), self.means.split(widths, 1), self.variances.split(widths), strict=False)
        return [shared_log_likelihood(v, means, s).mul_(likelihood_weight(self.temperature, v.shape[1])) for v, means, s in parts]

    def scores(self, x: Tensor, text: Tensor) -> Tensor:
        """Logits (N, C) of images by their text logits and the mixtures."""
        return self.add(text + self.potentials.to(x), self.likelihoods(x))

    def linear(self, text: Tensor) -> tuple[Tensor, Tensor]:
        """The same as weights (C, D_1 + ... + D_V) and biases (C,), float64, up to a term per image.

        Args:
            text: Weights of the text logits, (C, D_1), float64.
        """
        widths, weights, bias = list(self.widths), [], self.potentials.clone()
        parts = zip(self.weights.tolist(), self.means.split(widths, 1), self.variances.split(widths), strict=True)
        for weight, means, variance in parts:
            scaled, constant = shared_parameters(means, variance)
            own = weight * likelihood_weight(self.temperature, len(variance))
            weights.append(own * scaled)
            bias = bias + own * constant
        weights[0] = weights[0] + text
        return torch.cat(weights, 1), bias

    def add(self, logits: Tensor, likelihoods: Sequence[Tensor]) -> Tensor:
        """The logits (N, C) with the weighted likelihoods of the views added, in place."""
        for weight, likelihood in zip(self.weights.tolist(), likelihoods, strict=False):
            logits.add_(likelihood, alpha=weight)
        return logits


class HeldMeans:
    """The equations of mixtures whose means are held by pseudo-images at their first values, from sums over images.

    Args:
        anchors: First means, (C, D_1 + ... + D_V), float64.
        squares: Mean of ``x^2`` over the images, (D_1 + ... + D_V,), float64.
        count: N.
        widths: D_1 to D_V.
        anchor: Pseudo-images that hold each mean.
        temperature: See :class:`Mixture`.

    Attributes:
        heard: Views that are not silenced.
    """

    def __init__(self, anchors: Tensor, squares: Tensor, count: int, *, widths: Sequence[int], anchor: float, temperature: float) -> None:
        self.anchors, self.squares, self.count, self.widths = anchors, squares, count, list(widths)
        self.anchor, self.temperature = anchor, temperature
        # A silenced view is zero throughout.
        self.heard = [v for v, part in enumerate(squares.split(self.widths)) if part.any()]

    def first(self, sums: Tensor, mass: Tensor) -> Mixture:
        """The first means, with the variance of the text posteriors around them.

        Args:
            sums: ``z^T x`` of those posteriors, (C, D_1 + ... + D_V).
            mass: ``sum_i z_i``, (C,).
        """
        zeros = self.anchors.new_zeros(len(self.anchors))
        mixture = Mixture(self.anchors, self.anchors[0], self.anchors.new_ones(len(self.widths)), zeros, self.widths, self.temperature)
        mixture.variances = self._variance(mixture.means, sums, mass)
        return mixture

    def take(self, mixture: Mixture, sums: Tensor, mass: Tensor) -> None:
        """Means and variances for posteriors of these sums, in place: the best for those posteriors; arguments as for :meth:`first`."""
        total = (mass + self.anchor)[:, None]
        held = (sums + self.anchor * self.anchors) / total.clamp_min(torch.finfo(torch.float64).tiny)
        mixture.means = torch.where(total > 0, held, mixture.means)
        mixture.variances = self._variance(mixture.means, sums, mass)

    def _variance(self, means: Tensor, sums: Tensor, mass: Tensor) -> Tensor:
        """Mean squared distance (D_1 + ... + D_V,) of images and pseudo-images from their means: the best variance for those means."""
        own = self.count * self.squares + (mass[:, None] * means.square() - 2 * sums * means).sum(0)
        held = self.anchor * (self.anchors - means).square().sum(0)
        variance = (own + held) / (self.count + self.anchor * len(mass))
        return torch.cat([floor_variance(part) for part in variance.split(self.widths)])


class MixtureFit(HeldMeans):
    """Fits mixtures to images whose means are held by pseudo-images at their first values.

    These are the text's in the first view, moved to the images' centre, and in others means of the images of largest text posterior.

    Args:
        x: Unit views of the images side by side, (N, D_1 + ... + D_V).
        log_y: Log text posteriors (N, C).
        prototypes: Unit, (C, D_1).
        known: Rows whose class is given.
        widths: D_1 to D_V.
        anchor: Pseudo-images that hold each mean.
        confident: Images per class of the first means in views without text.
        temperature: See :class:`Mixture`.
        chunk_size: Images in work at a time.
    """

    def __init__(
        self,
        x: Tensor,
        log_y: Tensor,
        prototypes: Tensor,
        known: Known,
        *,
        widths: Sequence[int],
        anchor: float,
        confident: int,
        temperature: float,
        chunk_size: int,
    ) -> None:
        self.x, self.known, self.chunk_size = x, known, chunk_size
        self.tell(log_y)
        views, z = x.split(list(widths), 1), self.given.exp()
        first = [text_means(prototypes.double(), views[0].mean(0, dtype=torch.float64))]
        first += [confident_means(view, z, confident) for view in views[1:]]
        anchors = torch.cat(first, 1)  # (C, D_1 + ... + D_V)
        super().__init__(anchors, mean_square(x, chunk_size), len(x), widths=widths, anchor=anchor, temperature=temperature)

    def tell(self, log_y: Tensor) -> None:
        """Other log text posteriors (N, C) for the rounds that come."""
        self.log_y, self.given = log_y, self.known.clamp(log_y)

    def start(self) -> Mixture:
        """The first means, with the variance of the text posteriors around them."""
        z = self.given.exp()
        return self.first(weighted_sums(self.x, z, self.chunk_size), z.sum(0, dtype=torch.float64))

    def run(self, mixture: Mixture, rounds: int, prior: Tensor | None = None, *, evenness: float = 1.0, max_iter: int = 100) -> Tensor:
        """Rounds of view weights, assignments and statistics, and a last assignment.

        Args:
            mixture: Changed in place.
            rounds: How many.
            prior: Class masses (C,), float64, that Sinkhorn potentials bring the posteriors to; None leaves the masses alone.
            evenness: Share of those potentials that is taken.
            max_iter: Most Sinkhorn steps of a round; each goes on from the potentials of the last.

        Returns:
            Logits (N, C), also for known rows.
        """
        dual = torch.zeros_like(mixture.potentials)
        for _ in range(rounds):
            likelihoods = mixture.likelihoods(self.x)
            mixture.weights = torch.zeros_like(mixture.weights)
            mixture.weights[self.heard] = view_weights(self.given, [likelihoods[v] for v in self.heard], self.chunk_size)
            logits, dual = self._assign(mixture, likelihoods, prior, dual, evenness, max_iter)
            del likelihoods
            self.update(mixture, self.known.clamp(logits).log_softmax(1).exp_())
        return self._assign(mixture, mixture.likelihoods(self.x), prior, dual, evenness, max_iter)[0]

    def _assign(
        self, mixture: Mixture, likelihoods: Sequence[Tensor], prior: Tensor | None, dual: Tensor, evenness: float, max_iter: int
    ) -> tuple[Tensor, Tensor]:
        """Logits (N, C), and the whole potentials (C,) that the next round starts from."""
        logits = mixture.add(self.log_y.clone(), likelihoods)
        if prior is not None:
            dual, _ = balance(logits, prior, self.known, max_iter=max_iter, tol=1e-3, chunk_size=self.chunk_size, start=dual)
            mixture.potentials = evenness * dual
        return logits.add_(mixture.potentials.to(logits)), dual

    def update(self, mixture: Mixture, z: Tensor) -> None:
        """Means and variances for posteriors z (N, C), in place: the best for those posteriors."""
        self.take(mixture, weighted_sums(self.x, z, self.chunk_size), z.sum(0, dtype=torch.float64))


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

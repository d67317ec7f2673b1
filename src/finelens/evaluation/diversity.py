"""How varied photographs are, and how much of that their texts account for: Schur complement entropy (Jalali et al., "Dissecting CLIP", 2024).

Of pairs of unit-norm image features x and text features t, with the cosine kernel::

    C_II = mean x x^T    C_TT = mean t t^T    C_IT = mean x t^T
    S = C_II - C_IT C_TT^+ C_TI        R = C_IT C_TT^+ C_TI        C_II = S + R

S is what the texts do not account for, R what they do; their traces add up to 1. The score of each is ``exp(-sum l log l)`` of its eigenvalues l over
their sum: the number of directions that are equally strong. Deviations from the paper's own code: the pseudo-inverse instead of an inverse, as texts
are as many as classes and C_TT is singular; the cosine kernel alone, not random Fourier features of a Gaussian one. With ``X`` (N, D) and P the
projection on the columns of the texts, R is ``X^T P X / N``, so all scores come from N x N or D x D matrices, whichever is smaller.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# Eigenvalues of C_TT below this share of the largest are rounding.
TINY = 1e-8
# Photographs that a run's own line rests on, evenly drawn from all.
MOST = 500


@dataclass(frozen=True)
class Diversity:
    """What varies in a folder.

    Attributes:
        own: Score of what the texts do not account for; 1 where nothing is left.
        by_text: Score of what they do.
        all: Score of the images themselves, C_II.
        share: Share of the strength of the features that the texts account for, the trace of R, in [0, 1].
    """

    own: float
    by_text: float
    all: float
    share: float

    @property
    def line(self) -> str:
        """One sentence."""
        return (
            f"the texts of the classes account for {self.share:.0%} of what the model sees in the photographs, what all have in common included, in "
            f"about {self.by_text:.0f} directions; the other {1 - self.share:.0%} is spread over about {self.own:.0f} directions "
            "(background, pose, light, and what the texts do not say)"
        )


@torch.no_grad()
def diversity(images: Tensor, texts: Tensor) -> Diversity:
    """Scores of images with a text each.

    Args:
        images: Features, (N, D), N at least 1.
        texts: Feature of each image's text, (N, E), such as the prototype of the class that it was given.
    """
    x, t = _unit(images), _unit(texts)
    basis = _span(t)  # (N, R)
    explained = basis @ (basis.T @ x)
    share = float((explained**2).sum() / len(x))
    return Diversity(effective(x - explained), effective(explained), effective(x), min(1.0, share))


def effective(rows: Tensor) -> float:
    """``exp`` of the entropy of the eigenvalues of ``rows^T rows`` over their sum, (N, D); 1 for rows of zeros."""
    values = torch.linalg.eigvalsh(rows.T @ rows if rows.shape[1] <= len(rows) else rows @ rows.T).clamp_min(0)
    # Rows are of length 1 at most: less than this is rounding.
    total = values.sum()
    if total < TINY * len(rows):
        return 1.0
    return float(torch.special.entr(values / total).sum().exp())


def _span(texts: Tensor) -> Tensor:
    """Orthonormal columns (N, R) that span those of the texts (N, E), by the smaller of both Gram matrices."""
    wide = texts.shape[1] > len(texts)
    values, vectors = torch.linalg.eigh(texts @ texts.T if wide else texts.T @ texts)
    kept = values > TINY * values.max()
    found: Tensor = vectors[:, kept] if wide else texts @ vectors[:, kept] / values[kept].sqrt()
    return found


def evenly(count: int) -> slice:
    """At most :data:`MOST` of so many photographs."""
    return slice(0, None, -(-count // MOST))


@dataclass(frozen=True)
class PromptEffect:
    """The part of image features that is linear in the features of their texts.

    Attributes:
        weights: A, (D, E), of ``x' = x - A t``.
    """

    weights: Tensor

    @classmethod
    @torch.no_grad()
    def learn(cls, images: Tensor, texts: Tensor) -> PromptEffect:
        """The regression of images (N, D) on the texts of each (N, E), without a constant: ``A = C_IT C_TT^+``."""
        x, t = _unit(images), _unit(texts)
        return cls(x.T @ t @ _pseudo_inverse(t.T @ t))

    @torch.no_grad()
    def remove(self, images: Tensor, texts: Tensor) -> Tensor:
        """Images (M, D) without what their texts (M, E) account for, float64. On the pairs that it was learnt from, C_II of it is S."""
        left: Tensor = _unit(images) - _unit(texts) @ self.weights.T
        return left


def _unit(rows: Tensor) -> Tensor:
    return torch.nn.functional.normalize(rows.detach().double().cpu(), dim=1)


def _pseudo_inverse(matrix: Tensor) -> Tensor:
    found: Tensor = torch.linalg.pinv(matrix, rtol=TINY, hermitian=True)
    return found

"""What few-shot and label-free Gaussian discriminant analysis share: from class means and one covariance to a linear classifier beside the text's."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

TINY = 1e-12
# Rows whose logits stay in the cache between the product and the softmax.
CHUNK = 1024


def text_means(prototypes: Tensor, mean: Tensor) -> Tensor:
    """Prototypes (C, D) moved by the distance of their centre from the images' (D,): in CLIP, texts and images lie apart (the modality gap)."""
    return prototypes + (mean - prototypes.mean(0))


def discriminant(means: Tensor, covariance: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Weights and biases of Gaussians with a shared covariance and equal priors.

    Args:
        means: (C, D), float64.
        covariance: S, (D, D), float64.
        n: Number of images behind it.

    Returns:
        ``w_c = Theta mu_c`` (C, D) and ``b_c = - mu_c^T Theta mu_c / 2`` (C,).
    """
    return discriminant_of(means, precision_factor(covariance, n))


def precision_factor(covariance: Tensor, n: int) -> Tensor:
    """Cholesky factor L (D, D) of ``Theta = D (L L^T)^-1``.

    The precision is the ridge form of Kubokawa and Srivastava (2008): ``D ((n - 1) S + tr(S) I)^-1``, positive definite also for n < D.

    Args:
        covariance: S, (D, D), float64.
        n: Number of images behind it.
    """
    factor: Tensor = torch.linalg.cholesky(_ridge(covariance, n))
    return factor


def discriminant_of(means: Tensor, factor: Tensor) -> tuple[Tensor, Tensor]:
    """What :func:`discriminant` gives, of a factor (D, D) that is there already."""
    weights = means.shape[1] * torch.cholesky_solve(means.T, factor).T  # (C, D)
    return weights, -0.5 * (weights * means).sum(1)


def definite_factor(covariance: Tensor, n: int) -> Tensor | None:
    """What :func:`precision_factor` gives, or None where a covariance (D, D) has none: rounded sums of nearly equal images may leave such."""
    factor, info = torch.linalg.cholesky_ex(_ridge(covariance, n))
    return None if int(info) else factor


def _ridge(covariance: Tensor, n: int) -> Tensor:
    return (n - 1) * covariance + covariance.trace().clamp_min(TINY) * torch.eye(len(covariance), dtype=covariance.dtype, device=covariance.device)


@dataclass(frozen=True)
class Shared:
    """What all classes of a Gaussian discriminant have in common, and with it what a class needs that has nothing but a text.

    Attributes:
        factor: L of :func:`precision_factor`, (D, D), float32.
        shift: From the centre of the prototypes to that of the images, (D,), float64.
        alpha: Weight of the Gaussian part.
    """

    factor: Tensor
    shift: Tensor
    alpha: Tensor

    @classmethod
    def of(cls, factor: Tensor, prototypes: Tensor, mean: Tensor, alpha: float) -> Shared:
        """Of a fit with these prototypes (C, D) and this mean of the images (D,)."""
        return cls(factor.float(), mean - prototypes.mean(0), factor.new_tensor(alpha))

    def classifier(self, prototypes: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        """Rows (C', D) and intercepts (C',) of classes at their text means, ``w_c + shift``, under the shared covariance.

        Args:
            prototypes: Unit rows (C', D), float64.
            scale: Multiplier of cosines.
        """
        weights, bias = discriminant_of(prototypes + self.shift, self.factor.double())
        return scale * prototypes + self.alpha * weights, self.alpha * bias


def text_share(text: float, weights: Tensor, bias: Tensor, mean: Tensor, second: Tensor) -> float:
    """Weight alpha of Gaussian log-odds beside text logits: the ratio of their standard deviations over images, 0 where the Gaussians say nothing.

    Args:
        text: Standard deviation of the text logits, :func:`logit_std` of the scaled prototypes.
        weights: Of the Gaussian part, (C, D).
        bias: (C,).
        mean: Of the images, (D,).
        second: ``X^T X / N`` (D, D).
    """
    spread = logit_std(weights, bias, mean, second)
    return text / spread if spread > TINY else 0.0


def other_rows(kept: Tensor, rows: Tensor, new: Tensor) -> Tensor:
    """Rows (C', ...) of another list of classes: those of the fit where a class is kept, else the next ones of ``new``.

    Args:
        kept: Index among the rows of the fit, -1 for a new class, (C',).
        rows: Of the fit, (C, ...).
        new: Of each new class in its order.
    """
    found = rows[kept.clamp_min(0).to(rows.device)].clone()
    found[(kept < 0).to(rows.device)] = new.to(found)
    return found


def linear_log_proba(x: Tensor, coef: Tensor, intercept: Tensor, out: Tensor | None = None) -> Tensor:
    """``log softmax(x coef^T + intercept)``, (N, C), in the type of x; in the memory of ``out`` where it is given."""
    weights, bias = coef.to(x).T, intercept.to(x)
    if out is None and x.shape[0] <= CHUNK:
        return torch.addmm(bias, x, weights).log_softmax(1)
    found = x.new_empty(len(x), len(coef)) if out is None else out
    for rows, part in zip(x.split(CHUNK), found.split(CHUNK), strict=True):
        torch.addmm(bias, rows, weights, out=part)
        torch.log_softmax(part, 1, out=part)
    return found


def second_moment(x: Tensor, chunk_size: int, kind: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Mean (D,) and ``X^T X / N`` (D, D), float64; products in the type ``kind``, chunks are added up in float64."""
    second = torch.zeros(x.shape[1], x.shape[1], dtype=torch.float64, device=x.device)
    total = torch.zeros(x.shape[1], dtype=torch.float64, device=x.device)
    for chunk in x.split(chunk_size):
        rows = chunk.to(kind)
        second += rows.T @ rows
        total += rows.sum(0)
    return total / len(x), second / len(x)


def logit_std(weights: Tensor, bias: Tensor | float, mean: Tensor, second: Tensor) -> float:
    """Standard deviation over images and classes of ``x w^T + b`` after centring over the classes, from moments of x alone."""
    w, b = weights - weights.mean(0), weights.new_zeros(len(weights)) + bias
    b = b - b.mean()
    square = ((w @ second) * w).sum() + 2 * b @ (w @ mean) + b @ b
    return float((square / len(w)).clamp_min(0).sqrt())

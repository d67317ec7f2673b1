"""Parts that several self-training methods share."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from finelens.training.loss_form import LossForm
from finelens.training.losses import log_batch_marginal
from finelens.training.marginal import ClassPrior

PLAIN = LossForm()


@dataclass(frozen=True)
class PseudoLabels:
    """What a batch is trained towards.

    Attributes:
        labels: Hard pseudo-labels (B,), int64.
        weights: How much each counts, in [0, 1], (B,).
        posterior: Probabilities that the labels are the argmax of, (B, C).
    """

    labels: Tensor
    weights: Tensor
    posterior: Tensor


def ranking(probabilities: Tensor, labels: Tensor) -> Tensor:
    """``p[y] / max p``, (B,): 1 where the scorer itself would choose ``y``, less the more it prefers another class (DPA, ranking of pseudo-labels).

    Args:
        probabilities: (B, C).
        labels: (B,).
    """
    return probabilities.gather(1, labels[:, None])[:, 0] / probabilities.amax(1)


def weighted_cross_entropy(logits: Tensor, labels: Tensor, weights: Tensor, smoothing: float = 0.0, form: LossForm = PLAIN) -> Tensor:
    """``mean_b omega_b CE(z_b, y_b)``: the mean is over the batch, so doubtful batches count less.

    Args:
        logits: (B, C).
        labels: (B,).
        weights: (B,).
        smoothing: Share of every target that is spread evenly over the classes.
        form: Another loss in the place of cross-entropy.
    """
    return (weights * form.each(logits, labels, smoothing)).mean()


def self_training_loss(
    logits: Tensor, pseudo: PseudoLabels, class_prior: ClassPrior, marginal_weight: float, smoothing: float = 0.0, form: LossForm = PLAIN
) -> tuple[Tensor, dict[str, float | Tensor]]:
    """Weighted cross-entropy and the marginal term of the batch: the loss that the self-training methods share.

    Args:
        logits: Of the strong views, (B, C).
        pseudo: Labels and weights.
        class_prior: What the batch marginal is drawn to.
        marginal_weight: Weight of that term.
        smoothing: Of the cross-entropy.
        form: Another loss in its place.

    Returns:
        The scalar loss and numbers to log.
    """
    loss = weighted_cross_entropy(logits, pseudo.labels, pseudo.weights, smoothing, form)
    log: dict[str, float | Tensor] = {
        "ce": loss,
        "pseudo_confidence": pseudo.posterior.amax(-1).mean(),
        "pseudo_weight": pseudo.weights.mean(),
        "agreement": (logits.argmax(-1) == pseudo.labels).float().mean(),
    }
    term = class_prior.loss(log_batch_marginal(logits))
    if term is not None:
        log["marginal"] = term
        loss = loss + marginal_weight * term
    return loss, log


def split_by_decay(
    named: Iterable[tuple[str, nn.Parameter]], weight_decay: float, decayed: Callable[[str, nn.Parameter], bool]
) -> list[dict[str, Any]]:
    """Optimiser groups as ``Task.parameter_groups`` returns them: one without weight decay, one with.

    Args:
        named: Parameters to train.
        weight_decay: Decay of the second group.
        decayed: Whether a parameter belongs to it.
    """
    parameters = list(named)
    return [
        {"params": [pair for pair in parameters if not decayed(*pair)], "weight_decay": 0.0},
        {"params": [pair for pair in parameters if decayed(*pair)], "weight_decay": weight_decay},
    ]


def is_matrix(name: str, parameter: nn.Parameter) -> bool:
    """The usual rule for :func:`split_by_decay`: norms and biases are left alone."""
    return parameter.ndim >= 2

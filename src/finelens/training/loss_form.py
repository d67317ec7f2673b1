"""Other classification losses than cross-entropy: InfoLOOB, and hard negatives on the geodesic between images and texts.

Fürst et al., "CLOOB", NeurIPS 2022; Oh et al., "Geodesic Multi-Modal Mixup for Robust Fine-Tuning", NeurIPS 2023. Documentation: docs/losses.md.
Shapes: B images of a batch, C classes, E joint width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from finelens.images.randomness import generator
from finelens.training.config import Loss, TrainingConfig

# Temperature of the mixed term over that of the plain one (0.07 and 0.01).
MIX_SCALE = 0.01 / 0.07
# Angles below this are mixed on the chord.
SMALL_ANGLE = 1e-3


@dataclass(frozen=True)
class LossForm:
    """What a step is trained by.

    Attributes:
        name: ``ce``, ``infoloob`` in its place, or ``m2-mix`` beside it.
        weight: Of the mixed term in the first epoch.
        seed: Of the mixtures.
    """

    name: Loss = "ce"
    weight: float = 0.0
    seed: int = 0

    @classmethod
    def of(cls, training: TrainingConfig, seed: int) -> LossForm:
        """What a run asks for."""
        return cls(training.loss, training.mix_weight, seed)

    def each(self, logits: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
        """The loss of each image, (B,).

        Args:
            logits: (B, C).
            labels: (B,).
            smoothing: Of the cross-entropy; InfoLOOB has none.
        """
        if self.name == "infoloob":
            return infoloob(logits, labels)
        return F.cross_entropy(logits, labels, reduction="none", label_smoothing=smoothing)

    def mixed(self, images: Tensor, prototypes: Tensor, labels: Tensor, scale: float, epoch: int, step: int) -> Tensor | None:
        """``w / (epoch + 1)`` times the mixed term of a batch; None for another form, and without weight.

        Args:
            images: Unit-norm features (B, E).
            prototypes: Unit-norm text features of the classes, (C, E).
            labels: (B,).
            scale: The model's own logit scale.
            epoch: From 0.
            step: In the epoch, from 0.
        """
        if self.name != "m2-mix" or not self.weight:
            return None
        draw = torch.from_numpy(generator(self.seed, epoch, f"step {step}", "m2-mix").random(len(images)))
        # Beta(1/2, 1/2) by inversion.
        shares = (math.pi / 2 * draw).sin().square().to(images)
        return self.weight / (epoch + 1) * m2_mix(images, prototypes[labels], labels, shares, MIX_SCALE * scale)


def infoloob(logits: Tensor, labels: Tensor) -> Tensor:
    """``- z_y + log sum_c exp z_c`` over the other classes c alone, (B,): the positive is left out of the sum, so a sure image still teaches.

    Zero where there is no other class. Arguments as for cross-entropy.
    """
    if logits.shape[1] == 1:
        return 0 * logits[:, 0]
    positive = logits.gather(1, labels[:, None])  # (B, 1)
    return logits.scatter(1, labels[:, None], -torch.inf).logsumexp(1) - positive[:, 0]


def slerp(a: Tensor, b: Tensor, share: Tensor) -> Tensor:
    """``sin(l th) / sin th a + sin((1 - l) th) / sin th b``, th the angle of the unit rows a and b: the point of the arc, (B, E).

    Args:
        a: (B, E).
        b: (B, E).
        share: l in [0, 1], of a, (B,).
    """
    cosine = (a * b).sum(1, keepdim=True)  # (B, 1)
    apart = cosine.abs() < math.cos(SMALL_ANGLE)
    # Where the angle vanishes its sine would divide by zero, in the gradient too.
    angle = torch.arccos(torch.where(apart, cosine, 0.0))
    part = share[:, None]
    arc = ((part * angle).sin() * a + ((1 - part) * angle).sin() * b) / angle.sin()
    return torch.where(apart, arc, F.normalize(part * a + (1 - part) * b, dim=1))


def m2_mix(images: Tensor, texts: Tensor, labels: Tensor, shares: Tensor, scale: float) -> Tensor:
    """Contrast of each image with its text against mixtures of the other pairs of the batch, and of each text with its image; mean of both.

    Pairs of the same class are no negatives. The mixtures take gradient, as both of their ends do.

    Args:
        images: Unit-norm features (B, E).
        texts: Unit-norm text features of their classes, (B, E).
        labels: (B,).
        shares: Of the image in its mixture, (B,).
        scale: Multiplier of cosines.
    """
    mixtures = slerp(images, texts, shares)
    positive = scale * (images * texts).sum(1)  # (B,)
    same = labels[:, None] == labels
    total = positive.new_zeros(())
    for anchors in (images, texts):
        negatives = (scale * anchors @ mixtures.T).masked_fill(same, -torch.inf)  # (B, B)
        total = total + (torch.logaddexp(positive, negatives.logsumexp(1)) - positive).mean() / 2
    return total

"""Image prototypes and their alignment with the text prototypes. Shapes: n images, C classes, E joint width."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def image_prototypes(features: Tensor, labels: Tensor, text: Tensor) -> Tensor:
    """Unit-norm mean of the features labelled with each class; a class that no image is labelled with takes its text prototype.

    Args:
        features: (n, E).
        labels: (n,), int64.
        text: Unit-norm text prototypes, (C, E).

    Returns:
        (C, E).
    """
    sums = torch.zeros_like(text).index_add_(0, labels, features.to(text.dtype))
    counts = torch.bincount(labels, minlength=len(text))
    return torch.where(counts[:, None] > 0, F.normalize(sums, dim=-1), text)


def alignment_loss(image: Tensor, text: Tensor, scale: float) -> Tensor:
    """``CE(w P Z^T, identity)``: each image prototype should be nearest to the text prototype of its own class.

    Args:
        image: P, (C, E); constant.
        text: Unit-norm Z, (C, E); takes the gradient.
        scale: w.
    """
    return F.cross_entropy(scale * image.detach() @ text.T, torch.arange(len(text), device=text.device))

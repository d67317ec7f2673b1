"""The Learned Alignment Score: selected crops of an image against trainable class anchors.

Shapes: B images, M candidate crops, K kept, C classes, J anchors per class, E joint width. Features and anchors are unit-norm; s is the logit scale.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def class_logits(features: Tensor, anchors: Tensor, scale: float) -> Tensor:
    """``logsumexp_j s <f, A_cj> - log J``; for one anchor per class plainly ``s <f, A_c>``.

    Args:
        features: (..., E).
        anchors: (C, J, E).
        scale: s.

    Returns:
        (..., C).
    """
    cosines = torch.einsum("...e,cje->...cj", features, anchors)  # (..., C, J)
    return torch.logsumexp(scale * cosines, dim=-1) - math.log(anchors.shape[1])


def select_crops(crops: Tensor, reference: Tensor, keep: int, crop_scale: float) -> tuple[Tensor, Tensor]:
    """The crops most like the whole image, ``r_m = <f(crop_m), f_cls>``, and their weights ``softmax(r / tau_w)``.

    Args:
        crops: (B, M, E).
        reference: Global feature of the weak view, (B, E).
        keep: K.
        crop_scale: ``1 / tau_w``.

    Returns:
        Kept crops (B, K, E), nearest first, and weights (B, K), which sum to 1.
    """
    relevance = torch.einsum("bme,be->bm", crops, reference)
    nearest, position = relevance.topk(keep, dim=1)  # (B, K)
    kept = crops.gather(1, position[..., None].expand(-1, -1, crops.shape[-1]))  # (B, K, E)
    return kept, (crop_scale * nearest).softmax(-1)


def alignment_logits(kept: Tensor, weights: Tensor, anchors: Tensor, scale: float) -> Tensor:
    """``s las(x, c) = sum_k w_k s <f(crop_k), A_c>``, (B, C), with :func:`class_logits` as the score of a crop.

    Args:
        kept: (B, K, E).
        weights: (B, K).
        anchors: (C, J, E).
        scale: s.
    """
    return torch.einsum("bk,bkc->bc", weights, class_logits(kept, anchors, scale))

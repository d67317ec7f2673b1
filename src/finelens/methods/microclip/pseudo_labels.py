"""Pseudo-labels of microCLIP: the multi-view prior of the frozen head and its aggregation with the learnable head."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def multi_view_feature(crops: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    """Composite of crop features, weighted by their similarity to the whole image (after Li et al., 2024, "WCA").

    Args:
        crops: Unit-norm crop features (B, M, E).
        reference: Unit-norm feature of the weak view (B, E).

    Returns:
        Unit-norm composite (B, E) and relevance ``s_k = <f_k, f>`` (B, M); the weights are its softmax at temperature 1.
    """
    relevance = torch.einsum("bme,be->bm", crops, reference)
    return F.normalize(torch.einsum("bm,bme->be", relevance.softmax(-1), crops), dim=-1), relevance


def fuse_features(global_: Tensor, fine: Tensor, fusion: float) -> Tensor:
    """TokenFusion at feature level: ``l2norm(w f_cls + (1 - w) f_fg)``, (B, E)."""
    return F.normalize(fusion * global_ + (1 - fusion) * fine, dim=-1)


def aggregate(prior_logits: Tensor, head_logits: Tensor, gamma: float) -> Tensor:
    """Dynamic Knowledge Aggregation: ``gamma * prior + (1 - gamma) * head``, (B, C), in cosine range."""
    return gamma * prior_logits + (1 - gamma) * head_logits

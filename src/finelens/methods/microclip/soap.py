"""Saliency-oriented attention pooling (microCLIP, SOAP): a fine-grained token from the patches, led by a saliency query."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class Soap(nn.Module):
    """Single-head attention pooling with an empty token.

    ``W_q``, ``W_k``, ``W_v`` (W, W) start as the identity and have no bias. An empty token closes the sequence: attention on it takes weight from
    the patches and adds nothing while it is the zero vector.

    Args:
        width: Token width W.
        learnable_empty: Train the empty token (1, W) instead of keeping it zero.
    """

    def __init__(self, width: int, *, learnable_empty: bool = False) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.eye(width))
        self.key = nn.Parameter(torch.eye(width))
        self.value = nn.Parameter(torch.eye(width))
        self.empty = nn.Parameter(torch.zeros(1, width), requires_grad=learnable_empty)

    def forward(self, query: Tensor, patches: Tensor) -> tuple[Tensor, Tensor]:
        """Pool the patches.

        Args:
            query: (B, W).
            patches: (B, N, W).

        Returns:
            Fine-grained token (B, W), not projected, and attention (B, N + 1), the empty token last.
        """
        tokens = torch.cat([patches, self.empty.to(patches.dtype).expand(len(patches), 1, -1)], dim=1)  # (B, N + 1, W)
        # (W_q q) . (W_k v) = (W_k^T W_q q) . v: one vector per image is projected instead of every patch.
        led = query @ self.query.T @ self.key  # (B, W)
        attention = (torch.einsum("bw,bnw->bn", led, tokens) / math.sqrt(query.shape[-1])).softmax(-1)  # (B, N + 1)
        return torch.einsum("bn,bnw->bw", attention, tokens) @ self.value.T, attention


def masked_mean(patches: Tensor, mask: Tensor) -> Tensor:
    """Mean of the patches that the mask selects, (B, W); zero where it selects none.

    Args:
        patches: (B, N, W).
        mask: (B, N) bool.
    """
    weights = mask.to(patches.dtype)
    return torch.einsum("bn,bnw->bw", weights, patches) / weights.sum(1, keepdim=True).clamp(min=1)

"""One microCLIP step in the order of operations of the released code, written from the paper's equations and a description of that code.

It computes the same numbers as ``finelens.methods.microclip`` with ``released_code=True`` and serves to compare speed and results. What it does as
released: each block of the tower runs ``nn.MultiheadAttention`` and, beside it, the value path (a second input projection, output projections of
queries, keys and values, and a second MLP), of which only the last block's is read; the weak view, each of the M crops and the strong view are
forwards of their own; NCut solves in the tokens' precision and fixes signs in a Python loop over the images; SOAP projects every patch. Left out, as
they cost time and change no number: anomaly mode, ``create_graph`` and the synchronisation in each step.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from finelens.backbones.vit import MLP, LayerNorm, ViTConfig

TAU, EPS = 0.2, 1e-6

Encode = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Pixels (B, 3, S, S) to global features (B, E), not normalised, and patch tokens (B, N, W)."""


class PlainBlock(nn.Module):
    """A block that returns the ordinary stream and the value path's, parameters named as in ours."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.ln_1 = LayerNorm(config.width, config.norm_eps)
        self.attn = nn.MultiheadAttention(config.width, config.heads)
        self.ln_2 = LayerNorm(config.width, config.norm_eps)
        self.mlp = MLP(config)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Of tokens (L, B, W)."""
        y = self.ln_1(x)
        projected = F.linear(y, self.attn.in_proj_weight, self.attn.in_proj_bias)  # (L, B, 3 W)
        _, _, value = (self.attn.out_proj(part) for part in projected.chunk(3, dim=-1))
        side = x + value
        side = side + self.mlp(self.ln_2(side))
        x = x + self.attn(y, y, y, need_weights=False)[0]
        return x + self.mlp(self.ln_2(x)), side


class PlainTransformer(nn.Module):
    """The stack of blocks."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(PlainBlock(config) for _ in range(config.layers))


class PlainViT(nn.Module):
    """CLIP's ViT, sequence first; loads the weights of :class:`finelens.backbones.vit.VisionTransformer`."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, config.width, config.patch_size, stride=config.patch_size, bias=False)
        self.class_embedding = nn.Parameter(torch.empty(config.width))
        self.positional_embedding = nn.Parameter(torch.empty(config.side**2 + 1, config.width))
        self.ln_pre = LayerNorm(config.width, config.norm_eps)
        self.transformer = PlainTransformer(config)
        self.ln_post = LayerNorm(config.width, config.norm_eps)
        self.proj = nn.Parameter(torch.empty(config.width, config.output_dim))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """See :data:`Encode`."""
        x = self.conv1(images).flatten(2).transpose(1, 2)  # (B, N, W)
        x = torch.cat([self.class_embedding.expand(len(x), 1, -1), x], dim=1) + self.positional_embedding
        x = self.ln_pre(x).transpose(0, 1)  # (1 + N, B, W)
        for block in self.transformer.resblocks:
            x, side = block(x)
        return self.ln_post(x[0]) @ self.proj, self.ln_post(side.transpose(0, 1))[:, 1:]


@dataclass
class PlainStep:
    """Loss of one step.

    Attributes:
        encode: The tower.
        project: Tokens (..., W) to the joint space (..., E).
        head: Learnable head (C, E).
        frozen_head: (C, E).
        query: W_q (W, W).
        key: W_k.
        value: W_v.
        logit_scale: Multiplier of cosines.
        gamma: Share of the multi-view prior.
        fusion: Share of the global branch.
        eigen_dtype: Type in which the cut is solved; float32 as released.
    """

    encode: Encode
    project: Callable[[Tensor], Tensor]
    head: nn.Parameter
    frozen_head: Tensor
    query: nn.Parameter
    key: nn.Parameter
    value: nn.Parameter
    logit_scale: float
    gamma: float = 0.5
    fusion: float = 0.5
    eigen_dtype: torch.dtype = torch.float32

    def loss(self, weak: Tensor, strong: Tensor, crops: Tensor) -> Tensor:
        """Cross-entropy and marginal term on the first step of an epoch; pixels normalised, crops (B, M, 3, S, S)."""
        with torch.no_grad():
            global_, fine = self.features(weak)
            views = torch.stack([F.normalize(self.encode(crops[:, m])[0], dim=-1) for m in range(crops.shape[1])], dim=1)  # (B, M, E)
            weights = torch.einsum("bme,be->bm", views, global_).softmax(-1)
            composite = F.normalize(torch.einsum("bm,bme->be", weights, views), dim=-1)
            fused = F.normalize(self.fusion * global_ + (1 - self.fusion) * fine, dim=-1)
            head = F.normalize(self.head, dim=-1)
            pseudo = self.gamma * composite @ self.frozen_head.T + (1 - self.gamma) * fused @ head.T  # (B, C)
            target = pseudo.argmax(-1)
        global_, fine = self.features(strong)
        head = F.normalize(self.head, dim=-1)
        logits = self.fusion * self.logit_scale * global_ @ head.T + (1 - self.fusion) * self.logit_scale * fine @ head.T
        marginal = logits.softmax(-1).mean(0)
        return F.cross_entropy(logits, target) - marginal.log().mean() / 0.5

    def features(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Global and fine-grained feature, (B, E), unit norm."""
        global_, patches = self.encode(images)
        mask = self.cut(patches).to(patches.dtype)  # (B, N)
        query = torch.einsum("bn,bnw->bw", mask, patches) / mask.sum(1, keepdim=True).clamp(min=1)
        tokens = torch.cat([patches, torch.zeros_like(patches[:, :1])], dim=1)  # (B, N + 1, W)
        q, k, v = query @ self.query.T, tokens @ self.key.T, tokens @ self.value.T
        attention = (torch.einsum("bw,bnw->bn", q, k) / math.sqrt(q.shape[-1])).softmax(-1)
        fine = torch.einsum("bn,bnw->bw", attention, v)
        return F.normalize(global_, dim=-1), F.normalize(self.project(fine), dim=-1)

    @torch.no_grad()
    def cut(self, patches: Tensor) -> Tensor:
        """Salient patches (B, N): raw dot products, threshold at the standard deviation, sign fixed afterwards image by image."""
        similar = (patches @ patches.transpose(1, 2) > TAU).to(self.eigen_dtype)
        affinity = similar.clamp(min=EPS)
        degree = affinity.sum(2)
        scale = torch.diag_embed(1 / (degree.sqrt() + EPS))
        _, vectors = torch.linalg.eigh(scale @ (torch.diag_embed(degree) - affinity) @ scale)
        second = vectors[..., 1]
        mask = second > second.std(1, keepdim=True)
        for i in range(len(mask)):
            seed = int(second[i].abs().argmax())
            if not bool(mask[i, seed]):
                mask[i] = ~mask[i]
        return mask

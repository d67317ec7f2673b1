"""OpenAI-style Vision Transformer image tower (Radford et al. 2021), with patch tokens from the last block's value path.

Own forward instead of ``nn.MultiheadAttention``: with frozen weights and reduced precision the latter is several times slower, and it does not expose
the value vectors. Parameters carry open_clip's names, so its ``visual`` state dicts load and save without renaming.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from finelens.backbones.tower import ImageTower, unit
from finelens.protocol import ImageTokens


@dataclass(frozen=True)
class ViTConfig:
    """Architecture of a :class:`VisionTransformer`.

    Attributes:
        image_size: Side of the square input, pixels.
        patch_size: Side of a patch, pixels.
        width: Token width W.
        layers: Number of blocks.
        heads: Attention heads; must divide ``width``.
        output_dim: Joint width E; equal to ``width`` without a projection.
        mlp_ratio: Hidden width of the MLP over W.
        quick_gelu: ``x * sigmoid(1.702 x)`` instead of the exact GELU. It belongs to the weights.
        norm_eps: Epsilon of all layer norms.
        ln_pre: Whether a layer norm follows the positional embedding.
        has_proj: Whether a (W, E) projection follows pooling.
        pool: Class token (``tok``), mean of the patch tokens (``avg``) or attention of a learned query over them (``map``, SigLIP).
        norm_after_pool: With ``avg``: final layer norm of the mean instead of mean of the normed tokens.
        class_token: Whether a class token stands before the patches.
        patch_bias: Whether the patch embedding has a bias.
        tanh_gelu: GELU by its tanh approximation. It belongs to the weights.
    """

    image_size: int
    patch_size: int
    width: int
    layers: int
    heads: int
    output_dim: int
    mlp_ratio: float = 4.0
    quick_gelu: bool = False
    norm_eps: float = 1e-5
    ln_pre: bool = True
    has_proj: bool = True
    pool: Literal["tok", "avg", "map"] = "tok"
    norm_after_pool: bool = False
    class_token: bool = True
    patch_bias: bool = False
    tanh_gelu: bool = False

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise ValueError(f"width must be a multiple of heads: {self}")
        if not self.has_proj and self.output_dim != self.width:
            raise ValueError(f"without a projection output_dim must equal width: {self}")
        if self.pool == "tok" and not self.class_token:
            raise ValueError(f"without a class token pool must be avg or map: {self}")

    @property
    def side(self) -> int:
        """Rows (and columns) of the patch grid; what is left of the image at the right and at the bottom is not seen."""
        return self.image_size // self.patch_size


def _random(*shape: int, std: float) -> nn.Parameter:
    """Normal weights of this deviation. Without storage they stay unset: there, drawing them would make torch import its compiler."""
    weights = torch.empty(*shape)
    return nn.Parameter(weights if weights.is_meta else weights.normal_().mul_(std))


class LayerNorm(nn.LayerNorm):
    """Layer norm computed in float32 or wider whatever the precision around it; the result has the input's type."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalise the last axis of (..., W)."""
        dtype = torch.promote_types(input.dtype, torch.float32)
        return F.layer_norm(input.to(dtype), self.normalized_shape, self.weight.to(dtype), self.bias.to(dtype), self.eps).to(input.dtype)


class QuickGELU(nn.Module):
    """``x * sigmoid(1.702 x)``, the activation of OpenAI's weights."""

    def forward(self, x: Tensor) -> Tensor:
        """Apply elementwise."""
        return x * torch.sigmoid(1.702 * x)


class Attention(nn.Module):
    """Multi-head self-attention with one fused input projection."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.in_proj_weight = _random(3 * width, width, std=width**-0.5)
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)

    def forward(self, y: Tensor, n_queries: int | None = None) -> tuple[Tensor, Tensor]:
        """Attend over all tokens.

        Args:
            y: Normed tokens (B, L, W).
            n_queries: Compute only the first so many output rows.

        Returns:
            Attention output (B, Q, W) and the value vectors of all tokens (B, L, W), both after one projection: output projection for the
            former, value projection for the latter.
        """
        width = y.shape[-1]
        if n_queries is None:
            q, k, v = F.linear(y, self.in_proj_weight, self.in_proj_bias).chunk(3, dim=-1)  # 3 x (B, L, W)
        else:
            q = F.linear(y[:, :n_queries], self.in_proj_weight[:width], self.in_proj_bias[:width])  # (B, Q, W)
            k, v = F.linear(y, self.in_proj_weight[width:], self.in_proj_bias[width:]).chunk(2, dim=-1)  # 2 x (B, L, W)
        return self._mix(q, k, v), v

    def ask(self, query: Tensor, y: Tensor) -> Tensor:
        """What queries (B, Q, W) from elsewhere find among the tokens (B, L, W): (B, Q, W)."""
        width = y.shape[-1]
        q = F.linear(query, self.in_proj_weight[:width], self.in_proj_bias[:width])  # (B, Q, W)
        k, v = F.linear(y, self.in_proj_weight[width:], self.in_proj_bias[width:]).chunk(2, dim=-1)  # 2 x (B, L, W)
        return self._mix(q, k, v)

    def _mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        mixed = F.scaled_dot_product_attention(self._split(q), self._split(k), self._split(v))  # (B, H, Q, W / H)
        return self.out_proj(mixed.transpose(1, 2).flatten(2))  # (B, Q, W)

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, H, L, W / H)


class MLP(nn.Sequential):
    """Two linear layers with the activation between them, under open_clip's names."""

    def __init__(self, config: ViTConfig):
        super().__init__()
        hidden = int(config.width * config.mlp_ratio)
        self.add_module("c_fc", nn.Linear(config.width, hidden))
        self.add_module("gelu", QuickGELU() if config.quick_gelu else nn.GELU("tanh" if config.tanh_gelu else "none"))
        self.add_module("c_proj", nn.Linear(hidden, config.width))


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, config: ViTConfig):
        super().__init__()
        self.ln_1 = LayerNorm(config.width, config.norm_eps)
        self.attn = Attention(config.width, config.heads)
        self.ln_2 = LayerNorm(config.width, config.norm_eps)
        self.mlp = MLP(config)

    def forward(self, x: Tensor) -> Tensor:
        """Residual stream before -> after the block, (B, L, W)."""
        mixed, _ = self.attn(self.ln_1(x))
        return self._feed(x + mixed)

    def last(self, x: Tensor, n_queries: int | None, n_skip: int | None) -> tuple[Tensor, Tensor | None]:
        """The last block: only the rows that are read afterwards, and on request the value path of the others.

        The value path leaves the attention weights out, every token keeps its own value (MaskCLIP; microCLIP, released code):
        ``r = h + OutProj(V(ln_1(h)))``, then ``r + MLP(ln_2(r))``.

        Args:
            x: Residual stream before the block, (B, L, W).
            n_queries: Rows of the ordinary path to compute, None for all.
            n_skip: Leading tokens without a value path (class token and prompts), None for no value path.

        Returns:
            Ordinary path (B, Q, W) and value path (B, L - n_skip, W) or None.
        """
        mixed, value = self.attn(self.ln_1(x), n_queries)
        ordinary = self._feed(x[:, :n_queries] + mixed)  # (B, Q, W)
        if n_skip is None:
            return ordinary, None
        return ordinary, self._feed(x[:, n_skip:] + self.attn.out_proj(value[:, n_skip:]))

    def _feed(self, x: Tensor) -> Tensor:
        return x + self.mlp(self.ln_2(x))


class AttentionPool(nn.Module):
    """One learned query that attends over all tokens, and an MLP with a residual (SigLIP, Zhai et al., ICCV 2023)."""

    def __init__(self, config: ViTConfig):
        super().__init__()
        self.probe = _random(config.width, std=config.width**-0.5)
        self.attn = Attention(config.width, config.heads)
        self.norm = LayerNorm(config.width, config.norm_eps)
        self.mlp = MLP(config)

    def forward(self, x: Tensor) -> Tensor:
        """Pool tokens (B, L, W) to (B, W)."""
        mixed = self.attn.ask(self.probe.to(x.dtype).expand(x.shape[0], 1, -1), x)[:, 0]  # (B, W)
        return mixed + self.mlp(self.norm(mixed))


class Transformer(nn.Module):
    """The stack of blocks, under open_clip's name ``resblocks``."""

    def __init__(self, config: ViTConfig):
        super().__init__()
        self.resblocks = nn.ModuleList(Block(config) for _ in range(config.layers))

    @property
    def blocks(self) -> list[Block]:
        """The blocks, typed."""
        return cast("list[Block]", list(self.resblocks))


class VisionTransformer(ImageTower):
    """CLIP's ViT image tower.

    With attention pooling (``map``) ``project`` pools over the one token that it gets, so ``project(cls)`` is not ``global_``.

    Args:
        config: The architecture; weights are random until :meth:`load_state_dict` receives open_clip's ``visual`` tensors (without the prefix).
    """

    kind: ClassVar[str] = "open_clip_vit"
    has_token_sequence: ClassVar[bool] = True

    def __init__(self, config: ViTConfig):
        super().__init__()
        self.config = config
        self.image_size, self.width, self.dim = config.image_size, config.width, config.output_dim
        self.grid = (config.side, config.side)
        scale = config.width**-0.5
        self.conv1 = nn.Conv2d(3, config.width, config.patch_size, stride=config.patch_size, bias=config.patch_bias)
        self.n_class = 1 if config.class_token else 0
        self.class_embedding = _random(config.width, std=scale) if config.class_token else None
        self.positional_embedding = _random(config.side**2 + self.n_class, config.width, std=scale)
        self.ln_pre = LayerNorm(config.width, config.norm_eps) if config.ln_pre else nn.Identity()
        self.transformer = Transformer(config)
        self.ln_post = LayerNorm(config.width, config.norm_eps)
        self.attn_pool = AttentionPool(config) if config.pool == "map" else None
        self.proj = _random(config.width, config.output_dim, std=scale) if config.has_proj else None

    def forward(self, images: Tensor, patches: bool = False, prompts: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Encode normalised images.

        Args:
            images: (B, 3, S, S) with S the configured image size.
            patches: Whether to compute the value-path patch tokens.
            prompts: Visual prompt tokens (P, W), put between the class token and the patches after ``ln_pre``.

        Returns:
            Pooled token (B, W), and patch tokens (B, N, W), neither projected nor normalised, or None.

        Raises:
            ValueError: ``images`` of another size.
        """
        x = self._embed(images)  # (B, 1 + N, W)
        n_prefix = self.n_class
        if prompts is not None:
            inserted = prompts.to(x.dtype).expand(x.shape[0], -1, -1)  # (B, P, W)
            x = torch.cat((x[:, : self.n_class], inserted, x[:, self.n_class :]), dim=1)  # (B, 1 + P + N, W)
            n_prefix += prompts.shape[0]
        return self._through(x, self.transformer.blocks, n_prefix, patches)

    def _through(self, x: Tensor, blocks: Sequence[Block], n_prefix: int, patches: bool) -> tuple[Tensor, Tensor | None]:
        """What :meth:`forward` returns, from the residual stream (B, L, W) before the last blocks."""
        *before, last = blocks
        for block in before:
            x = block(x)
        # With class-token pooling the other rows of the last block's ordinary path are never read.
        n_queries = self.n_class if self.config.pool == "tok" else None
        x, value_path = last.last(x, n_queries, n_prefix if patches else None)
        return self._pool(x, n_prefix), None if value_path is None else self.ln_post(value_path)

    def tokens(self, images: Tensor, *, patches: bool = False, prompts: Tensor | None = None) -> ImageTokens:
        """Encode normalised images (B, 3, S, S)."""
        return self._tokens(*self(images, patches, prompts))

    def prefix(self, images: Tensor, last_blocks: int) -> Tensor:
        """Residual stream (B, 1 + N, W) before the last blocks."""
        x = self._embed(images)
        for block in self.transformer.blocks[:-last_blocks]:
            x = block(x)
        return x

    def suffix(self, prefix: Tensor, last_blocks: int, *, patches: bool = False) -> ImageTokens:
        """Tokens from the residual stream before the last blocks."""
        return self._tokens(*self._through(prefix, self.transformer.blocks[-last_blocks:], self.n_class, patches))

    def _tokens(self, pooled: Tensor, value_path: Tensor | None) -> ImageTokens:
        return ImageTokens(global_=unit(self._to_joint(pooled)), cls=pooled, patches=value_path)

    def project(self, tokens: Tensor) -> Tensor:
        """Map tokens (..., W) to the joint space (..., E)."""
        if self.attn_pool is not None:
            tokens = self.attn_pool(tokens.reshape(-1, 1, self.width)).reshape(tokens.shape)
        return self._to_joint(tokens)

    def _to_joint(self, pooled: Tensor) -> Tensor:
        return pooled if self.proj is None else pooled.to(self.proj.dtype) @ self.proj

    def depth_groups(self) -> tuple[Sequence[nn.Module], Sequence[nn.Module]]:
        """Blocks, and what follows them."""
        return self.transformer.blocks, [self.ln_post] if self.attn_pool is None else [self.ln_post, self.attn_pool]

    def config_dict(self) -> dict[str, Any]:
        """Fields of :class:`ViTConfig`. Those that came later are left out at their defaults: what is hashed of older models stays as it was."""
        own, plain = asdict(self.config), {"class_token": True, "patch_bias": False, "tanh_gelu": False}
        return {name: value for name, value in own.items() if name not in plain or value != plain[name]}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> VisionTransformer:
        """Build from the fields of :class:`ViTConfig`."""
        return cls(ViTConfig(**config))

    def _embed(self, images: Tensor) -> Tensor:
        size = (self.image_size, self.image_size)
        if images.shape[-2:] != size:
            raise ValueError(f"images of {tuple(images.shape[-2:])} pixels for a tower that takes {size}")
        x = self.conv1(images).flatten(2).transpose(1, 2)  # (B, N, W)
        if self.class_embedding is not None:
            x = torch.cat((self.class_embedding.to(x.dtype).expand(x.shape[0], 1, -1), x), dim=1)  # (B, 1 + N, W)
        return self.ln_pre(x + self.positional_embedding.to(x.dtype))

    def _pool(self, x: Tensor, n_prefix: int) -> Tensor:
        if self.config.pool == "tok":
            return self.ln_post(x[:, 0])  # (B, W)
        if self.attn_pool is not None:
            return self.attn_pool(self.ln_post(x[:, n_prefix:]))  # (B, W)
        if self.config.norm_after_pool:
            return self.ln_post(x[:, n_prefix:].mean(dim=1))  # (B, W)
        return self.ln_post(x[:, n_prefix:]).mean(dim=1)  # (B, W)

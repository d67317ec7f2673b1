"""Image towers that open_clip takes from timm (SigLIP, EVA02, MobileCLIP, PE-Core, ConvNeXt, ...): one adapter for token and map trunks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
from open_clip.timm_model import TimmModel
from torch import Tensor, nn

from finelens.backbones.tower import ImageTower, unit
from finelens.errors import UserError
from finelens.protocol import ImageTokens, NotAvailableError

BLOCK_ATTRIBUTES = ("blocks", "stages", "layers")


@dataclass(frozen=True)
class TimmConfig:
    """Arguments of open_clip's timm adapter.

    Attributes:
        model_name: Architecture name in timm.
        embed_dim: Joint width E.
        image_size: Side of the square input, pixels.
        pool: Pooling of the trunk.
        proj: Extra projection: ``linear``, ``mlp``, ``none`` or None for the trunk's own head.
        proj_bias: Whether an extra linear projection has a bias.
    """

    model_name: str
    embed_dim: int
    image_size: int
    pool: str
    proj: str | None
    proj_bias: bool


class TimmTower(TimmModel, ImageTower):
    """A timm trunk and its projection.

    ``patches`` are the trunk's final tokens without prefix tokens, or the cells of its final feature map; ``cls`` is the pooled token, or the
    mean of the cells. ``project`` sends one token through pooling and head as if it were the only one: ``project(cls)`` equals ``global_`` for
    average and token pooling, not for attention pooling (SigLIP, PE-Core).

    Unlike :class:`~finelens.backbones.vit.VisionTransformer` the tokens have passed the last block's attention: this is no value path.

    Raises:
        UserError: A trunk whose tokens cannot be projected one by one.
    """

    kind: ClassVar[str] = "timm"
    # Rotary tables and other unsaved buffers are computed by the constructor.
    needs_memory = True
    trunk: Any
    head: nn.Sequential

    def __init__(self, config: TimmConfig):
        super().__init__(
            config.model_name, config.embed_dim, image_size=config.image_size, pool=config.pool, proj=config.proj, proj_bias=config.proj_bias
        )
        self.config = config
        self.image_size, self.width = config.image_size, self.trunk.num_features
        self.channels_last_map = getattr(self.trunk, "output_fmt", "NCHW") == "NHWC"
        self.n_prefix = getattr(self.trunk, "num_prefix_tokens", 0)
        self.eval()
        with torch.no_grad():
            features = self.trunk.forward_features(torch.zeros(1, 3, self.image_size, self.image_size))
        self.is_sequence = features.ndim == 3
        self.is_convolutional = not self.is_sequence
        self._check_supported()
        self.grid = tuple(self.trunk.patch_embed.grid_size) if self.is_sequence else self._map_size(features)
        with torch.no_grad():
            self.dim = self.head(self.trunk.forward_head(features)).shape[-1]

    def tokens(self, images: Tensor, *, patches: bool = False, prompts: Tensor | None = None) -> ImageTokens:
        """Encode normalised images (B, 3, S, S)."""
        if prompts is not None:
            raise NotAvailableError(f"timm tower {self.config.model_name!r} takes no visual prompts; use an OpenAI-style ViT backbone")
        features = self.trunk.forward_features(images)  # (B, L, W), (B, W, h, w) or (B, h, w, W)
        cells = self._patch_tokens(features)  # (B, N, W)
        if self.is_sequence:
            pooled = self.trunk.pool(features)  # (B, W)
            joint = self._sequence_head(pooled)  # (B, E)
        else:
            pooled = cells.mean(dim=1)  # (B, W)
            joint = self.head(self.trunk.forward_head(features))  # (B, E)
        return ImageTokens(global_=unit(joint), cls=pooled, patches=cells if patches else None)

    def project(self, tokens: Tensor) -> Tensor:
        """Head applied to a pool over the single token: (..., W) to (..., E)."""
        single = tokens.reshape(-1, self.width)  # (M, W)
        if not self.is_sequence:
            cell = single[:, None, None, :] if self.channels_last_map else single[:, :, None, None]  # (M, 1, 1, W) or (M, W, 1, 1)
            joint = self.head(self.trunk.forward_head(cell))  # (M, E)
        else:
            pool = getattr(self.trunk, "attn_pool", None)
            joint = self._sequence_head(single if pool is None else pool(single[:, None]))  # (M, E)
        return joint.reshape(*tokens.shape[:-1], self.dim)

    def depth_groups(self) -> tuple[Sequence[nn.Module], Sequence[nn.Module]]:
        """Blocks (or stages) of the trunk, and every child registered after them."""
        children = dict(self.trunk.named_children())
        for name in BLOCK_ATTRIBUTES:
            if name in children:
                order = list(children)
                return list(children[name].children()), [*(children[n] for n in order[order.index(name) + 1 :]), self.head]
        return [], []

    def config_dict(self) -> dict[str, Any]:
        """Fields of :class:`TimmConfig`."""
        return asdict(self.config)

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> TimmTower:
        """Build from the fields of :class:`TimmConfig`."""
        return cls(TimmConfig(**config))

    def _sequence_head(self, pooled: Tensor) -> Tensor:
        return self.head(self.trunk.head(self.trunk.fc_norm(pooled)))  # (..., E)

    def _patch_tokens(self, features: Tensor) -> Tensor:
        if self.is_sequence:
            return features[:, self.n_prefix :]  # (B, N, W)
        return features.flatten(1, 2) if self.channels_last_map else features.flatten(2).transpose(1, 2)  # (B, N, W)

    def _map_size(self, features: Tensor) -> tuple[int, int]:
        rows, columns = features.shape[1:3] if self.channels_last_map else features.shape[2:]
        return int(rows), int(columns)

    def _check_supported(self) -> None:
        hidden = getattr(self.trunk, "head_hidden_size", None) or self.trunk.num_features
        known_parts = not self.is_sequence or all(hasattr(self.trunk, part) for part in ("pool", "fc_norm", "head", "patch_embed"))
        if not known_parts or hidden != self.width or hasattr(self.head, "pool"):
            raise UserError(
                f"image tower {self.config.model_name!r} ({type(self.trunk).__name__}, pool {self.config.pool!r}) is not supported: "
                "its tokens cannot be projected one by one; use a ViT, CLIP ResNet, SigLIP, EVA02, MobileCLIP or PE-Core backbone"
            )

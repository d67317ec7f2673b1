"""The image tower of ALIGN (Jia et al., ICML 2021): transformers' EfficientNet with cell tokens taken from the last feature map."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import AlignVisionConfig, AlignVisionModel

from finelens.backbones.tower import ImageTower, unit
from finelens.protocol import ImageTokens, NotAvailableError


class AlignTower(ImageTower):
    """EfficientNet whose pooled map is the joint feature. ``patches`` are the cells of that map, ``cls`` their mean; there is no projection.

    Args:
        vision: transformers' configuration of the tower.
        image_size: Side of the square input, pixels; the network itself takes any.
    """

    kind: ClassVar[str] = "transformers_align"
    # The size of the map is found by a forward.
    needs_memory = True
    is_convolutional = True

    def __init__(self, vision: Mapping[str, Any], image_size: int):
        super().__init__()
        self.vision, self.image_size = dict(vision), image_size
        self.trunk: Any = AlignVisionModel(AlignVisionConfig(**self.vision)).eval()
        with torch.no_grad():
            features = self._map(torch.zeros(1, 3, image_size, image_size))
        self.width = self.dim = features.shape[1]
        self.grid = (features.shape[2], features.shape[3])

    def tokens(self, images: Tensor, *, patches: bool = False, prompts: Tensor | None = None) -> ImageTokens:
        """Encode normalised images (B, 3, S, S)."""
        if prompts is not None:
            raise NotAvailableError("a convolutional image tower takes no visual prompts; use a ViT backbone or a method without prompts")
        cells = self._map(images).flatten(2).transpose(1, 2)  # (B, N, W)
        pooled = cells.mean(dim=1)  # (B, W)
        return ImageTokens(global_=unit(pooled), cls=pooled, patches=cells if patches else None)

    def project(self, tokens: Tensor) -> Tensor:
        """Tokens are in the joint space already."""
        return tokens

    def depth_groups(self) -> tuple[Sequence[nn.Module], Sequence[nn.Module]]:
        """Blocks; nothing follows them."""
        return list(self.trunk.encoder.blocks), []

    def config_dict(self) -> dict[str, Any]:
        """Arguments of the constructor."""
        return {"vision": self.vision, "image_size": self.image_size}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> AlignTower:
        """Build from the arguments of the constructor."""
        return cls(**config)

    def _map(self, images: Tensor) -> Tensor:
        return self.trunk(images).last_hidden_state  # (B, W, h, w)

"""CLIP's modified ResNet (RN50 family): open_clip's module with cell tokens taken from the last feature map."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from open_clip.modified_resnet import ModifiedResNet
from torch import Tensor, nn

from finelens.backbones.tower import ImageTower, unit
from finelens.protocol import ImageTokens, NotAvailableError

STRIDE = 32  # pixels per cell of the last feature map
EXPANSION = 32  # channels of the last feature map over the stem width


@dataclass(frozen=True)
class ResNetConfig:
    """Architecture of a :class:`ResNetTower`.

    Attributes:
        image_size: Side of the square input, pixels.
        layers: Bottlenecks per stage.
        stem_width: Channels of the stem; the last feature map has 32 times as many.
        heads: Heads of the attention pool.
        output_dim: Joint width E.
    """

    image_size: int
    layers: tuple[int, ...]
    stem_width: int
    heads: int
    output_dim: int


class ResNetTower(ModifiedResNet, ImageTower):
    """Modified ResNet. ``patches`` are the cells of the last feature map, ``cls`` their mean.

    ``global_`` is the true attention pool, so ``project(cls)`` is close to it but not equal. Batch-norm statistics stay frozen: the tower is always
    in evaluation mode and only the affine pairs can be tuned.

    Args:
        config: The architecture; weights are random until :meth:`load_state_dict` receives open_clip's ``visual`` tensors (without the prefix).
    """

    kind: ClassVar[str] = "open_clip_resnet"
    is_convolutional = True
    stem: Callable[[Tensor], Tensor]
    layer1: nn.Sequential
    layer2: nn.Sequential
    layer3: nn.Sequential
    layer4: nn.Sequential
    attnpool: Any

    def __init__(self, config: ResNetConfig):
        super().__init__(list(config.layers), config.output_dim, config.heads, config.image_size, config.stem_width)
        self.config = config
        self.width, self.dim = config.stem_width * EXPANSION, config.output_dim
        side = config.image_size // STRIDE
        self.grid = (side, side)

    def tokens(self, images: Tensor, *, patches: bool = False, prompts: Tensor | None = None) -> ImageTokens:
        """Encode normalised images (B, 3, S, S)."""
        if prompts is not None:
            raise NotAvailableError("a convolutional image tower takes no visual prompts; use a ViT backbone or a method without prompts")
        return self.suffix(self.stem(images), len(self._bottlenecks), patches=patches)

    def prefix(self, images: Tensor, last_blocks: int) -> Tensor:
        """Feature map (B, C, h, w) before the last bottlenecks."""
        return self._through(self.stem(images), self._bottlenecks[:-last_blocks])

    def suffix(self, prefix: Tensor, last_blocks: int, *, patches: bool = False) -> ImageTokens:
        """Tokens from the feature map before the last bottlenecks."""
        features = self._through(prefix, self._bottlenecks[-last_blocks:])  # (B, W, h, w)
        cells = features.flatten(2).transpose(1, 2)  # (B, N, W)
        return ImageTokens(global_=unit(self.attnpool(features)), cls=cells.mean(dim=1), patches=cells if patches else None)

    def project(self, tokens: Tensor) -> Tensor:
        """Attention pool restricted to one cell: (..., W) to (..., E)."""
        pool = self.attnpool
        return pool.c_proj(pool.v_proj(tokens.to(pool.v_proj.weight.dtype)))

    def depth_groups(self) -> tuple[Sequence[nn.Module], Sequence[nn.Module]]:
        """Bottlenecks of the four stages; no norm layer follows them."""
        return self._bottlenecks, []

    @property
    def _bottlenecks(self) -> list[nn.Module]:
        return [block for stage in (self.layer1, self.layer2, self.layer3, self.layer4) for block in stage]

    def _through(self, x: Tensor, blocks: Sequence[nn.Module]) -> Tensor:
        for block in blocks:
            x = block(x)
        return x

    def config_dict(self) -> dict[str, Any]:
        """Fields of :class:`ResNetConfig`."""
        return {**asdict(self.config), "layers": list(self.config.layers)}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> ResNetTower:
        """Build from the fields of :class:`ResNetConfig`."""
        return cls(ResNetConfig(**{**config, "layers": tuple(config["layers"])}))

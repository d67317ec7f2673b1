"""What every image tower offers to the backbone that holds it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from finelens.protocol import ImageTokens, NotAvailableError


def unit(x: Tensor) -> Tensor:
    """L2-normalise the last axis in float32 or wider: a unit norm in bfloat16 is off by up to 0.4 %."""
    return F.normalize(x.to(torch.promote_types(x.dtype, torch.float32)), dim=-1)


class ImageTower(nn.Module, ABC):
    """An image encoder with token outputs. Parameter names are those of open_clip's ``visual`` module, so state dicts pass unchanged.

    Attributes:
        kind: Value of the ``kind`` key from which a saved tower is rebuilt.
        image_size: Side of the square input, pixels.
        width: Token width W.
        dim: Joint width E.
        grid: Rows and columns of patch tokens.
        has_token_sequence: Whether visual prompts can be inserted.
        is_convolutional: Whether patches are cells of a feature map.
        needs_memory: Whether the constructor computes what no state dict holds, so that :meth:`from_state` builds with real memory.
    """

    kind: ClassVar[str]
    has_token_sequence: ClassVar[bool] = False
    needs_memory: ClassVar[bool] = False
    is_convolutional: bool = False
    image_size: int
    width: int
    dim: int
    grid: tuple[int, int]

    @abstractmethod
    def tokens(self, images: Tensor, *, patches: bool = False, prompts: Tensor | None = None) -> ImageTokens:
        """Encode normalised images (B, 3, S, S); see :meth:`finelens.protocol.Backbone.encode_image`."""

    def prefix(self, images: Tensor, last_blocks: int) -> Tensor:
        """Activations (B, ...) before the last so many blocks; see :meth:`finelens.protocol.Backbone.encode_prefix`."""
        raise self._not_in_the_middle()

    def suffix(self, prefix: Tensor, last_blocks: int, *, patches: bool = False) -> ImageTokens:
        """Tokens from what :meth:`prefix` gave; see :meth:`finelens.protocol.Backbone.encode_suffix`."""
        raise self._not_in_the_middle()

    def _not_in_the_middle(self) -> NotAvailableError:
        return NotAvailableError(f"an image tower of kind {self.kind!r} cannot be entered in the middle; leave training.cached_prefix at 0")

    @abstractmethod
    def project(self, tokens: Tensor) -> Tensor:
        """Map tokens (..., W) to the joint space (..., E), not normalised."""

    @abstractmethod
    def depth_groups(self) -> tuple[Sequence[nn.Module], Sequence[nn.Module]]:
        """Blocks from input to output, and the modules after the last block. Empty blocks: the tower has no depth scopes."""

    @abstractmethod
    def config_dict(self) -> dict[str, Any]:
        """JSON arguments from which :meth:`from_config` builds the same architecture."""

    @classmethod
    @abstractmethod
    def from_config(cls, config: dict[str, Any]) -> ImageTower:
        """Build the architecture; weights are loaded by the caller."""

    @classmethod
    def from_state(cls, config: dict[str, Any], state: Mapping[str, Tensor]) -> ImageTower:
        """Build the architecture and fill it with a copy of ``state``, in float32, skipping random initialisation.

        Raises:
            RuntimeError: Missing, unexpected or misshaped tensors.
        """
        if cls.needs_memory:
            tower = cls.from_config(config)
        else:
            with torch.device("meta"):
                tower = cls.from_config(config)
            tower.to_empty(device="cpu")
        tower.load_state_dict(dict(state))
        return tower

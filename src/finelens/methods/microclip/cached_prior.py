"""The multi-view prior computed once: one draw of crops, through the encoder as it was before training."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from finelens.engine.engine import Engine
from finelens.methods.microclip.pseudo_labels import multi_view_feature
from finelens.protocol import Batch
from finelens.training.state import resize_on_load


def encode_crops(engine: Engine, crops: Tensor) -> Tensor:
    """Unit-norm features (B, M, E), without gradient, of crops (B, M, 3, S, S)."""
    return engine.encode_frozen(crops.flatten(0, 1)).global_.unflatten(0, crops.shape[:2])


class CachedPrior(nn.Module):
    """Composite crop features of all images, found by position.

    They are part of the training state: a resumed run needs no second pass.

    Args:
        dim: Joint width E.
        dtype: Float type of the features.
    """

    def __init__(self, dim: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.register_buffer("composite", torch.zeros(0, dim, dtype=dtype))  # (N, E)
        self.composite: Tensor
        resize_on_load(self, "composite")

    def start(self, engine: Engine, batches: Iterable[Batch]) -> None:
        """Encode the weak view and the crops of every image, in store order."""
        parts = []
        for batch in batches:
            assert batch.weak is not None
            assert batch.crops is not None
            reference = engine.encode_frozen(batch.weak).global_  # (B, E)
            parts.append(multi_view_feature(encode_crops(engine, batch.crops), reference)[0])
        self.composite = torch.cat(parts).to(self.composite)

    def rows(self, index: Tensor) -> Tensor:
        """Composite features (B, E) of the images at these positions (B,)."""
        return self.composite[index.to(self.composite.device)]

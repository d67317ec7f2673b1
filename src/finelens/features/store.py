"""Features in the place of decoded images: what a run on a feature file reads."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from finelens.errors import UserError
from finelens.images.store import ImageRecord
from finelens.protocol import TargetFeatures


class FeatureStore:
    """Features by position, ordered by sample id like decoded images.

    Attributes:
        ids: Sample ids, sorted.
        features: Of the unadapted tower, in the same order.
    """

    def __init__(self, ids: list[str], features: TargetFeatures) -> None:
        self.ids = ids
        self.features = features

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Tensor:
        """Refuses: there are no pixels."""
        raise UserError("a feature file holds no pixels; give the photographs")


@dataclass(frozen=True)
class LoadedFeatures:
    """A store of the good rows, and one record per file or row in input order."""

    store: FeatureStore
    records: list[ImageRecord]


def feature_rows(features: TargetFeatures, batch_size: int) -> Iterator[Tensor]:
    """Features in the form that ``predict_logits`` and ``Engine.encode_frozen`` take in the place of pixels: global and cls side by side.

    Yields:
        Batches (B, E + W), float.
    """
    for start in range(0, len(features.global_), batch_size):
        rows = slice(start, start + batch_size)
        yield torch.cat([features.global_[rows], features.cls[rows]], dim=1)  # (B, E + W)

"""Features in the place of decoded images: what a run on a feature file reads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from finelens.errors import UserError
from finelens.feature_store.crops import StoredCrops
from finelens.protocol import FeatureRows, TargetFeatures


class FeatureStore:
    """Features by position, ordered by sample id like decoded images.

    Attributes:
        ids: Sample ids, sorted.
        features: Of the unadapted tower, in the same order.
        crops: Features of random crops of each image, where the file has them.
    """

    def __init__(self, ids: list[str], features: TargetFeatures, crops: StoredCrops | None = None) -> None:
        self.ids = ids
        self.features = features
        self.crops = crops

    def __len__(self) -> int:
        return len(self.ids)

    def at(self, rows: Sequence[int]) -> FeatureStore:
        """Some of the rows, as a store of their own."""
        crops = None if self.crops is None else self.crops.at(rows)
        return FeatureStore([self.ids[row] for row in rows], features_at(self.features, rows), crops)

    def __getitem__(self, index: int) -> Tensor:
        """Refuses: there are no pixels."""
        raise UserError("a feature file holds no pixels; give the photographs")


def features_at(features: TargetFeatures, rows: Sequence[int]) -> TargetFeatures:
    """Features of some images."""
    own = list(rows)
    extra = tuple(further[own] for further in features.extra)
    return replace(features, global_=features.global_[own], cls=features.cls[own], extra=extra, rows=None, cls_rows=None, places=None, extra_rows=())


def feature_rows(features: TargetFeatures, batch_size: int, *, extra: bool = False) -> Iterator[FeatureRows]:
    """Features in the form that takes the place of pixels, in batches (B, E + W); with ``extra`` those of further encoders behind them."""
    further = features.extra if extra else ()
    for start in range(0, len(features.global_), batch_size):
        parts = [part[start : start + batch_size] for part in (features.global_, features.cls, *further)]
        yield torch.cat(parts, dim=1).as_subclass(FeatureRows)  # (B, E + W + sum D_v)

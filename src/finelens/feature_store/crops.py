"""Features of random crops in a feature file, and what may be answered from them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from finelens.errors import UserError
from finelens.images.views import INFERENCE_SEED
from finelens.protocol import FeatureRows, InferenceViews


@dataclass(frozen=True)
class Crops:
    """Random square crops of each image, drawn once (``finelens.images.views.crop_views``, epoch 0).

    Attributes:
        count: Crops M of an image.
        seed: Seed of the draw.
        low: Smallest side as a share of the short side.
        high: Largest.
    """

    count: int
    seed: int = 0
    low: float = 0.5
    high: float = 0.9


@dataclass(frozen=True)
class StoredCrops:
    """Features of the crops of images, by position.

    Attributes:
        path: The file.
        crops: How they were drawn.
        global_: (n, M, E), in the order of the file; read from the disk where it is looked at.
        cls: (n, M, W).
        rows: Row of each position. Copies of an image share the crops of the first.
    """

    path: Path
    crops: Crops
    global_: Tensor
    cls: Tensor
    rows: list[int]

    def at(self, rows: Sequence[int]) -> StoredCrops:
        """Those of some positions."""
        return replace(self, rows=[self.rows[row] for row in rows])

    def stream(self, count: int, size: int) -> Iterator[tuple[list[int], FeatureRows]]:
        """Positions of ``size`` images at a time, and the first ``count`` crops of each, (size, count, E + W).

        Raises:
            UserError: Something there is not finite.
        """
        for start in range(0, len(self.rows), size):
            rows = self.rows[start : start + size]
            found = torch.cat([self.global_[rows, :count].float(), self.cls[rows, :count].float()], -1)
            if not bool(found.isfinite().all()):
                raise UserError(f"{self.path} is damaged (crops with values that are not finite); write it again with finelens features --overwrite")
            yield list(range(start, start + len(rows))), found.as_subclass(FeatureRows)


def crops_for(stored: StoredCrops | None, plan: InferenceViews, method: str) -> StoredCrops:
    """What a feature file holds of the views that a method answers from.

    Raises:
        UserError: It does not hold them; the message says how to write a file that does.
    """
    if plan.kind != "crops":
        raise UserError(f"method {method} looks at random resized crops, which feature files do not hold; give the folder of photographs")
    wanted = Crops(plan.count, INFERENCE_SEED, plan.low, plan.high)
    remedy = f"finelens features PHOTOS --crops {wanted.count} --seed {wanted.seed} writes them"
    if stored is None:
        raise UserError(f"method {method} looks at {wanted.count} crops of each photograph, and the features are of whole ones; {remedy}")
    own = stored.crops
    if (own.seed, own.low, own.high) != (wanted.seed, wanted.low, wanted.high):
        raise UserError(f"the crops in {stored.path} were drawn otherwise than method {method} draws its own; {remedy}")
    if own.count < wanted.count:
        raise UserError(
            f"method {method} looks at {wanted.count} crops of each photograph, and {stored.path} holds {own.count}; {remedy}; "
            f"a run with --set method.crops={own.count} looks at no more"
        )
    return stored

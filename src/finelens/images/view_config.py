"""Options of the views. This module imports no tensor library, so that the command line can answer ``--help`` at once."""

from __future__ import annotations

from dataclasses import dataclass

from finelens.core.options import require


@dataclass(frozen=True)
class ViewConfig:
    """Options of the views. The defaults are microCLIP's, except for the last two, which are a matter of memory.

    Attributes:
        crop_low: Smallest side of a crop view, as a share of the short side.
        crop_high: Largest.
        strong_scale_low: Smallest area of the strong view's region, as a share of the image.
        rand_magnitude: Mean magnitude of RandAugment, 0 to 10.
        rand_layers: Operations of RandAugment.
        store_short_side: Short side in pixels at which originals are kept.
        max_megapixels: Largest image that is decoded, in million pixels; a JPEG counts as it is reduced while it is decoded.
    """

    crop_low: float = 0.5
    crop_high: float = 0.9
    strong_scale_low: float = 0.3
    rand_magnitude: float = 9.0
    rand_layers: int = 2
    store_short_side: int = 448
    max_megapixels: float = 64.0

    def __post_init__(self) -> None:
        require(0 < self.crop_low <= 1, "views.crop_low", "over 0 and at most 1", self.crop_low)
        require(self.crop_low <= self.crop_high <= 1, "views.crop_high", "from views.crop_low to 1", self.crop_high)
        require(0 < self.strong_scale_low <= 1, "views.strong_scale_low", "over 0 and at most 1", self.strong_scale_low)
        require(0 <= self.rand_magnitude <= 10, "views.rand_magnitude", "from 0 to 10", self.rand_magnitude)
        require(self.rand_layers >= 0, "views.rand_layers", "0 or more", self.rand_layers)
        require(self.store_short_side >= 32, "views.store_short_side", "32 or more", self.store_short_side)
        require(self.max_megapixels > 0, "views.max_megapixels", "over 0", self.max_megapixels)

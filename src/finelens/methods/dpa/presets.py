"""The published settings of DPA per data set (ViT-B/32), and the one default made from them."""

from __future__ import annotations

from dataclasses import dataclass, fields
from statistics import median


@dataclass(frozen=True)
class Preset:
    """Settings of one data set.

    Attributes:
        image_share: Share of the image prototypes in the pseudo-label, a.
        align_scale: Scale of the alignment term over the logit scale, w / s.
        marginal_weight: Weight of the marginal term, reg.
        align_weight: Weight of the alignment term, align.
        lr: Peak learning rate.
        epochs: Passes over the images.
    """

    image_share: float
    align_scale: float
    marginal_weight: float
    align_weight: float
    lr: float
    epochs: int


PUBLISHED = {
    "dtd": Preset(0.2, 1.0, 1.0, 1.0, 5e-5, 15),
    "caltech101": Preset(0.5, 1.0, 1.0, 1.0, 1e-4, 15),
    "flowers102": Preset(0.5, 0.01, 1.0, 1.0, 1e-4, 15),
    "eurosat": Preset(0.5, 0.01, 1.0, 0.01, 3e-5, 10),
    "fgvc": Preset(0.5, 1.0, 1.0, 1.0, 3e-6, 10),
    "pets": Preset(0.01, 1.0, 1.0, 1.0, 7e-5, 15),
    "cars": Preset(0.5, 1.0, 1.0, 1.0, 5e-6, 15),
    "sun397": Preset(0.5, 1.0, 0.2, 1.0, 1e-6, 15),
    "cifar10": Preset(0.1, 1.0, 1.0, 0.1, 8e-5, 15),
    "cifar100": Preset(0.2, 1.0, 1.0, 1.0, 1e-5, 15),
    "ucf101": Preset(0.5, 1.0, 1.0, 1.0, 1e-5, 15),
    "food101": Preset(0.2, 1.0, 1.0, 1.0, 1e-6, 15),
    "imagenet": Preset(0.5, 1.0, 1.0, 1.0, 1e-6, 15),
}

# Which settings suit a data set was found with its labels. The median over all sets uses those of no single one.
DEFAULT = Preset(**{f.name: median(getattr(preset, f.name) for preset in PUBLISHED.values()) for f in fields(Preset)})

PRESETS = {"default": DEFAULT, **PUBLISHED}

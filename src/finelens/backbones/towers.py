"""The kinds of image towers, by the name under which a saved model has them; each is imported when it is built."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from finelens.backbones.tower import ImageTower

TOWERS = {
    "open_clip_vit": ("vit", "VisionTransformer"),
    "open_clip_resnet": ("resnet", "ResNetTower"),
    "timm": ("timm_tower", "TimmTower"),
    "transformers_align": ("align_tower", "AlignTower"),
}


def tower_class(kind: str) -> type[ImageTower]:
    """The class of a kind.

    Raises:
        KeyError: Unknown kind.
    """
    module, name = TOWERS[kind]
    found: type[ImageTower] = getattr(import_module(f"finelens.backbones.{module}"), name)
    return found

"""From a backbone's name to the backbone; nothing heavy is imported before it is needed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finelens.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from finelens.protocol import Backbone

FORMS = (
    "embedded, open_clip:NAME/TAG (e.g. open_clip:ViT-B-32/openai), hf-hub:ORG/REPO[@COMMIT], local:DIR, "
    "transformers:ORG/REPO[@COMMIT], transformers:DIR"
)


def check_spec(spec: str) -> None:
    """Refuse what is no specification of a backbone; nothing is loaded.

    Raises:
        UserError: Unknown form.
    """
    scheme, _, rest = spec.partition(":")
    if spec != "embedded" and (scheme not in ("open_clip", "hf-hub", "local", "transformers") or not rest):
        raise UserError(f"unknown backbone {spec!r}; the forms are: {FORMS}")


def load_backbone(spec: str) -> Backbone:
    """Load a backbone by its specification.

    Args:
        spec: ``embedded``, ``open_clip:NAME/TAG``, ``hf-hub:ORG/REPO[@COMMIT]``, ``local:DIR``, ``transformers:ORG/REPO[@COMMIT]`` or
            ``transformers:DIR``.

    Raises:
        UserError: Unknown form, or a model that cannot be found or read; the message names the remedy.
    """
    if spec == "embedded":
        from finelens.backbones.embedded import EmbeddedBackbone

        return EmbeddedBackbone()
    check_spec(spec)
    scheme, _, rest = spec.partition(":")
    if scheme == "transformers":
        from finelens.backbones.transformers_loader import TransformersBackbone

        return TransformersBackbone.from_name(rest)
    from finelens.backbones.open_clip_loader import OpenClipBackbone

    if scheme == "local":
        return OpenClipBackbone.from_folder(rest)
    if scheme == "hf-hub":
        return OpenClipBackbone.from_hub(rest)
    name, _, tag = rest.partition("/")
    return OpenClipBackbone.from_tag(name, tag)


def absolute_spec(spec: str) -> str:
    """The specification with a folder in it written in full, so that it means the same from everywhere."""
    scheme, _, rest = spec.partition(":")
    folder = Path(rest).expanduser()
    if rest and (scheme == "local" or (scheme == "transformers" and folder.is_dir())):
        return f"{scheme}:{os.path.abspath(folder)}"
    return spec


def rebuild_image_tower(config: dict[str, Any], state: dict[str, Tensor]) -> Backbone:
    """Rebuild the image side of a saved model, without network and without text tower.

    Args:
        config: What ``Backbone.image_config`` returned.
        state: What ``Backbone.image_state`` returned.

    Raises:
        UserError: Unknown ``kind``, or tensors that do not fit.
    """
    kind = config.get("kind")
    if kind == "features":
        from finelens.backbones.features_only import FeatureBackbone

        return FeatureBackbone.from_config(config)
    if kind == "embedded":
        from finelens.backbones.embedded import EmbeddedBackbone

        return EmbeddedBackbone.image_only(config, state)
    from finelens.backbones.dual_encoder import DualEncoder
    from finelens.backbones.towers import TOWERS

    if kind not in TOWERS:
        raise UserError(f"saved model has an image tower of unknown kind {kind!r}; known: embedded, {', '.join(TOWERS)}")
    return DualEncoder.image_only(config, state)

"""From a backbone's name to the backbone; nothing heavy is imported before it is needed."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from finelens.core.home import expanded
from finelens.core.options import nearest
from finelens.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from finelens.protocol import Backbone

EMBEDDED = "embedded"
FORMS = (
    "embedded, open_clip:NAME/TAG (e.g. open_clip:ViT-B-32/openai), hf-hub:ORG/REPO[@COMMIT], local:DIR, "
    "transformers:ORG/REPO[@COMMIT], transformers:DIR"
)

ENCODER_FORMS = "timm:NAME[@FILE.safetensors], timm:DIR, transformers:DIR, transformers:ORG/REPO[@COMMIT], or any form of --backbone"
_SCHEMES = ("open_clip", "hf-hub", "local", "transformers")


def check_spec(spec: str) -> None:
    """Refuse what is no specification of a backbone; nothing is loaded.

    Raises:
        UserError: Unknown form.
    """
    scheme, _, rest = spec.partition(":")
    if spec != EMBEDDED and (scheme not in _SCHEMES or not rest):
        raise UserError(f"unknown backbone {spec!r}; {_meant(scheme, _SCHEMES)}: {FORMS}")


def _meant(scheme: str, known: Iterable[str]) -> str:
    near = nearest(scheme, sorted({EMBEDDED, *known} - {scheme}))
    return "the forms are" if near is None else f"did you mean {near}? The forms are"


def is_local(spec: str) -> bool:
    """Whether a backbone is on this machine by what it is called; one of a hub may or may not be."""
    scheme, _, rest = spec.partition(":")
    return scheme in ("embedded", "features", "local") or (scheme == "transformers" and expanded(rest).is_dir())


def several(text: str) -> list[str]:
    """The specifications of ``A,B,C``; one of whatever else, a folder with a comma in its name among them."""
    parts = [part.strip() for part in text.split(",")]
    named = all(part == EMBEDDED or (part.partition(":")[0] in _SCHEMES and part.partition(":")[2]) for part in parts)
    return parts if named else [text]


def is_encoder_spec(text: str) -> bool:
    """Whether a text specifies an image encoder, rather than naming a file."""
    scheme, colon, rest = text.partition(":")
    return text == EMBEDDED or bool(colon and rest and scheme in ("timm", *_SCHEMES))


def check_encoder_spec(spec: str) -> None:
    """Refuse what is no specification of an image encoder; nothing is loaded.

    Raises:
        UserError: Unknown form.
    """
    if not is_encoder_spec(spec):
        raise UserError(f"unknown encoder {spec!r}; {_meant(spec.partition(':')[0], ('timm', *_SCHEMES))}: {ENCODER_FORMS}")


def check_encoder_there(spec: str) -> None:
    """Find out before the work whether an image encoder can be loaded, as far as names, files and folders say; no hub is asked.

    Raises:
        UserError: Unknown form, a name that timm does not have, or a file or folder that does not exist.
    """
    check_encoder_spec(spec)
    scheme, _, rest = spec.partition(":")
    if scheme == "timm":
        from finelens.backbones.image_encoders import check_timm

        check_timm(rest)
    elif scheme == "local" and not expanded(rest).is_dir():
        raise UserError(f"{spec}: no such folder; give one with a model in open_clip's saved layout")


def load_backbone(spec: str) -> Backbone:
    """Load a backbone by its specification.

    Args:
        spec: ``embedded``, ``open_clip:NAME/TAG``, ``hf-hub:ORG/REPO[@COMMIT]``, ``local:DIR``, ``transformers:ORG/REPO[@COMMIT]`` or
            ``transformers:DIR``.

    Raises:
        UserError: Unknown form, or a model that cannot be found or read; the message names the remedy.
    """
    if spec == EMBEDDED:
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


def load_encoder(spec: str) -> Backbone:
    """Load a model of which only the image side is wanted: timm's, an image encoder of transformers, or any backbone.

    Args:
        spec: One of :data:`ENCODER_FORMS`.

    Raises:
        UserError: Unknown form, or a model that cannot be found or read; the message names the remedy.
    """
    check_encoder_spec(spec)
    scheme, _, rest = spec.partition(":")
    if scheme == "timm":
        from finelens.backbones.image_encoders import timm_encoder

        return timm_encoder(rest)
    if scheme == "transformers":
        from finelens.backbones.image_encoders import transformers_encoder

        return transformers_encoder(rest)
    backbone = load_backbone(spec)
    backbone.release_text()
    return backbone


def absolute_spec(spec: str) -> str:
    """The specification with a folder in it written in full, so that it means the same from everywhere."""
    scheme, _, rest = spec.partition(":")
    if scheme == "timm" and "@" in rest and not rest.startswith("hf-hub:"):
        name, _, file = rest.partition("@")
        return f"timm:{name}@{os.path.abspath(expanded(file))}"
    folder = expanded(rest)
    if rest and (scheme == "local" or (scheme in ("transformers", "timm") and folder.is_dir())):
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
    if kind == EMBEDDED:
        from finelens.backbones.embedded import EmbeddedBackbone

        return EmbeddedBackbone.image_only(config, state)
    from finelens.backbones.dual_encoder import DualEncoder
    from finelens.backbones.towers import TOWERS

    if kind not in TOWERS:
        raise UserError(f"saved model has an image tower of unknown kind {kind!r}; known: embedded, {', '.join(TOWERS)}")
    return DualEncoder.image_only(config, state)

"""A run as a folder in open_clip's saved layout: adapted image tower, the text tower that it came with, and the head as a zero-shot classifier."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.tokenizer import HFTokenizer, SimpleTokenizer
from PIL import Image
from torch import Tensor

from finelens.backbones.dual_encoder import STATE_PREFIX, DualEncoder
from finelens.backbones.open_clip_source import CONFIG_NAME, Source, build, find_local, find_on_hub, find_tagged
from finelens.backbones.tower import unit
from finelens.errors import UserError
from finelens.exporting.heads import LinearHead
from finelens.exporting.start import check_start
from finelens.protocol import Backbone, Preprocess
from finelens.runs.model import Model
from finelens.storage.files import write_json
from finelens.storage.tensors import load_tensors, save_tensors

WEIGHTS, HEAD = "open_clip_model.safetensors", "classifier.safetensors"
# Class names whose texts are compared, and how far a coordinate of a unit feature may be off.
TEXTS, TEXT_TOLERANCE = 20, 1e-4


def refuse(backbone: Backbone) -> None:
    """Refuse an image tower that open_clip does not build.

    Raises:
        UserError: The message says why, and what does hold it.
    """
    if not isinstance(backbone, DualEncoder):
        raise UserError(
            f"--to open_clip cannot hold the backbone {backbone.name}: it is a convolutional network and a text model joined by a map, which "
            "open_clip has no model for; use --to onnx or --to torch"
        )
    if backbone.name.partition(":")[0] == "transformers":
        raise UserError(f"--to open_clip cannot hold {backbone.name}, which is in transformers' layout; use --to transformers, onnx or torch")


def write(model: Model, head: LinearHead, folder: Path) -> None:
    """Write configuration, weights, tokenizer and head.

    Raises:
        UserError: The source of the text tower is out of reach, or no longer what the run started from.
    """
    backbone = model.engine.backbone
    source = find_source(backbone.name)
    built, tokenizer = build(source)
    check_start(model, built.visual.state_dict())
    built.visual.load_state_dict({name.removeprefix(STATE_PREFIX): tensor for name, tensor in backbone.image_state().items()})
    settings: dict[str, Any] = deepcopy(source.model)
    if isinstance(tokenizer, HFTokenizer):
        tokenizer.tokenizer.save_pretrained(folder)
        # Of a folder, open_clip looks for the tokenizer there whatever the name.
        settings["text_cfg"].setdefault("hf_tokenizer_name", "tokenizer")
    elif not isinstance(tokenizer, SimpleTokenizer):
        raise UserError(f"--to open_clip cannot hold the tokenizer of {source.name} ({type(tokenizer).__name__}); use --to onnx or --to torch")
    write_json(folder / CONFIG_NAME, {"model_cfg": settings, "preprocess_cfg": _preprocess(backbone.preprocess)})
    save_tensors(folder / WEIGHTS, {name: tensor.detach().clone().contiguous() for name, tensor in built.state_dict().items()})
    scale = built.logit_scale.detach().exp()
    save_tensors(folder / HEAD, {"weight": (head.weight / scale).T.contiguous(), "bias": head.bias})


def find_source(name: str) -> Source:
    """Where the model of a run was found, asked again; raises :class:`~finelens.errors.UserError` if it is not there."""
    scheme, _, rest = name.partition(":")
    if scheme == "local":
        return find_local(Path(rest))
    return find_on_hub(rest) if scheme == "hf-hub" else find_tagged(*rest.split("/", 1))


def _preprocess(own: Preprocess) -> dict[str, Any]:
    geometry = {"size": own.image_size, "mode": "RGB", "interpolation": own.interpolation, "resize_mode": own.resize_mode}
    return {**geometry, "mean": list(own.mean), "std": list(own.std)}


class Folder:
    """What open_clip makes of the folder alone.

    Args:
        folder: The exported folder.
    """

    def __init__(self, folder: Path) -> None:
        self.model, self.preprocess = open_clip.create_model_from_pretrained(f"local-dir:{folder}")
        self.model.eval()
        self.tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
        self._head = load_tensors(folder / HEAD)

    @torch.no_grad()
    def __call__(self, pixels: Tensor) -> Tensor:
        """Calibrated logits (B, C) of normalised pixels (B, 3, S, S), as docs/export.md says that they are got."""
        features = self.model.encode_image(pixels, normalize=True)
        return self.model.logit_scale.exp() * features @ self._head["weight"] + self._head["bias"]

    def of_views(self, views: Tensor) -> Tensor:
        """Logits of uint8 views (B, 3, S, S), by the mean and the deviation in the folder."""
        return self(self.preprocess.transforms[-1](views.float() / 255))

    def of_image(self, image: Image.Image) -> Tensor:
        """Logits (C,) of a photograph, by the folder's whole preprocessing."""
        return self(self.preprocess(image)[None])[0]


@torch.no_grad()
def check_texts(theirs: Folder, model: Model, source: Backbone, seen: Tensor, views: Tensor) -> None:
    """Compare the folder's text features with those of the run's source, for prompts of the class names.

    Raises:
        UserError: They differ.
    """
    prompts = [f"a photo of a {name}." for name in model.class_names[:TEXTS]]
    gap = float((unit(theirs.model.encode_text(theirs.tokenizer(prompts))) - source.encode_text(prompts)).abs().max())
    if not gap <= TEXT_TOLERANCE:
        raise UserError(f"the exported folder encodes texts otherwise than {source.name} (a feature by {gap:.2g}): nothing is kept")

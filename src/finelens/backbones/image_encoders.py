"""Image encoders without a text tower, from timm and transformers: their features stand beside those of the run's own model."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn, cast, get_args

import timm
import torch
from torch import Tensor, nn

from finelens.backbones.hub import hub_errors
from finelens.backbones.open_clip_source import PICKLE_SUFFIXES
from finelens.backbones.tower import unit
from finelens.backbones.transformers_loader import TransformersBackbone, read_preprocess
from finelens.backbones.transformers_source import FAMILIES, IMAGE_FAMILIES, first_line
from finelens.backbones.transformers_source import find as find_in_transformers
from finelens.backbones.without_texts import WithoutTexts
from finelens.core.home import expanded
from finelens.errors import UserError
from finelens.protocol import Backbone, ImageTokens, Interpolation, NotAvailableError, Preprocess
from finelens.storage.tensors import load_tensors

SCHEME = "timm:"
WEIGHTS = "model.safetensors"
OFFLINE_REMEDY = f"use {SCHEME}NAME@FILE.safetensors with weights of that model, or {SCHEME}DIR with timm's config.json and {WEIGHTS}"
# Keys of a configuration that say nothing of what the model computes.
_OF_THE_FILE = ("transformers_version", "_name_or_path", "dtype", "torch_dtype", "architectures")


class ImageEncoder(WithoutTexts):
    """An image encoder of another library with its own forward. It has one token an image, its feature, and no text side.

    Args:
        name: The user's specification.
        preprocess: Input geometry and statistics.
        trunk: The library's module.
        feature: Gives the features (B, D) that ``trunk`` makes of normalised images (B, 3, S, S).
        architecture: JSON description of what decides the features besides the weights.
    """

    def __init__(self, name: str, preprocess: Preprocess, trunk: nn.Module, feature: Callable[[nn.Module, Tensor], Tensor], architecture: Any):
        super().__init__()
        self.name, self.preprocess, self.architecture = name, preprocess, architecture
        self.trunk = trunk.float()
        self._feature = feature
        self.requires_grad_(False)
        self.eval()
        side = preprocess.image_size
        with torch.no_grad():
            probe = feature(self.trunk, torch.zeros(1, 3, side, side))
        if probe.ndim != 2:
            raise UserError(f"{name}: gives an output of shape {tuple(probe.shape)} for an image, and not one feature; choose a model that pools")
        self.width = self.dim = probe.shape[1]
        self.grid = (1, 1)
        self.logit_scale, self.logit_bias, self.context_length = 1.0, 0.0, 0

    def train(self, mode: bool = True) -> ImageEncoder:
        """Stay in evaluation mode."""
        return super().train(False)

    def encode_image(self, images: Tensor, *, patches: bool = False, prompts: Tensor | None = None) -> ImageTokens:
        """Encode normalised images (B, 3, S, S)."""
        if patches or prompts is not None:
            raise NotAvailableError(f"image encoder {self.name!r} gives one feature an image: it has no patch tokens and takes no prompts")
        feature = self._feature(self.trunk, images)  # (B, D)
        return ImageTokens(unit(feature), feature)

    def _no_texts(self) -> NoReturn:
        raise NotAvailableError(f"image encoder {self.name!r} has no text tower; give it beside a CLIP model, with --extra-encoder")

    def image_config(self) -> dict[str, Any]:
        """JSON description of the encoder."""
        return {"kind": "encoder", "name": self.name, "architecture": self.architecture, "preprocess": asdict(self.preprocess)}

    def image_state(self) -> dict[str, Tensor]:
        """The library's tensors under its names."""
        return {name: tensor.detach().contiguous() for name, tensor in self.trunk.state_dict().items()}


def timm_encoder(rest: str) -> ImageEncoder:
    """The model of ``timm:NAME``, ``timm:NAME@FILE.safetensors`` or ``timm:DIR`` without its classifier.

    Raises:
        UserError: Unknown names, weights that are not there or do not fit, or a geometry that finelens does not have.
    """
    spec, folder = SCHEME + rest, expanded(rest)
    if folder.is_dir() or rest.startswith((".", "/", "~")):
        trunk = _timm_of_folder(spec, folder)
    elif "@" in rest and not rest.startswith("hf-hub:"):
        name, _, file = rest.partition("@")
        trunk = _timm_of_file(spec, name, expanded(file))
    else:
        trunk = _timm_of_hub(spec, rest)
    config = trunk.pretrained_cfg
    architecture = {"library": "timm", "name": config["architecture"], "pool": str(getattr(trunk, "global_pool", ""))}
    return ImageEncoder(spec, timm_preprocess(spec, trunk), trunk, _pooled, architecture)


def check_timm(rest: str) -> None:
    """Find out whether what :func:`timm_encoder` takes is there, without loading it.

    Raises:
        UserError: A name that timm does not have, or weights that are not there.
    """
    spec, folder = SCHEME + rest, expanded(rest)
    if rest.startswith("hf-hub:") or folder.is_dir():
        return
    name, at, file = rest.partition("@")
    if unknown := _unknown(spec, name):
        raise UserError(unknown)
    if at:
        _weights(spec, expanded(file))


def transformers_encoder(rest: str) -> Backbone:
    """The image encoder, or the image side of the dual encoder, of ``transformers:DIR`` or ``transformers:ORG/REPO[@COMMIT]``.

    Raises:
        UserError: It cannot be found or used.
    """
    source = find_in_transformers(rest, {**FAMILIES, **IMAGE_FAMILIES})
    if source.family in FAMILIES:
        backbone = TransformersBackbone.from_source(source)
        backbone.release_text()
        return backbone
    # Who wrote the file, and in which numbers, decides nothing: the weights have a digest of their own.
    stated = {name: value for name, value in source.stated.items() if name not in _OF_THE_FILE}
    return ImageEncoder(source.name, read_preprocess(source), source.model, _pooler_output, {"library": "transformers", **stated})


def timm_preprocess(spec: str, trunk: Any) -> Preprocess:
    """Geometry and statistics that timm evaluates a model with.

    Raises:
        UserError: A filter, a shape or a crop that finelens does not have.
    """
    data = timm.data.resolve_model_data_config(trunk)
    channels, rows, columns = data["input_size"]
    if channels != 3 or rows != columns:
        raise UserError(f"{spec}: takes inputs of {channels} x {rows} x {columns}; only square ones of three channels are supported")
    if data["interpolation"] not in get_args(Interpolation) or data["crop_mode"] not in ("center", "squash"):
        raise UserError(
            f"{spec}: interpolation {data['interpolation']!r} with crop mode {data['crop_mode']!r} is not supported; "
            f"supported: {', '.join(get_args(Interpolation))} with center or squash"
        )
    mean, std = ((float(a), float(b), float(c)) for a, b, c in (data["mean"], data["std"]))
    whole = math.floor(rows / data["crop_pct"])
    return Preprocess(rows, whole, mean, std, cast(Interpolation, data["interpolation"]), "squash" if data["crop_mode"] == "squash" else "shortest")


def _pooled(trunk: nn.Module, images: Tensor) -> Tensor:
    return cast(Tensor, trunk(images))


def _pooler_output(trunk: nn.Module, images: Tensor) -> Tensor:
    return cast(Tensor, trunk(pixel_values=images).pooler_output.flatten(1))  # (B, D)


def _timm_of_hub(spec: str, name: str) -> Any:
    if not name.startswith("hf-hub:") and not timm.is_model_pretrained(name):
        raise UserError(_unknown(spec, name) or f"{spec}: timm knows no weights of this model; give them with {spec}@FILE.safetensors")
    with hub_errors(spec, OFFLINE_REMEDY):
        return timm.create_model(name, pretrained=True, num_classes=0)


def _timm_of_file(spec: str, name: str, file: Path) -> Any:
    if unknown := _unknown(spec, name):
        raise UserError(unknown)
    return _filled(spec, _built(spec, name), file)


def _timm_of_folder(spec: str, folder: Path) -> Any:
    if not (folder / "config.json").is_file():
        raise UserError(
            f"{spec}: no config.json there; a folder of timm has one (timm.models.save_for_hf writes it), a file goes as {SCHEME}NAME@FILE"
        )
    return _filled(spec, _built(spec, f"local-dir:{folder}"), folder / WEIGHTS)


def _built(spec: str, name: str) -> Any:
    try:
        return timm.create_model(name, pretrained=False, num_classes=0)
    except Exception as error:  # names, tags and arguments of timm fail in many ways
        raise UserError(f"{spec}: timm cannot build it: {first_line(error)}") from error


def _weights(spec: str, file: Path) -> Path:
    """The file of weights, or that in a folder."""
    if file.is_dir():
        file = file / WEIGHTS
    if file.suffix in PICKLE_SUFFIXES:
        raise UserError(
            f"{file}: pickle checkpoints are refused because they can run code; convert it once: "
            f"safetensors.torch.save_file(torch.load({file.name!r}, weights_only=True), {file.stem + '.safetensors'!r})"
        )
    if not file.is_file():
        raise UserError(f"{spec}: no weights; expected {file}")
    return file


def _filled(spec: str, trunk: Any, file: Path) -> Any:
    """The model with the weights of a file: all of them, and none of another. timm itself would leave what is missing at random values."""
    file = _weights(spec, file)
    heads = trunk.pretrained_cfg.get("classifier") or ()
    heads = (heads,) if isinstance(heads, str) else tuple(heads)
    state = {name: tensor for name, tensor in load_tensors(file).items() if not name.startswith(tuple(f"{head}." for head in heads))}
    try:
        trunk.load_state_dict(state)
    except RuntimeError as error:
        what = str(error).splitlines()[1:2] or [first_line(error)]
        raise UserError(
            f"{spec}: {file.name} does not fit the model: {what[0].strip()[:160]}; "
            "its names must be timm's own, as safetensors.torch.save_file(model.state_dict(), FILE) writes them"
        ) from error
    return trunk


def _unknown(spec: str, name: str) -> str | None:
    """A line about an architecture that timm does not have; None about another."""
    own = name.partition(".")[0]
    if timm.is_model(own):
        return None
    near = get_close_matches(own, timm.list_models(), n=3, cutoff=0.4)
    return f"{spec}: timm has no model {own!r}" + (f"; nearest: {', '.join(near)}" if near else "")

"""A run as a folder in transformers' saved layout: the adapted image tower, the text tower that it came with, and the head as a linear classifier."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from open_clip.tokenizer import SimpleTokenizer
from PIL import Image
from torch import Tensor, nn

from finelens.backbones.dual_encoder import STATE_PREFIX, DualEncoder
from finelens.backbones.open_clip_source import build
from finelens.backbones.open_clip_text import TextTower
from finelens.backbones.tower import unit
from finelens.backbones.transformers_loader import INTERPOLATIONS, convert_tower, open_clip_names
from finelens.backbones.transformers_source import SCHEME, find
from finelens.backbones.vit import VisionTransformer, ViTConfig
from finelens.errors import UserError
from finelens.exporting.heads import LinearHead
from finelens.exporting.open_clip_folder import HEAD, find_source
from finelens.exporting.start import check_start
from finelens.protocol import Backbone, Preprocess
from finelens.runs.model import Model
from finelens.storage.tensors import load_tensors, save_tensors

TEMPLATE = "This is a photo of {}."
# Class names and pictures that the pipeline is asked about, and how far a score may be off.
TEXTS, PICTURES, SCORE_TOLERANCE = 20, 4, 1e-3
# Tokens that the pipeline pads the texts of such a model to, however many the model is made for.
SIGLIP_LENGTH = 64


def refuse(backbone: Backbone) -> None:
    """Refuse an image tower that no dual encoder of transformers has.

    Raises:
        UserError: The message says why, and what does hold it.
    """
    remedy = "use --to onnx or --to torch"
    if not isinstance(backbone, DualEncoder):
        raise UserError(
            f"--to transformers cannot hold the backbone {backbone.name}: it is a convolutional network and a text model joined by a map, which is "
            f"none of transformers' models; {remedy}"
        )
    if backbone.name.startswith(SCHEME):
        if not backbone.context_length:
            raise UserError(
                f"--to transformers cannot hold the backbone {backbone.name}: its texts go through a language model, and a dual encoder has a text "
                f"tower; {remedy}"
            )
        return
    tower, kept = backbone.visual, "--to open_clip, onnx or torch"
    if not isinstance(tower, VisionTransformer):
        raise UserError(
            f"--to transformers cannot hold the image tower of {backbone.name}, of kind {tower.kind}: CLIPModel has a plain ViT; use {kept}"
        )
    odd = [name for name, wrong in _unlike_clip(tower.config).items() if wrong]
    if odd:
        raise UserError(f"--to transformers cannot hold the image tower of {backbone.name}: CLIPModel has no ViT with {odd[0]}; use {kept}")


def _unlike_clip(config: ViTConfig) -> dict[str, bool]:
    return {
        "pooling other than by the class token": config.pool != "tok",
        "no layer norm before its blocks": not config.ln_pre,
        "no projection": not config.has_proj,
        "a bias in the patch embedding": config.patch_bias,
    }


def write(model: Model, head: LinearHead, folder: Path) -> None:
    """Write configuration, weights, tokenizer, image processor and head.

    Raises:
        UserError: The source of the text tower is out of reach, no longer what the run started from, or has a text tower that CLIPModel has not.
    """
    backbone = model.engine.backbone
    assert isinstance(backbone, DualEncoder)
    own = {name.removeprefix(STATE_PREFIX): tensor for name, tensor in backbone.image_state().items()}
    if backbone.name.startswith(SCHEME):
        built, processors = _loaded_again(model, own)
    else:
        built, processors = _clip_model(model, own, folder)
    names = dict(enumerate(model.class_names))
    built.config.id2label, built.config.label2id = names, {name: index for index, name in names.items()}
    built.save_pretrained(folder)
    for processor in processors:
        processor.save_pretrained(folder)
    save_tensors(folder / HEAD, {"weight": head.weight, "bias": head.bias})


def _loaded_again(model: Model, own: Mapping[str, Tensor]) -> tuple[Any, list[Any]]:
    """The source, with the adapted image tower."""
    backbone = model.engine.backbone
    source = find(backbone.name.removeprefix(SCHEME))
    check_start(model, convert_tower(source, backbone.preprocess.image_size).state_dict())
    tower = source.model.vision_model
    if source.family == "align":
        tower.load_state_dict({name.removeprefix("trunk."): tensor for name, tensor in own.items()})
    else:
        tower.load_state_dict(their_names(tower.state_dict(), own))
    if "proj" in own:
        source.model.visual_projection.weight.data.copy_(own["proj"].T)
    return source.model, [source.tokenizer, source.processor]


def their_names(theirs: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights by transformers' names, of the same by open_clip's: :func:`~finelens.backbones.transformers_loader.open_clip_names` the other way.

    Args:
        theirs: The tower's state, for its names and shapes.
        own: The weights.
    """
    found: dict[str, Tensor] = {}
    for name, tensor in theirs.items():
        part = next((i for i, one in enumerate("qkv") if name.startswith("encoder.layers.") and f".{one}_proj." in name), None)
        if name.endswith("position_ids"):
            found[name] = tensor
        elif part is None:
            (ours,) = open_clip_names({name: tensor})
            found[name] = own[ours].reshape(tensor.shape)
        else:
            block, _, rest = name.removeprefix("encoder.layers.").partition(".")
            found[name] = own[f"transformer.resblocks.{block}.attn.in_proj_{rest.rpartition('.')[2]}"].chunk(3)[part]
    return found


def _clip_model(model: Model, own: Mapping[str, Tensor], folder: Path) -> tuple[Any, list[Any]]:
    """CLIPModel with the weights of an open_clip model and the adapted image tower."""
    import transformers

    backbone = model.engine.backbone
    assert isinstance(backbone, DualEncoder)
    assert isinstance(backbone.visual, VisionTransformer)
    built, tokenizer = build(find_source(backbone.name))
    check_start(model, built.visual.state_dict())
    text = _plain_text(built, tokenizer, backbone.name)
    vision, shared = backbone.visual.config, {"attention_dropout": 0.0}
    width, layers = text.token_embedding.embedding_dim, text.transformer.resblocks
    first = layers[0]
    end = tokenizer.eot_token_id
    config = transformers.CLIPConfig(
        projection_dim=vision.output_dim,
        text_config={
            **shared,
            "hidden_size": width,
            "intermediate_size": first.mlp.c_fc.out_features,
            "num_hidden_layers": len(layers),
            "num_attention_heads": first.attn.num_heads,
            "vocab_size": text.token_embedding.num_embeddings,
            "max_position_embeddings": len(text.positional_embedding),
            "hidden_act": _activation(vision),
            "layer_norm_eps": first.ln_1.eps,
            "bos_token_id": tokenizer.sot_token_id,
            "eos_token_id": end,
            "pad_token_id": end,
        },
        vision_config={
            **shared,
            "hidden_size": vision.width,
            "intermediate_size": int(vision.width * vision.mlp_ratio),
            "num_hidden_layers": vision.layers,
            "num_attention_heads": vision.heads,
            "image_size": vision.image_size,
            "patch_size": vision.patch_size,
            "hidden_act": _activation(vision),
            "layer_norm_eps": vision.norm_eps,
        },
    )
    theirs = transformers.CLIPModel(config).eval()
    theirs.vision_model.load_state_dict(their_names(theirs.vision_model.state_dict(), own))
    theirs.text_model.load_state_dict(their_names(theirs.text_model.state_dict(), text.state_dict()))
    projection = text.text_projection
    theirs.visual_projection.weight.data.copy_(own["proj"].T)
    theirs.text_projection.weight.data.copy_(projection.weight if isinstance(projection, nn.Linear) else projection.T)
    theirs.logit_scale.data.copy_(built.logit_scale.detach())
    return theirs, [_clip_tokenizer(tokenizer, folder), _processor(backbone.preprocess)]


def _plain_text(built: Any, tokenizer: Any, name: str) -> Any:
    """The module with the parts of the text tower.

    Raises:
        UserError: Not CLIP's own text tower and tokenizer.
    """
    tower = TextTower(built, tokenizer, name)
    parts = getattr(built, "text", built)
    projection = getattr(parts, "text_projection", None)
    biased = isinstance(projection, nn.Linear) and projection.bias is not None
    if not tower.can_trim or projection is None or biased or not isinstance(tokenizer, SimpleTokenizer):
        raise UserError(
            f"--to transformers cannot hold the text tower of {name}: CLIPModel has a causal transformer with CLIP's own tokenizer; "
            "use --to open_clip, onnx or torch"
        )
    return parts


def _activation(config: ViTConfig) -> str:
    return "quick_gelu" if config.quick_gelu else "gelu_pytorch_tanh" if config.tanh_gelu else "gelu"


def _clip_tokenizer(tokenizer: SimpleTokenizer, folder: Path) -> Any:
    """transformers' tokenizer with open_clip's vocabulary."""
    import transformers

    pairs = sorted(tokenizer.bpe_ranks, key=tokenizer.bpe_ranks.__getitem__)
    # Start and end have other names there.
    start, end = (tokenizer.decoder[code] for code in (tokenizer.sot_token_id, tokenizer.eot_token_id))
    vocabulary = {{start: "<|startoftext|>", end: "<|endoftext|>"}.get(word, word): code for word, code in tokenizer.encoder.items()}
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *(" ".join(pair) for pair in pairs), ""]), encoding="utf-8")
    return transformers.CLIPTokenizer.from_pretrained(folder, model_max_length=tokenizer.context_length)


def _processor(own: Preprocess) -> Any:
    import transformers

    square = {"height": own.image_size, "width": own.image_size}
    whole = own.resize_mode == "squash"
    size = {"height": own.resize_size, "width": own.resize_size} if whole else {"shortest_edge": own.resize_size}
    resample = next(code for code, name in INTERPOLATIONS.items() if name == own.interpolation)
    return transformers.CLIPImageProcessor(size=size, crop_size=square, resample=resample, image_mean=list(own.mean), image_std=list(own.std))


class Folder:
    """What transformers makes of the folder alone.

    Args:
        folder: The exported folder.
    """

    def __init__(self, folder: Path) -> None:
        import transformers

        local = {"local_files_only": True}
        self.model = transformers.AutoModel.from_pretrained(folder, **local).eval()
        self.processor = transformers.AutoImageProcessor.from_pretrained(folder, **local)
        self.folder, self._head = folder, load_tensors(folder / HEAD)

    @torch.no_grad()
    def __call__(self, pixels: Tensor) -> Tensor:
        """Calibrated logits (B, C) of normalised pixels (B, 3, S, S), as docs/export.md says that they are got."""
        found = self.model.get_image_features(pixel_values=pixels)
        # Before transformers 5 the features came alone.
        features = unit(found if isinstance(found, Tensor) else found.pooler_output)
        return features @ self._head["weight"].T + self._head["bias"]

    def of_views(self, views: Tensor) -> Tensor:
        """Logits of uint8 views (B, 3, S, S), by the rescaling, mean and deviation in the folder."""
        return self(self.processor(list(views), do_resize=False, do_center_crop=False, return_tensors="pt")["pixel_values"])

    def of_image(self, image: Image.Image) -> Tensor:
        """Logits (C,) of a photograph, by the folder's whole preprocessing."""
        return self(self.processor(image, return_tensors="pt")["pixel_values"])[0]


@torch.no_grad()
def check_texts(theirs: Folder, model: Model, source: Backbone, seen: Tensor, views: Tensor) -> None:
    """Ask transformers' pipeline for zero-shot classification with the folder, and compare its scores with those of the two towers.

    Args:
        theirs: The folder.
        model: The run's model.
        source: What the run started from, with its text tower.
        seen: Unit-norm features (n, E) of the adapted image tower.
        views: What of, uint8 (n, 3, S, S).

    Raises:
        UserError: They differ.
    """
    import transformers

    names, sigmoid = list(model.class_names[:TEXTS]), "siglip" in theirs.model.config.model_type
    texts = [TEMPLATE.format(name) for name in names]
    logits = source.logit_scale * seen[:PICTURES] @ source.encode_text(texts).T + source.logit_bias
    # Models of sigmoid losses answer for each name by itself.
    wanted = logits.sigmoid() if sigmoid else logits.softmax(1)
    if sigmoid and source.context_length != SIGLIP_LENGTH:
        return
    ask = transformers.pipeline("zero-shot-image-classification", model=str(theirs.folder))
    # With a margin for the crop, so that neither resize nor crop changes the view.
    lacking = source.preprocess.resize_size - source.preprocess.image_size
    before = round(lacking / 2)
    framed = F.pad(views[:PICTURES], [before, lacking - before] * 2)
    pictures = [Image.fromarray(view.permute(1, 2, 0).numpy()) for view in framed]
    answers = ask(pictures, candidate_labels=names, hypothesis_template=TEMPLATE)
    for row, answer in zip(wanted, answers, strict=True):
        found = {one["label"]: one["score"] for one in answer}
        gap = float((row - torch.tensor([found[name] for name in names])).abs().max())
        if not gap <= SCORE_TOLERANCE:
            raise UserError(f"transformers' pipeline answers otherwise than the two towers (a score by {gap:.2g}): nothing is kept")

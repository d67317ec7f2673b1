"""Backbones from transformers: a plain ViT or CLIP text tower runs here, its weights renamed; what is neither stays transformers' own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from open_clip.transformer import LayerNorm, QuickGELU, TextTransformer
from torch import Tensor, nn

from finelens.backbones.dual_encoder import DualEncoder, TextEncoder
from finelens.backbones.open_clip_text import TextTower
from finelens.backbones.tower import ImageTower
from finelens.backbones.transformers_source import Source, find
from finelens.backbones.transformers_text import BertText, HubTokenizer
from finelens.backbones.vit import VisionTransformer, ViTConfig
from finelens.errors import UserError
from finelens.protocol import Interpolation, Preprocess

# Image towers that are a plain ViT; the others are transformers' own.
VIT_FAMILIES = ("clip", "metaclip_2", "siglip", "altclip", "chinese_clip")
# Text towers that are a CLIP text transformer, causal or not.
PLAIN_TEXT_FAMILIES = ("clip", "metaclip_2", "siglip")
INTERPOLATIONS: dict[int, Interpolation] = {0: "nearest", 2: "bilinear", 3: "bicubic"}
# Activation: whether it is QuickGELU, and whether it is GELU by its tanh approximation.
ACTIVATIONS = {"quick_gelu": (True, False), "gelu": (False, False), "gelu_pytorch_tanh": (False, True), "gelu_new": (False, True)}
# transformers' names of the parts of a block and of what stands around the blocks; open_clip's.
BLOCK_NAMES = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "self_attn.out_proj": "attn.out_proj",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}
OUTER_NAMES = {
    "embeddings.class_embedding": "class_embedding",
    "embeddings.patch_embedding.weight": "conv1.weight",
    "embeddings.patch_embedding.bias": "conv1.bias",
    "embeddings.position_embedding.weight": "positional_embedding",
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "pre_layrnorm": "ln_pre",
    "post_layernorm": "ln_post",
    "final_layer_norm": "ln_final",
    "head.attention": "attn_pool.attn",
    "head.layernorm": "attn_pool.norm",
    "head.mlp.fc1": "attn_pool.mlp.c_fc",
    "head.mlp.fc2": "attn_pool.mlp.c_proj",
}


class TransformersBackbone(DualEncoder):
    """A dual encoder of transformers. Build it with :meth:`from_name`."""

    @classmethod
    def from_name(cls, rest: str) -> TransformersBackbone:
        """Load ``transformers:DIR`` or ``transformers:ORG/REPO[@COMMIT]``; raises :class:`~finelens.errors.UserError` for what cannot be used."""
        return cls.from_source(find(rest))

    @classmethod
    def from_source(cls, source: Source) -> TransformersBackbone:
        """Convert what was found; raises :class:`~finelens.errors.UserError` for what cannot be used."""
        preprocess = read_preprocess(source)
        text = None if source.tokenizer is None else convert_text(source)
        bias = getattr(source.model, "logit_bias", None)
        return cls(
            source.name,
            preprocess,
            convert_tower(source, preprocess.image_size),
            text,
            logit_scale=_logit_scale(source),
            logit_bias=0.0 if bias is None else float(bias.detach()),
            context_length=0 if text is None else text.tokenizer.context_length,
        )

    @property
    def _text_tower(self) -> TextEncoder:
        # Of an image side; other models have a length even when their texts were let go.
        if not self.context_length:
            raise UserError(
                f"{self.name} has no text tower: its texts go through a language model; give what that makes of the classes, with --prototypes"
            )
        return super()._text_tower


def _logit_scale(source: Source) -> float:
    """Multiplier of cosines: of ALIGN the inverse of a temperature, else the exponential of a parameter."""
    if source.logit_scale is not None:
        return source.logit_scale
    if source.family == "align":
        return 1 / float(source.model.temperature.detach())
    return float(source.model.logit_scale.detach().exp())


def convert_tower(source: Source, image_size: int) -> ImageTower:
    """The image tower with its weights: ours for a ViT, transformers' for ALIGN.

    Raises:
        UserError: An architecture that is neither, or images of another size than its positions are for.
    """
    vision, tower = source.vision_config, source.model.vision_model
    if source.family not in VIT_FAMILIES:
        from finelens.backbones.align_tower import AlignTower

        if vision.pooling_type != "mean":
            raise UserError(f"{source.name}: vision_config.pooling_type {vision.pooling_type!r} is not supported; supported: mean")
        state = {f"trunk.{name}": tensor for name, tensor in tower.state_dict().items()}
        return AlignTower.from_state({"vision": vision.to_dict(), "image_size": image_size}, state)
    config = read_vit_config(source)
    if config.image_size != image_size:
        raise UserError(
            f"{source.name}: the image processor makes {image_size} pixels and vision_config.image_size is {config.image_size}; make them equal"
        )
    state = open_clip_names(tower.state_dict())
    if config.has_proj:
        state["proj"] = source.model.visual_projection.weight.T.contiguous()
    return VisionTransformer.from_state(asdict(config), state)


def read_vit_config(source: Source) -> ViTConfig:
    """Architecture of a ViT image tower.

    Raises:
        UserError: A variant that differs from a plain ViT.
    """
    vision, siglip = source.vision_config, source.family == "siglip"
    for name in ("image_size", "patch_size"):
        if not isinstance(getattr(vision, name), int):
            raise UserError(f"{source.name}: vision_config.{name} is {getattr(vision, name)}; only square inputs and patches are supported")
    if vision.num_channels != 3 or (siglip and not getattr(vision, "vision_use_head", True)):
        raise UserError(f"{source.name}: an image tower without its pooling head, or of other than three channels, is not supported")
    quick, tanh = _activation(source.name, vision.hidden_act)
    return ViTConfig(
        image_size=vision.image_size,
        patch_size=vision.patch_size,
        width=vision.hidden_size,
        layers=vision.num_hidden_layers,
        heads=vision.num_attention_heads,
        output_dim=vision.hidden_size if siglip else source.model.visual_projection.out_features,
        mlp_ratio=(vision.intermediate_size + 0.5) / vision.hidden_size,  # the module multiplies and rounds down
        quick_gelu=quick,
        norm_eps=vision.layer_norm_eps,
        ln_pre=not siglip,
        has_proj=not siglip,
        pool="map" if siglip else "tok",
        class_token=not siglip,
        patch_bias=siglip,
        tanh_gelu=tanh,
    )


def convert_text(source: Source) -> TextEncoder:
    """The text tower with its weights and its tokenizer.

    Raises:
        UserError: An activation that finelens does not have.
    """
    text, model = source.model.config.text_config, source.model
    positions = text.max_position_embeddings
    if source.family == "altclip":
        positions -= text.pad_token_id + 1  # RoBERTa counts positions from behind the padding's
    tokenizer = HubTokenizer(source.tokenizer, positions)
    if source.family in PLAIN_TEXT_FAMILIES:
        return TextTower(_PlainText(source), tokenizer, source.name)
    return BertText(model.text_model, model.text_projection, tokenizer, source.name)


class _PlainText(nn.Module):
    """CLIP's text transformer as open_clip's module, where :class:`TextTower` looks for it."""

    def __init__(self, source: Source) -> None:
        super().__init__()
        model, config, siglip = source.model, source.model.config.text_config, source.family == "siglip"
        quick, tanh = _activation(source.name, config.hidden_act)
        activation: Any = QuickGELU if quick else partial(nn.GELU, approximate="tanh" if tanh else "none")
        # Released CLIP has an end token of 2 in its configuration, which is wrong: the largest id is the end.
        at_largest = source.family == "clip" and config.eos_token_id == 2
        projection = model.text_model.head if siglip else model.text_projection
        self.text = TextTransformer(
            context_length=config.max_position_embeddings,
            vocab_size=config.vocab_size,
            width=config.hidden_size,
            heads=config.num_attention_heads,
            layers=config.num_hidden_layers,
            # The module multiplies and rounds down.
            mlp_ratio=(config.intermediate_size + 0.5) / config.hidden_size,
            output_dim=projection.out_features,
            no_causal_mask=siglip,
            eos_id=config.eos_token_id,
            pool_type="last" if siglip else "argmax" if at_largest else "eos",
            proj_bias=siglip,
            act_layer=activation,
            norm_layer=partial(LayerNorm, eps=config.layer_norm_eps),
        )
        state = open_clip_names(model.text_model.state_dict())
        if siglip:
            state |= {"text_projection.weight": state.pop("head.weight"), "text_projection.bias": state.pop("head.bias")}
        else:
            state["text_projection"] = projection.weight.T
        self.text.load_state_dict(state)
        self.logit_scale = nn.Parameter(model.logit_scale.detach().clone())


def open_clip_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of a transformer under open_clip's names; queries, keys and values become one matrix."""
    renamed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name.endswith("position_ids"):
            continue
        if name == "head.probe":
            renamed["attn_pool.probe"] = tensor.flatten()
        elif not name.startswith("encoder.layers."):
            renamed[_replaced(name, OUTER_NAMES)] = tensor
        elif "_proj." not in name or "out_proj" in name:
            block, _, part = name.removeprefix("encoder.layers.").partition(".")
            renamed[f"transformer.resblocks.{block}.{_replaced(part, BLOCK_NAMES)}"] = tensor
        elif ".q_proj." in name:
            block, _, part = name.removeprefix("encoder.layers.").partition(".")
            parts = [state[name.replace(".q_proj.", f".{one}_proj.")] for one in "qkv"]
            renamed[f"transformer.resblocks.{block}.attn.in_proj_{name.rpartition('.')[2]}"] = torch.cat(parts)
    return renamed


def _replaced(name: str, names: Mapping[str, str]) -> str:
    for theirs, ours in names.items():
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    return name


def _activation(name: str, stated: str) -> tuple[bool, bool]:
    if stated not in ACTIVATIONS:
        raise UserError(f"{name}: hidden_act {stated!r} is not supported; supported: {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[stated]


def read_preprocess(source: Source) -> Preprocess:
    """Geometry and statistics as the image processor states them.

    Raises:
        UserError: A filter, a geometry or a step that finelens does not have; the message names it.
    """
    processor = source.processor

    def refuse(key: str, supported: str) -> UserError:
        return UserError(f"{source.name}: preprocessor {key} is {getattr(processor, key, None)!r}; supported: {supported}")

    for key in ("do_resize", "do_rescale"):
        if not getattr(processor, key):
            raise refuse(key, "true")
    if int(processor.resample) not in INTERPOLATIONS:
        raise refuse("resample", "0 (nearest), 2 (bilinear), 3 (bicubic)")
    size = dict(processor.size)
    short, height, width = (size.get(key) for key in ("shortest_edge", "height", "width"))
    crop = dict(processor.crop_size) if getattr(processor, "do_center_crop", False) else None
    whole = short if short is not None else height
    if whole is None or height != width or (short is not None and crop is None) or size.get("longest_edge") is not None:
        raise refuse("size", "shortest_edge with a centre crop, or height and width that are equal")
    if crop is not None and crop["height"] != crop["width"]:
        raise refuse("crop_size", "height and width that are equal")
    resized = int(whole)
    side = resized if crop is None else int(crop["height"])
    if short is None and side > resized:
        raise refuse("crop_size", "no larger than size")
    mean, std = _statistics(processor)
    return Preprocess(side, resized, mean, std, INTERPOLATIONS[int(processor.resample)], "squash" if short is None else "shortest")


def _statistics(processor: Any) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """The steps from bytes x to ``a x - b``, written as ``(x / 255 - mean) / std``."""
    factor, offset = processor.rescale_factor, 1.0 if getattr(processor, "rescale_offset", False) else 0.0
    mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    if processor.do_normalize:
        mean, std = tuple(processor.image_mean), tuple(processor.image_std)
    # EfficientNet's processor divides once more.
    again = tuple(processor.image_std) if getattr(processor, "include_top", False) else (1.0, 1.0, 1.0)
    scale = 255 * factor
    means = [(offset + m) / scale for m in mean]
    deviations = [s * a / scale for s, a in zip(std, again, strict=True)]
    return (means[0], means[1], means[2]), (deviations[0], deviations[1], deviations[2])

"""Backbones from open_clip: any pretrained tag, hub repository or local folder, behind finelens' one protocol."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, get_args

from open_clip.model import CLIPVisionCfg
from open_clip.modified_resnet import ModifiedResNet
from open_clip.timm_model import TimmModel
from open_clip.transform import PreprocessCfg, merge_preprocess_dict
from open_clip.transformer import QuickGELU as OpenClipQuickGELU
from open_clip.transformer import ResidualAttentionBlock
from open_clip.transformer import VisionTransformer as OpenClipVisionTransformer
from torch import nn

from finelens.backbones.dual_encoder import DualEncoder
from finelens.backbones.open_clip_source import Source, build, find_local, find_on_hub, find_tagged
from finelens.backbones.open_clip_text import SafeTokenizer, TextTower
from finelens.backbones.resnet import ResNetConfig, ResNetTower
from finelens.backbones.timm_tower import TimmConfig, TimmTower
from finelens.backbones.tower import ImageTower
from finelens.backbones.vit import VisionTransformer, ViTConfig
from finelens.core.home import expanded
from finelens.errors import UserError
from finelens.protocol import Interpolation, Preprocess, ResizeMode


class OpenClipBackbone(DualEncoder):
    """An open_clip model. Build it with :meth:`from_tag`, :meth:`from_hub`, :meth:`from_folder` or, without a text tower, :meth:`image_only`."""

    @classmethod
    def from_tag(cls, name: str, tag: str) -> OpenClipBackbone:
        """Load ``open_clip:NAME/TAG``; raises :class:`~finelens.errors.UserError` for unknown names and unreachable hubs."""
        return cls._from_source(find_tagged(name, tag))

    @classmethod
    def from_hub(cls, repository: str) -> OpenClipBackbone:
        """Load ``hf-hub:ORG/REPO``; raises :class:`~finelens.errors.UserError` if it cannot be fetched."""
        return cls._from_source(find_on_hub(repository))

    @classmethod
    def from_folder(cls, folder: str | Path) -> OpenClipBackbone:
        """Load ``local:DIR`` in open_clip's saved layout; raises :class:`~finelens.errors.UserError` for files that cannot be used."""
        return cls._from_source(find_local(expanded(folder)))

    @classmethod
    def _from_source(cls, source: Source) -> OpenClipBackbone:
        model, tokenizer = build(source)
        visual, scale, bias = model.visual, model.logit_scale, model.logit_bias
        text = TextTower(model, SafeTokenizer(tokenizer), source.name)
        return cls(
            source.name,
            read_preprocess(source, visual),
            convert_tower(source, visual),
            text,
            logit_scale=float(scale.detach().exp()),
            logit_bias=0.0 if bias is None else float(bias.detach()),
            context_length=text.tokenizer.context_length,
        )


def convert_tower(source: Source, visual: Any) -> ImageTower:
    """Turn open_clip's image tower into ours, weights copied.

    Raises:
        UserError: A kind of tower that is not supported; the message names it.
    """
    state = visual.state_dict()
    if isinstance(visual, OpenClipVisionTransformer):
        return VisionTransformer.from_state(asdict(read_vit_config(source.name, visual)), state)
    if isinstance(visual, ModifiedResNet):
        vision = source.model["vision_cfg"]
        config = ResNetConfig(
            _square(source.name, visual.image_size), tuple(vision["layers"]), visual.conv3.out_channels, visual.attnpool.num_heads, visual.output_dim
        )
        return ResNetTower.from_state(asdict(config), state)
    if isinstance(visual, TimmModel):
        vision = CLIPVisionCfg(**source.model["vision_cfg"])
        size = _square(source.name, vision.image_size)
        timm_config = TimmConfig(vision.timm_model_name, source.model["embed_dim"], size, vision.timm_pool, vision.timm_proj, vision.timm_proj_bias)
        return TimmTower.from_state(asdict(timm_config), state)
    raise UserError(f"{source.name}: image tower {type(visual).__name__} is not supported; use a ViT, CLIP ResNet or timm tower")


def read_vit_config(name: str, visual: Any) -> ViTConfig:
    """Read the architecture off an open_clip ``VisionTransformer``.

    Raises:
        UserError: Layer scale, attentional pooling, custom blocks or another variant without a value path as defined here.
    """
    first = visual.transformer.resblocks[0]
    activation = first.mlp.gelu
    plain = isinstance(first, ResidualAttentionBlock) and isinstance(first.ls_1, nn.Identity) and visual.attn_pool is None
    plain_activation = isinstance(activation, OpenClipQuickGELU) or (isinstance(activation, nn.GELU) and activation.approximate == "none")
    if not plain or not plain_activation or visual.pool_type not in ("tok", "avg"):
        raise UserError(f"{name}: this ViT variant (layer scale, attentional pooling or custom blocks) is not supported; use a standard CLIP ViT")
    return ViTConfig(
        image_size=_square(name, visual.image_size),
        patch_size=_square(name, visual.patch_size),
        width=visual.conv1.out_channels,
        layers=len(visual.transformer.resblocks),
        heads=first.attn.num_heads,
        output_dim=visual.output_dim,
        mlp_ratio=first.mlp.c_fc.out_features / visual.conv1.out_channels,
        quick_gelu=isinstance(activation, OpenClipQuickGELU),
        norm_eps=first.ln_1.eps,
        ln_pre=not isinstance(visual.ln_pre, nn.Identity),
        has_proj=visual.proj is not None,
        pool=visual.pool_type,
        norm_after_pool=visual.final_ln_after_pool,
    )


def read_preprocess(source: Source, visual: Any) -> Preprocess:
    """Geometry and statistics from the model's preprocessing settings; the size is the tower's.

    Raises:
        UserError: A filter, resize mode or shape that finelens does not have.
    """
    known = {field.name for field in fields(PreprocessCfg)}
    settings = merge_preprocess_dict(PreprocessCfg(), {k: v for k, v in source.preprocess.items() if k in known})
    for key, allowed in (("interpolation", get_args(Interpolation)), ("resize_mode", get_args(ResizeMode))):
        if settings[key] not in allowed:
            raise UserError(f"{source.name}: preprocess_cfg.{key} is {settings[key]!r}; supported: {', '.join(allowed)}")
    size = _square(source.name, visual.image_size)
    mean, std = (tuple(float(v) for v in settings[key]) for key in ("mean", "std"))
    if len(mean) != 3 or len(std) != 3:
        raise UserError(f"{source.name}: preprocess_cfg.mean and std need three numbers each, got {mean} and {std}")
    return Preprocess(size, size, mean, std, settings["interpolation"], settings["resize_mode"])


def _square(name: str, size: int | Sequence[int]) -> int:
    rows, columns = (size, size) if isinstance(size, int) else size
    if rows != columns:
        raise UserError(f"{name}: {rows} x {columns} pixels; only square inputs and patches are supported")
    return int(rows)

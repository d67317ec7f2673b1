"""Backbones from open_clip: any pretrained tag, hub repository or local folder, behind finelens' one protocol."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, get_args

import torch
from open_clip.model import CLIPVisionCfg
from open_clip.modified_resnet import ModifiedResNet
from open_clip.timm_model import TimmModel
from open_clip.transform import PreprocessCfg, merge_preprocess_dict
from open_clip.transformer import QuickGELU as OpenClipQuickGELU
from open_clip.transformer import ResidualAttentionBlock
from open_clip.transformer import VisionTransformer as OpenClipVisionTransformer
from torch import Tensor, nn

from finelens.backbones.low_rank import merge, plain_state
from finelens.backbones.open_clip_source import Source, build, find_local, find_on_hub, find_tagged
from finelens.backbones.open_clip_text import TextTower
from finelens.backbones.resnet import ResNetConfig, ResNetTower
from finelens.backbones.timm_tower import TimmConfig, TimmTower
from finelens.backbones.tower import ImageTower, unit
from finelens.backbones.tuning import select_adapted, select_parameters
from finelens.backbones.vit import VisionTransformer, ViTConfig
from finelens.errors import UserError
from finelens.protocol import Backbone, ImageTokens, Interpolation, NotAvailableError, Preprocess, ResizeMode

TOWERS: dict[str, type[ImageTower]] = {tower.kind: tower for tower in (VisionTransformer, ResNetTower, TimmTower)}
STATE_PREFIX = "visual."


class OpenClipBackbone(Backbone):
    """An open_clip model. Always in evaluation mode; every parameter starts frozen.

    Build it with :meth:`from_tag`, :meth:`from_hub`, :meth:`from_folder` or, without a text tower, :meth:`image_only`.

    Args:
        name: The user's specification.
        preprocess: Input geometry and statistics.
        tower: Image tower; its parameters appear as ``visual.*``, as in open_clip.
        text: Text tower; None leaves an image-only backbone whose text methods raise.
        logit_scale: Multiplier of cosine similarities.
        logit_bias: Additive term of the logits.
        context_length: Longest text in tokens.
    """

    def __init__(
        self,
        name: str,
        preprocess: Preprocess,
        tower: ImageTower,
        text: TextTower | None,
        *,
        logit_scale: float,
        logit_bias: float,
        context_length: int,
    ):
        super().__init__()
        self.name = name
        self.preprocess = preprocess
        self.visual = tower
        self.text = text
        self.logit_scale, self.logit_bias, self.context_length = logit_scale, logit_bias, context_length
        self.width, self.dim, self.grid = tower.width, tower.dim, tower.grid
        self.has_token_sequence, self.is_convolutional = tower.has_token_sequence, tower.is_convolutional
        self.requires_grad_(False)
        self.eval()

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
        return cls._from_source(find_local(Path(folder).expanduser()))

    @classmethod
    def image_only(cls, config: Mapping[str, Any], state: Mapping[str, Tensor]) -> OpenClipBackbone:
        """Rebuild the image side from what :meth:`image_config` and :meth:`image_state` returned. Text methods then raise.

        Raises:
            UserError: Tensors that do not fit the configuration.
        """
        own = {key.removeprefix(STATE_PREFIX): value for key, value in state.items()}
        try:
            tower = TOWERS[config["kind"]].from_state(dict(config["tower"]), own)
            settings: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in config["preprocess"].items()}
            numbers = {key: config[key] for key in ("logit_scale", "logit_bias", "context_length")}
            return cls(config["name"], Preprocess(**settings), tower, None, **numbers)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise UserError(f"saved image tower does not fit its configuration: {error}; save the model again") from error

    @classmethod
    def _from_source(cls, source: Source) -> OpenClipBackbone:
        model, tokenizer = build(source)
        visual, scale, bias = model.visual, model.logit_scale, model.logit_bias
        text = TextTower(model, tokenizer, source.name)
        return cls(
            source.name,
            read_preprocess(source, visual),
            convert_tower(source, visual),
            text,
            logit_scale=float(scale.detach().exp()),
            logit_bias=0.0 if bias is None else float(bias.detach()),
            context_length=text.tokenizer.context_length,
        )

    def train(self, mode: bool = True) -> OpenClipBackbone:
        """Stay in evaluation mode: normalisation statistics are frozen whatever the loop asks for."""
        return super().train(False)

    def encode_image(self, images: Tensor, *, patches: bool = False, prompts: Tensor | None = None) -> ImageTokens:
        """Encode normalised images (B, 3, S, S)."""
        return self.visual.tokens(images, patches=patches, prompts=prompts)

    def encode_prefix(self, images: Tensor, last_blocks: int) -> Tensor:
        """Activations (B, ...) before the last so many blocks; timm's towers have none."""
        return self.visual.prefix(images, last_blocks)

    def encode_suffix(self, prefix: Tensor, last_blocks: int, *, patches: bool = False) -> ImageTokens:
        """Tokens from what :meth:`encode_prefix` gave."""
        return self.visual.suffix(prefix, last_blocks, patches=patches)

    def project(self, tokens: Tensor) -> Tensor:
        """Map tokens (..., W) to the joint space (..., E), not normalised."""
        return self.visual.project(tokens)

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Token ids (T, L)."""
        return self._text_tower.tokenizer(texts)

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text before truncation."""
        return self._text_tower.tokenizer.count(texts)

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """Unit-norm text features (T, E), float32."""
        return self._text_tower.encode(texts) if texts else torch.zeros(0, self.dim)

    def embed_tokens(self, tokens: Tensor) -> Tensor:
        """Token embeddings (T, L, W_text) before positions."""
        return self._text_tower.embed(tokens)

    def encode_token_embeddings(self, embeddings: Tensor, tokens: Tensor) -> Tensor:
        """Differentiable unit-norm text features (T, E)."""
        return unit(self._text_tower.encode_embeddings(embeddings, tokens))

    def release_text(self) -> None:
        """Give up the text tower; texts then raise."""
        self.text = None

    def tunable(self, scope: str) -> dict[str, nn.Parameter]:
        """Parameters of a scope; names begin as those of :meth:`image_state` do."""
        blocks, final = self.visual.depth_groups()
        return select_parameters(self, scope, trunk=self.visual, blocks=blocks, final=final)

    def adapted(self, scope: str) -> dict[str, Tensor]:
        """Adapted tensors of a scope; names are those of :meth:`image_state`."""
        blocks, final = self.visual.depth_groups()
        return select_adapted(self, scope, trunk=self.visual, blocks=blocks, final=final)

    def merge(self) -> None:
        """Write tuned weights into the tower."""
        merge(self.visual)

    def image_config(self) -> dict[str, Any]:
        """JSON description of the image side."""
        return {
            "kind": self.visual.kind,
            "name": self.name,
            "tower": self.visual.config_dict(),
            "preprocess": {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self.preprocess).items()},
            "logit_scale": self.logit_scale,
            "logit_bias": self.logit_bias,
            "context_length": self.context_length,
        }

    def image_state(self) -> dict[str, Tensor]:
        """Tensors of the image side under open_clip's names (``visual.*``); they share memory with the parameters, clone them to keep a state."""
        return {STATE_PREFIX + name: tensor.detach().contiguous() for name, tensor in plain_state(self.visual).items()}

    @property
    def _text_tower(self) -> TextTower:
        if self.text is None:
            raise NotAvailableError(
                f"{self.name!r} was rebuilt from a saved model, or adapted, and has no text tower; load the original backbone to encode texts"
            )
        return self.text


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

"""Small random checkpoints in transformers' saved layout, one for each family of dual encoders, written by transformers itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor, nn

FAMILIES = ("clip", "metaclip_2", "siglip", "altclip", "chinese_clip", "align")
SIDE = 48
TEXTS = ["a photo of a cat.", "two dogs on grass", "Bird", "a photo of a small red stripe next to a blue disc and a yellow ramp"]
_VISION = {"hidden_size": 32, "intermediate_size": 72, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": SIDE, "patch_size": 16}
_TEXT = {"hidden_size": 24, "intermediate_size": 52, "num_hidden_layers": 2, "num_attention_heads": 4}
_ALIGN_VISION = {
    "image_size": SIDE,
    "width_coefficient": 0.5,
    "depth_coefficient": 0.5,
    "in_channels": [32, 16, 24],
    "out_channels": [16, 24, 48],
    "kernel_sizes": [3, 3, 5],
    "strides": [1, 2, 2],
    "num_block_repeats": [1, 2, 2],
    "expand_ratios": [1, 6, 6],
    "depthwise_padding": [],
    "hidden_dim": 64,
}
_ALPHABET = "abcdefghijklmnopqrstuvwxyz0123456789.,'!?<>|[]/_-"
_CROP = {"size": {"shortest_edge": SIDE}, "crop_size": {"height": SIDE, "width": SIDE}}
_PROCESSORS: dict[str, tuple[str, dict[str, Any]]] = {
    "clip": ("CLIPImageProcessor", _CROP),
    "metaclip_2": ("CLIPImageProcessor", _CROP),
    "altclip": ("CLIPImageProcessor", _CROP),
    "chinese_clip": ("ChineseCLIPImageProcessor", _CROP),
    "siglip": ("SiglipImageProcessor", {"size": {"height": SIDE, "width": SIDE}}),
    # As the released model: bilinear, bytes to [-1, 1], a square of all of the image, of which the middle is seen.
    "align": (
        "EfficientNetImageProcessor",
        {
            "size": {"height": 58, "width": 58},
            "crop_size": {"height": SIDE, "width": SIDE},
            "do_center_crop": True,
            "rescale_factor": 1 / 127.5,
            "rescale_offset": True,
            "do_normalize": False,
            "include_top": False,
            "resample": 2,
        },
    ),
}


def write_tiny(
    folder: Path, family: str, *, vision: dict[str, Any] | None = None, text: dict[str, Any] | None = None, processor: dict[str, Any] | None = None
) -> Path:
    """Checkpoint of a family: joint width 20 (SigLIP and ALIGN: that of their image tower), 48-pixel images. Returns ``folder``.

    Args:
        folder: Where to write; made if absent.
        family: ``model_type`` of the configuration.
        vision: Overrides of ``vision_config``.
        text: Overrides of ``text_config``.
        processor: Overrides of the image processor.
    """
    tokenizer, text_config = _text_side(folder, family)
    text_config |= text or {}
    vision_config = {**(_ALIGN_VISION if family == "align" else _VISION), **(vision or {})}
    model_class = {
        "clip": transformers.CLIPModel,
        "metaclip_2": transformers.MetaClip2Model,
        "siglip": transformers.SiglipModel,
        "altclip": transformers.AltCLIPModel,
        "chinese_clip": transformers.ChineseCLIPModel,
        "align": transformers.AlignModel,
    }[family]
    joint = {"align": 24, "siglip": None}.get(family, 20)
    config = model_class.config_class(text_config=text_config, vision_config=vision_config, **({"projection_dim": joint} if joint else {}))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = model_class(config)
        for name, tensor in model.state_dict().items():
            _perturb(name, tensor)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    name, settings = _PROCESSORS[family]
    getattr(transformers, name)(**{**settings, **(processor or {})}).save_pretrained(folder)
    return folder


def their_model(folder: Path) -> nn.Module:
    """The checkpoint as transformers builds it: the reference of tests."""
    return transformers.AutoModel.from_pretrained(folder).float().eval()


@torch.no_grad()
def their_image_features(model: Any, pixels: Tensor) -> Tensor:
    """transformers' own features (B, E), of unit length."""
    return nn.functional.normalize(_pooled(model.get_image_features(pixel_values=pixels)), dim=-1)


@torch.no_grad()
def their_text_features(model: Any, folder: Path, texts: list[str]) -> Tensor:
    """transformers' own features (T, E), of unit length, with the padding that its documentation asks for."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    siglip = model.config.model_type == "siglip"
    inputs = tokenizer(texts, padding="max_length" if siglip else True, truncation=True, max_length=_length(tokenizer, model), return_tensors="pt")
    names = ("input_ids",) if siglip else ("input_ids", "attention_mask")
    return nn.functional.normalize(_pooled(model.get_text_features(**{name: inputs[name] for name in names})), dim=-1)


def _length(tokenizer: Any, model: Any) -> int:
    return min(tokenizer.model_max_length, model.config.text_config.max_position_embeddings)


def _pooled(output: Any) -> Tensor:
    """Before transformers 5 the features came alone."""
    return output if isinstance(output, Tensor) else output.pooler_output


SCALES = {"logit_scale": 2.0, "logit_bias": -5.0, "temperature": 0.0625}


def _perturb(name: str, tensor: Tensor) -> None:
    """Move every weight off its neutral initial value, so that a forgotten bias or norm shows and features differ between inputs."""
    if name in SCALES:
        tensor.fill_(SCALES[name])
    elif name.endswith("running_var"):
        tensor.add_(0.2 * torch.rand_like(tensor))
    elif tensor.is_floating_point() and tensor.ndim <= 1:
        tensor.add_(0.2 * torch.randn_like(tensor))
    elif tensor.is_floating_point():
        tensor.copy_(torch.randn_like(tensor) * (2 / tensor[0].numel()) ** 0.5)


def _text_side(folder: Path, family: str) -> tuple[Any, dict[str, Any]]:
    """A tokenizer of the family's kind with a vocabulary of characters, and the text configuration that goes with it."""
    folder.mkdir(parents=True, exist_ok=True)
    if family == "clip":
        return _clip_side(folder)
    if family in ("chinese_clip", "align"):
        words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *_ALPHABET, *(f"##{letter}" for letter in _ALPHABET), "photo", "cat"]
        (folder / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
        tokenizer = transformers.BertTokenizer.from_pretrained(folder, model_max_length=40)
        return tokenizer, {**_TEXT, "vocab_size": len(words), "max_position_embeddings": 64, "pad_token_id": 0}
    pad, start, end, unknown = (0, 2, 1, 3) if family == "siglip" else (1, 0, 2, 3)
    specials = dict(sorted({pad: "<pad>", start: "<s>", end: "</s>", unknown: "<unk>"}.items()))
    pieces = [*specials.values(), *(f"▁{letter}" for letter in _ALPHABET), *_ALPHABET, "▁", "▁photo", "▁cat"]
    backend = Tokenizer(models.Unigram([(piece, -float(len(pieces) - i) / 10) for i, piece in enumerate(pieces)], unk_id=unknown))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    ends = [("<s>", start), ("</s>", end)]
    backend.post_processor = processors.TemplateProcessing(single="$A </s>" if family == "siglip" else "<s> $A </s>", special_tokens=ends)
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>", model_max_length=30
    )
    tokenizer.padding_side = "right"
    own = {**_TEXT, "vocab_size": len(pieces), "pad_token_id": pad, "bos_token_id": start, "eos_token_id": end}
    if family == "siglip":
        return tokenizer, {**own, "max_position_embeddings": 30, "projection_size": 32}
    if family == "altclip":
        return tokenizer, {**own, "max_position_embeddings": 32, "project_dim": 28}
    return tokenizer, {**own, "max_position_embeddings": 30, "projection_dim": 20}


def _clip_side(folder: Path) -> tuple[Any, dict[str, Any]]:
    words = [*_ALPHABET, *(f"{letter}</w>" for letter in _ALPHABET), "ca", "cat</w>", "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: i for i, word in enumerate(words)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\nc a\nca t</w>\n", encoding="utf-8")
    tokenizer = transformers.CLIPTokenizer.from_pretrained(folder, model_max_length=77)
    ends = {"bos_token_id": len(words) - 2, "eos_token_id": len(words) - 1, "pad_token_id": len(words) - 1}
    return tokenizer, {**_TEXT, "vocab_size": len(words), "max_position_embeddings": 77, "projection_dim": 20, **ends}

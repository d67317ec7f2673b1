"""BioCLIP, BiomedCLIP and RS-M-CLIP: small checkpoints with the keys that their configurations have, weights pickled as theirs are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
import torch.nn.functional as F
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from finelens.backbones.open_clip_loader import OpenClipBackbone
from finelens.backbones.open_clip_source import Source
from tests.backbones.checkpoints import CLIP_PREPROCESS, TINY_TEXT

TEXTS = ["a photo of a cat", "a small house", "cat"]
WORDS = ["a", "photo", "of", "cat", "small", "house"]
COMMON = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}


def language_model(folder: Path, kind: str) -> Path:
    """Configuration and tokenizer of a small BERT or XLM-RoBERTa, as a hub repository has them."""
    if kind == "bert":
        special, config = ["[PAD]", "[CLS]", "[SEP]", "[UNK]"], transformers.BertConfig(**COMMON, max_position_embeddings=300)
    else:
        special, config = ["<pad>", "<s>", "</s>", "<unk>"], transformers.XLMRobertaConfig(**COMMON, max_position_embeddings=90, pad_token_id=0)
    pad, start, end, unknown = special
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate([*special, *WORDS])}, unknown))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.BertProcessing((end, 2), (start, 1))
    names = {"pad_token": pad, "cls_token": start, "bos_token": start, "sep_token": end, "eos_token": end, "unk_token": unknown}
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)
    config.save_pretrained(folder)
    return folder


def bioclip(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """BioCLIP, and BioCLIP 2 and 2.5, which are larger: the plain ViT of open_clip. The first says nothing of its preprocessing."""
    vision = {"image_size": 64, "layers": 2, "width": 64, "patch_size": 16}
    return {"embed_dim": 48, "vision_cfg": vision, "text_cfg": TINY_TEXT}, {"hf_hub": "imageomics/bioclip/open_clip_pytorch_model.bin"}


def biomedclip(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """A ViT of timm with a linear projection, BERT's first token through an MLP, texts of 256 tokens."""
    name = str(language_model(folder / "text", "bert"))
    vision = {"timm_model_name": "test_vit", "timm_model_pretrained": False, "timm_pool": "", "timm_proj": "linear", "image_size": 160}
    text = {"hf_model_name": name, "hf_tokenizer_name": name, "hf_proj_type": "mlp", "hf_pooler_type": "cls_last_hidden_state_pooler"}
    statistics = {key: CLIP_PREPROCESS[key] for key in ("mean", "std")}
    return {"embed_dim": 48, "vision_cfg": vision, "text_cfg": {**text, "context_length": 256}}, statistics


def rs_m_clip(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """``xlm-roberta-base-ViT-B-32``: the mean of XLM-RoBERTa's tokens through an MLP."""
    name = str(language_model(folder / "text", "xlm-roberta"))
    text = {"hf_model_name": name, "hf_tokenizer_name": name, "hf_pooler_type": "mean_pooler"}
    statistics = {key: CLIP_PREPROCESS[key] for key in ("mean", "std")}
    return {"embed_dim": 48, "vision_cfg": {"image_size": 64, "layers": 2, "width": 64, "patch_size": 32}, "text_cfg": text}, statistics


@pytest.mark.parametrize("layout", [bioclip, biomedclip, rs_m_clip])
def test_a_small_checkpoint_of_the_layout_has_open_clip_s_features(layout, tmp_path):
    config, preprocess = layout(tmp_path)
    foreign = "hf_model_name" in config["text_cfg"]
    arguments = {key: dict(value) if isinstance(value, dict) else value for key, value in config.items()}
    if foreign:
        arguments["text_cfg"]["hf_model_pretrained"] = False
    torch.manual_seed(0)
    model = (open_clip.CustomTextCLIP if foreign else open_clip.CLIP)(**arguments).eval()
    state = dict(model.state_dict())
    if layout is biomedclip:
        # Its file is older than the transformers that stopped keeping this.
        state["text.transformer.embeddings.position_ids"] = torch.arange(300)[None]
    torch.save(state, tmp_path / "open_clip_pytorch_model.bin")
    tokenizer = f"local-dir:{tmp_path / 'text'}" if foreign else "ViT-B-32"
    if foreign:
        (tmp_path / "text" / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": preprocess}))
    source = Source("hf-hub:ORG/REPO", config, preprocess, tmp_path / "open_clip_pytorch_model.bin", tokenizer)
    backbone = OpenClipBackbone._from_source(source)
    assert (backbone.preprocess.mean, backbone.preprocess.std) == (tuple(CLIP_PREPROCESS["mean"]), tuple(CLIP_PREPROCESS["std"]))
    assert backbone.context_length == (256 if layout is biomedclip else 77)
    side = backbone.preprocess.image_size
    noise = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1))
    tokens = open_clip.get_tokenizer(tokenizer, context_length=backbone.context_length)(TEXTS)
    with torch.no_grad():
        torch.testing.assert_close(backbone.encode_image(noise).global_, F.normalize(model.encode_image(noise), dim=1), atol=1e-5, rtol=0)
        torch.testing.assert_close(backbone.encode_text(TEXTS), F.normalize(model.encode_text(tokens), dim=1), atol=1e-5, rtol=0)

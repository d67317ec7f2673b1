"""Every architecture that open_clip knows by name: does finelens give open_clip's features, or why does it refuse?

    python scripts/open_clip_names.py                        # the table of docs/open_clip_names.md
    python scripts/open_clip_names.py PE-Core-B-16 RN50      # some of them

Full-size towers take too long on a few cores, so each name is looked at twice. Reduced: a random checkpoint in open_clip's saved layout with the same
kinds of blocks and the same switches, two blocks deep and narrow, loaded by ``local:DIR``; unit-norm features on noise and on texts are compared with
open_clip's own. Full: built without storage (on the meta device), and the names and shapes of the image tower's tensors are mapped one to one.
Tokenizers and language models of the hub are replaced by small ones of the same kind.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import open_clip
import pytest
import timm
import torch
import torch.nn.functional as F
import transformers
from open_clip.model import _build_text_tower, _build_vision_tower
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from finelens.backbones.open_clip_loader import convert_tower, read_vit_config
from finelens.backbones.open_clip_source import Source, refuse_kind
from finelens.backbones.registry import load_backbone
from finelens.backbones.resnet import ResNetTower
from finelens.backbones.timm_tower import TimmConfig, TimmTower
from finelens.backbones.vit import VisionTransformer
from finelens.errors import UserError

TEXTS = ("a photo of a cat", "a small house on a hill, seen from above", "cat")
WORDS = ["a", "photo", "of", "cat", "small", "house", "on", "hill", ",", "seen", "from", "above"]
# Widths and depths that keep the kinds of blocks, by class of timm; the rest of an architecture stays.
PYRAMID = (32, 64, 128, 256, 512)


@dataclass(frozen=True)
class Row:
    """What was found about a name.

    Attributes:
        name: Architecture.
        tower: Kind of its image tower; empty where there is no such pair of towers, and nothing is counted.
        image: Parameters of the image tower.
        text: Of the text tower; None where a language model of the hub is meant.
        tensors: Tensors of the full image tower that are mapped one to one; 0 where they are not.
        images: Largest difference of image features; None where refused.
        texts: Of text features.
        reason: Why it is refused.
    """

    name: str
    tower: str
    image: int
    text: int | None
    tensors: int
    images: float | None = None
    texts: float | None = None
    reason: str = ""

    def line(self) -> str:
        """A line of the table."""
        text = "hub" if self.text is None else f"{self.text / 1e6:.0f}"
        parameters = f"{self.image / 1e6:.0f} + {text}" if self.tower else ""
        found = f"{self.tensors} | {self.images:.0e} | {self.texts:.0e} |" if self.images is not None else f"| | | {self.reason}"
        return f"| `{self.name}` | {self.tower} | {parameters} | {found} |"


def look_at(name: str) -> Row:
    """Reduced features and full structure of one architecture."""
    config = open_clip.get_model_config(name)
    try:
        tower, image, text, tensors = full(name, config)
    except (KeyError, TypeError):  # of models without a pair of image and text towers, refused below
        tower, image, text, tensors = "", 0, None, 0
    with tempfile.TemporaryDirectory() as folder:
        try:
            refuse_kind(name, config)
            small, arguments = reduced(config, Path(folder))
            with shrunk(arguments):
                images, texts = differences(Path(folder), small)
        except UserError as error:
            return Row(name, tower, image, text, 0, reason=str(error).partition(": ")[2].replace(f"local:{folder}", name))
    return Row(name, tower, image, text, tensors, images, texts)


def full(name: str, config: dict[str, Any]) -> tuple[str, int, int | None, int]:
    """Kind and parameters of the image tower, parameters of the text tower, number of tensors that are mapped one to one; nothing has storage."""
    quick, dim, vision = bool(config.get("quick_gelu")), config["embed_dim"], dict(config["vision_cfg"], timm_model_pretrained=False)
    foreign = "hf_model_name" in config["text_cfg"]
    with torch.device("meta"):
        visual = _build_vision_tower(dim, vision, quick)
        text = None if foreign else sum(p.numel() for p in _build_text_tower(dim, config["text_cfg"], quick).parameters())
        try:
            own = same_architecture(name, config, visual)
        except UserError:
            own = None
    theirs = {key: tuple(value.shape) for key, value in visual.state_dict().items()}
    mapped = own is not None and {key: tuple(value.shape) for key, value in own.state_dict().items()} == theirs
    kind = vision.get("timm_model_name") or type(visual).__name__
    return kind, sum(p.numel() for p in visual.parameters()), text, len(theirs) if mapped else 0


def same_architecture(name: str, config: dict[str, Any], visual: Any) -> torch.nn.Module:
    """Our tower for an architecture, on the device of the context."""
    vision = config["vision_cfg"]
    if "timm_model_name" in vision:
        full_vision = open_clip.model.CLIPVisionCfg(**vision)
        pool, proj, bias = full_vision.timm_pool, full_vision.timm_proj, full_vision.timm_proj_bias
        return TimmTower(TimmConfig(vision["timm_model_name"], config["embed_dim"], visual.image_size[0], pool, proj, bias))
    if isinstance(vision.get("layers"), list):
        caught: list[dict[str, Any]] = []
        with replaced(ResNetTower, "from_state", lambda settings, state: caught.append(settings)):
            convert_tower(Source(name, config, {}, Path(), ""), visual)
        return ResNetTower.from_config(caught[0])
    return VisionTransformer.from_config(asdict(read_vit_config(name, visual)))


def reduced(config: dict[str, Any], folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """A small configuration of the same kind, and arguments with which timm builds its trunk. Tokenizer and language model go into the folder."""
    small = deepcopy(config)
    vision, text = small["vision_cfg"], small["text_cfg"]
    arguments: dict[str, Any] = {}
    width = 128
    if "timm_model_name" in vision:
        width, arguments = small_trunk(vision)
    elif isinstance(vision.get("layers"), list):
        vision.update(layers=[1, 1, 1, 1], width=8, image_size=64)
    else:
        head = vision.get("head_width", 64)
        width = 2 * head
        vision.update(layers=2, width=width, image_size=4 * vision["patch_size"])
    small["embed_dim"] = width
    if "hf_model_name" in text:
        text.update(hf_model_name=str(write_language_model(folder / "text", text["hf_model_name"])), hf_model_pretrained=False)
    else:
        text.update(width=width, heads=2, layers=2)
    if "hf_tokenizer_name" in text:
        end = text.get("eos_id", 2)
        # open_clip looks for the tokenizer of a folder in that folder, whatever is named here.
        write_tokenizer(folder, 1 if "mt5" in text["hf_tokenizer_name"] else end)
        if "hf_model_name" not in text:
            text["vocab_size"] = 64
        # open_clip 4 compares it with the tokenizer.
        if "pad_id" in text:
            text["pad_id"] = 1
    return small, arguments


def small_trunk(vision: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    """Joint width and timm's arguments of a small trunk."""
    name = vision["timm_model_name"]
    with torch.device("meta"):
        trunk = timm.create_model(name)
    kind, width = type(trunk).__name__, 128
    stem = type(getattr(trunk, "patch_embed", None)).__name__
    if kind in ("VisionTransformer", "VisionTransformerRelPos", "Eva") and stem != "HybridEmbed" and "vitamin" not in name:
        heads = next(module.num_heads for module in trunk.modules() if hasattr(module, "num_heads"))
        width = 2 * (trunk.embed_dim // heads)
        arguments: dict[str, Any] = {"depth": 2, "embed_dim": width, "num_heads": 2}
        # A convolutional stem wants whole images.
        if kind != "VisionTransformerRelPos" and stem == "PatchEmbed":
            vision["image_size"] = arguments["img_size"] = 4 * trunk.patch_embed.patch_size[0]
        return width, arguments
    if kind == "FastVit":
        stages = len(trunk.stages)
        return width, {"layers": (1,) * stages, "embed_dims": PYRAMID[:stages]}
    if kind == "ConvNeXt":
        vision["image_size"] = 64
        return width, {"depths": (1, 1, 1, 1), "dims": PYRAMID[:4]}
    if kind == "SwinTransformer":
        return width, {"depths": (2, 1, 1, 1), "embed_dim": 32, "num_heads": (1, 2, 4, 8)}
    # A ViT behind a convolutional stem, whose widths stand in the stem's own settings.
    return width, {"depth": 2}


def differences(folder: Path, config: dict[str, Any]) -> tuple[float, float]:
    """Largest differences of unit-norm image and text features between finelens and open_clip, for one random checkpoint."""
    torch.manual_seed(0)
    arguments = deepcopy(config)
    custom = arguments.pop("custom_text", False) or "hf_model_name" in config["text_cfg"]
    coca = "multimodal_cfg" in arguments
    kind = open_clip.CoCa if coca else open_clip.CustomTextCLIP if custom else open_clip.CLIP
    model = kind(**arguments).eval()
    save_file({key: value.clone() for key, value in model.state_dict().items()}, folder / "open_clip_model.safetensors")
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
    backbone = load_backbone(f"local:{folder}")
    side = backbone.preprocess.image_size
    noise = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1))
    tokens = open_clip.get_tokenizer(f"local-dir:{folder}")(list(TEXTS))
    with torch.no_grad():
        images = backbone.encode_image(noise).global_ - F.normalize(model.encode_image(noise), dim=-1)
        texts = backbone.encode_text(TEXTS) - F.normalize(model.encode_text(tokens), dim=-1)
    return float(images.abs().max()), float(texts.abs().max())


def write_tokenizer(folder: Path, end: int) -> None:
    """A word tokenizer whose end token has the given id, 1 or 2."""
    special = ["<s>", "<pad>", "</s>"] if end == 2 else ["<pad>", "</s>", "<s>"]
    vocabulary = {word: i for i, word in enumerate([*special, "<unk>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing("$A </s>", special_tokens=[("</s>", vocabulary["</s>"])])
    names = {"bos_token": "<s>", "cls_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "sep_token": "</s>", "unk_token": "<unk>"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)


def write_language_model(folder: Path, name: str) -> Path:
    """The configuration of a small language model of the same kind."""
    common = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    if "roberta" in name:
        kind = transformers.XLMRobertaConfig if "xlm" in name else transformers.RobertaConfig
        config = kind(**common, max_position_embeddings=90)
    elif "modernbert" in name:
        config = transformers.ModernBertConfig(**common, max_position_embeddings=256, pad_token_id=1)
    elif "mt5" in name:
        config = transformers.MT5Config(vocab_size=64, d_model=32, d_kv=16, d_ff=64, num_layers=2, num_heads=2)
    else:
        config = transformers.M2M100Config(
            vocab_size=64, d_model=32, encoder_layers=2, encoder_attention_heads=2, encoder_ffn_dim=64, decoder_layers=1
        )
    config.save_pretrained(folder)
    return folder


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """An attribute with another value."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, value)
        yield


@contextmanager
def shrunk(arguments: dict[str, Any]) -> Iterator[None]:
    """timm builds its models with these arguments, whoever asks for them."""
    own: Callable[..., Any] = timm.create_model
    with replaced(timm, "create_model", lambda name, **given: own(name, **{**given, **arguments})):
        yield


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="Architectures; all by default.")
    given = parser.parse_args()
    transformers.utils.logging.set_verbosity_error()
    print(f"open_clip {open_clip.__version__}, timm {timm.__version__}, transformers {transformers.__version__}, torch {torch.__version__}\n")
    print("| name | image tower | million parameters, image + text | tensors mapped | images | texts | refused because |")
    print("|---|---|---|---|---|---|---|", flush=True)
    failed = 0
    for name in given.names or sorted(open_clip.list_models()):
        try:
            row = look_at(name)
        except Exception as error:  # one name must not hide the others
            print(f"| `{name}` | | | | | | not looked at: {type(error).__name__}: {str(error).splitlines()[0]} |", flush=True)
            failed += 1
            continue
        worst = max(row.images or 0.0, row.texts or 0.0)
        failed += worst > 1e-5 or (row.images is not None and not row.tensors)
        print(row.line(), flush=True)
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()

"""Features of photographs and class prototypes of checkpoints that are no model of open_clip or transformers: LaCLIP's own layout and CLIP-MoE.

    python scripts/encode_checkpoint.py PHOTOS cc12m_laclip.pt --classes names.txt --out encoded
    python scripts/encode_checkpoint.py PHOTOS clip-moe.pt --top-k 2 --classes names.txt --out encoded
    finelens adapt encoded/images.npy --prototypes encoded/prototypes.npy --classes names.txt --row-names encoded/rows.txt --out run

The layout is seen in the names of the tensors, sizes in their shapes. Only tensors are read (``weights_only``), and no code of a repository is run.

LaCLIP (CC3M, CC12M, RedCaps): a ViT of timm with normalised queries and keys, ``image_projection``, CLIP's text transformer with QuickGELU;
photographs of 224 pixels with ImageNet's mean. CLIP-MoE: a CLIP with QuickGELU whose last blocks have experts in the place of the MLP, Long-CLIP's
two tables of positions, and of each token the ``--top-k`` likeliest experts, their shares summing to 1. Its file does not say how many; published is
2 of 4.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from convert_checkpoint import POSITIONS, one_table, read_state
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torchvision.transforms.v2.functional import normalize

from finelens.classes.class_set import build_class_set
from finelens.classes.taxonomy import read_class_list
from finelens.classes.templates import fill
from finelens.images.decode import DecodeLimits
from finelens.images.discover import ImageFile, discover
from finelens.images.store import load_images
from finelens.images.views import centre_view
from finelens.protocol import Preprocess

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CLIP = (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
HEAD = 64
BATCH = 32
# A vision tower that is replaced by another.
NO_TOWER = {"layers": 1, "width": HEAD, "patch_size": 8, "image_size": 8}


class Projected(nn.Module):
    """A timm trunk and a projection behind it.

    Args:
        trunk: Gives (B, W).
        projection: (W, E).
    """

    def __init__(self, trunk: nn.Module, projection: Tensor) -> None:
        super().__init__()
        self.trunk, self.projection = trunk, nn.Parameter(torch.empty_like(projection))

    def forward(self, images: Tensor) -> Tensor:
        """Features (B, E)."""
        features: Tensor = self.trunk(images) @ self.projection
        return features


class Experts(nn.Module):
    """A mixture of MLPs for each token: the ``top_k`` likeliest, by shares that sum to 1.

    Args:
        width: Of a token.
        hidden: Of an MLP.
        count: MLPs.
        top_k: How many of them answer for a token.
    """

    def __init__(self, width: int, hidden: int, count: int, top_k: int) -> None:
        super().__init__()
        self.gate = nn.Linear(width, count, bias=False)
        self.experts = nn.ModuleList(
            nn.ModuleDict({"c_fc": nn.Linear(width, hidden), "gelu": open_clip.transformer.QuickGELU(), "c_proj": nn.Linear(hidden, width)})
            for _ in range(count)
        )
        self.top_k = top_k

    @property
    def c_fc(self) -> Any:
        """A layer of one MLP: open_clip reads the float type of a transformer off its first block's."""
        first: Any = self.experts[0]
        return first["c_fc"]

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (..., W)."""
        likeliest, which = self.gate(tokens).float().softmax(-1).topk(self.top_k, -1)  # (..., k)
        shares = torch.zeros(*tokens.shape[:-1], len(self.experts)).scatter(-1, which, likeliest / likeliest.sum(-1, keepdim=True))
        parts: Any = self.experts
        answers = torch.stack([part["c_proj"](part["gelu"](part["c_fc"](tokens))) for part in parts], -1)  # (..., W, experts)
        return (answers * shares[..., None, :].to(answers)).sum(-1)


def build(state: dict[str, Tensor], top_k: int) -> tuple[Any, Preprocess]:
    """The model of a state dict with its weights, and its geometry.

    Raises:
        SystemExit: Neither of the layouts, or tensors that do not fit.
    """
    if "image_projection" in state:
        model, renamed, statistics, filter_ = *_laclip(state), IMAGENET, "bilinear"
    elif any(".experts." in name for name in state):
        model, renamed, statistics, filter_ = *_clip_moe(state, top_k), CLIP, "bicubic"
    else:
        raise SystemExit(
            "neither image_projection (LaCLIP) nor experts (CLIP-MoE) among the tensors; scripts/convert_checkpoint.py takes CLIP's layout"
        )
    try:
        model.load_state_dict(renamed)
    except RuntimeError as error:
        raise SystemExit(f"the tensors do not fit the layout: {' '.join(str(error).split())}") from error
    side = _side(renamed)
    return model.float().eval(), Preprocess(side, side, *statistics, filter_)  # type: ignore[arg-type]


def _laclip(state: dict[str, Tensor]) -> tuple[Any, dict[str, Tensor]]:
    patches = state["visual.patch_embed.proj.weight"]
    width, patch = patches.shape[0], patches.shape[-1]
    heads = width // state["visual.blocks.0.attn.q_norm.weight"].numel()
    side = patch * round((state["visual.pos_embed"].shape[1] - 1) ** 0.5)
    depth = _blocks(state, "visual.blocks.")
    trunk = VisionTransformer(
        img_size=side, patch_size=patch, embed_dim=width, depth=depth, num_heads=heads, qkv_bias=True, qk_norm=True, num_classes=0
    )
    projection = state["image_projection"]
    model = open_clip.CLIP(projection.shape[1], NO_TOWER, _text(state), quick_gelu=True)
    model.visual = Projected(trunk, projection)
    renamed = {re.sub(r"^visual\.", "visual.trunk.", name): tensor for name, tensor in state.items()}
    return model, {"visual.projection": renamed.pop("image_projection"), **renamed}


def _clip_moe(state: dict[str, Tensor], top_k: int) -> tuple[Any, dict[str, Tensor]]:
    state = one_table(state)
    patches = state["visual.conv1.weight"]
    width, patch = patches.shape[0], patches.shape[-1]
    side = patch * round((state["visual.positional_embedding"].shape[0] - 1) ** 0.5)
    depth = _blocks(state, "visual.transformer.resblocks.")
    vision = {"layers": depth, "width": width, "patch_size": patch, "image_size": side, "head_width": HEAD}
    model = open_clip.CLIP(state["text_projection"].shape[1], vision, _text(state), quick_gelu=True)
    for tower, prefix in ((model.visual.transformer, "visual."), (model.transformer, "")):
        for k, block in enumerate(tower.resblocks):
            gate = state.get(f"{prefix}transformer.resblocks.{k}.gate.weight")
            if gate is not None:
                hidden = len(state[f"{prefix}transformer.resblocks.{k}.experts.0.c_fc.bias"])
                block.mlp = Experts(gate.shape[1], hidden, len(gate), top_k)
    return model, {re.sub(r"(resblocks\.\d+)\.(experts|gate)\.", r"\1.mlp.\2.", name): tensor for name, tensor in state.items()}


def _text(state: dict[str, Tensor]) -> dict[str, int]:
    """CLIP's text configuration; heads have 64 coordinates."""
    vocabulary, width = state["token_embedding.weight"].shape
    layers = _blocks(state, "transformer.resblocks.")
    return {"context_length": len(state[POSITIONS]), "vocab_size": vocabulary, "width": width, "heads": max(1, width // HEAD), "layers": layers}


def _blocks(state: dict[str, Tensor], prefix: str) -> int:
    return len({name.removeprefix(prefix).partition(".")[0] for name in state if name.startswith(prefix)})


def _side(state: dict[str, Tensor]) -> int:
    """Pixels of the square input, of the positions and the patches of either layout."""
    positions, patches = (
        next(state[name] for name in names if name in state)
        for names in (
            ("visual.trunk.pos_embed", "visual.positional_embedding"),
            ("visual.trunk.patch_embed.proj.weight", "visual.conv1.weight"),
        )
    )
    return int(patches.shape[-1]) * round((positions.shape[-2] - 1) ** 0.5)


@torch.no_grad()
def encode_photographs(
    model: Any, preprocess: Preprocess, files: Sequence[ImageFile], say: Callable[[str], None] = print
) -> tuple[Tensor, list[str]]:
    """Unit-norm features (N, E) of what can be read, and its names."""
    parts, names = [], []
    limits = DecodeLimits(short_side=max(DecodeLimits.short_side, preprocess.resize_size))
    for start in range(0, len(files), BATCH):
        loaded = load_images(files[start : start + BATCH], limits)
        rows = [record for record in loaded.records if record.index is not None]
        for record in loaded.records:
            if record.index is None:
                say(f"{record.name}: {record.status}, left out")
        if rows:
            views = torch.stack([centre_view(loaded.store[record.index], preprocess) for record in rows])
            parts.append(F.normalize(model.encode_image(normalize(views / 255, list(preprocess.mean), list(preprocess.std))), dim=1))
            names += [record.name for record in rows]
    if not names:
        raise SystemExit("no photograph can be read")
    return torch.cat(parts), names


@torch.no_grad()
def encode_classes(model: Any, classes: Path, descriptions: Path | None) -> Tensor:
    """A unit-norm row (C, E) for each class: of the mean of its sentences, or of filled templates where it has none."""
    class_set = build_class_set(read_class_list(classes)[0], descriptions)[0]
    rows = []
    for name, sentences in zip(class_set.names, class_set.descriptions, strict=True):
        texts = list(sentences) or [fill(template, name) for template in class_set.templates]
        tokens = open_clip.tokenize(texts, context_length=model.context_length)
        rows.append(F.normalize(F.normalize(model.encode_text(tokens), dim=1).mean(0), dim=0))
    return torch.stack(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("file", type=Path, help="the checkpoint")
    parser.add_argument("--classes", type=Path, required=True)
    parser.add_argument("--descriptions", type=Path, help="JSON file {class: [sentence, ...]}")
    parser.add_argument("--top-k", type=int, default=2, help="experts that answer for a token, of CLIP-MoE")
    parser.add_argument("--out", type=Path, required=True, help="folder to write, new")
    given = parser.parse_args()
    given.out.mkdir(parents=True)
    model, preprocess = build(read_state(given.file), given.top_k)
    images, names = encode_photographs(model, preprocess, discover(given.photos))
    np.save(given.out / "images.npy", images.numpy())
    np.save(given.out / "prototypes.npy", encode_classes(model, given.classes, given.descriptions).numpy())
    (given.out / "rows.txt").write_text("\n".join(names) + "\n", encoding="utf-8")
    scale, out = float(model.logit_scale.detach().exp()), given.out
    print(
        f"{len(names)} photographs; now: finelens adapt {out / 'images.npy'} --prototypes {out / 'prototypes.npy'} --classes {given.classes} "
        f"--row-names {out / 'rows.txt'} --logit-scale {scale:.4g} --out RUN"
    )


if __name__ == "__main__":
    main()

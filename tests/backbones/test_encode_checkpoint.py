"""Checkpoints of LaCLIP and CLIP-MoE, small and in their own layouts: the script's features are those of the written-out forwards."""

from __future__ import annotations

import argparse
import importlib
import math
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import finelens
from finelens.images.store import load_images
from finelens.images.views import centre_view
from tests.toy import CLASSES, QUIET, write_classes, write_photos

TEXTS = ["a photo of a cat", "a small house on a hill"]
WIDTH, EMBED, HEADS, PATCH, SIDE, WORDS = 128, 48, 2, 8, 32, 49408
CONTEXT = {"laclip": 77, "clip-moe": 248}


@pytest.fixture(scope="module")
def script():
    """The script, which imports the one beside it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parents[2] / "scripts"))
        yield importlib.import_module("encode_checkpoint")


def drawn(generator: torch.Generator, **shapes: tuple[int, ...]) -> dict[str, Tensor]:
    """Random tensors by name (``__`` for a dot); weights of norms about 1."""
    made = {}
    for name, shape in shapes.items():
        values = 0.1 * torch.randn(*shape, generator=generator)
        is_norm = any(part in name for part in ("ln_", "norm")) and name.endswith("weight")
        made[name.replace("__", ".")] = 1 + values if is_norm else values
    return made


def clip_block(generator, prefix: str, experts: int = 0) -> dict[str, Tensor]:
    shapes = {
        **{f"{norm}__{part}": (WIDTH,) for norm in ("ln_1", "ln_2") for part in ("weight", "bias")},
        "attn__in_proj_weight": (3 * WIDTH, WIDTH),
        "attn__in_proj_bias": (3 * WIDTH,),
        "attn__out_proj__weight": (WIDTH, WIDTH),
        "attn__out_proj__bias": (WIDTH,),
    }
    for mlp in [f"experts__{k}" for k in range(experts)] or ["mlp"]:
        shapes |= {f"{mlp}__c_fc__weight": (4 * WIDTH, WIDTH), f"{mlp}__c_fc__bias": (4 * WIDTH,)}
        shapes |= {f"{mlp}__c_proj__weight": (WIDTH, 4 * WIDTH), f"{mlp}__c_proj__bias": (WIDTH,)}
    if experts:
        shapes["gate__weight"] = (experts, WIDTH)
    return {prefix + name: tensor for name, tensor in drawn(generator, **shapes).items()}


def checkpoint(layout: str) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(0)
    tokens = (SIDE // PATCH) ** 2 + 1
    state = drawn(
        g,
        token_embedding__weight=(WORDS, WIDTH),
        positional_embedding=(CONTEXT[layout], WIDTH),
        ln_final__weight=(WIDTH,),
        ln_final__bias=(WIDTH,),
        text_projection=(WIDTH, EMBED),
    )
    state["logit_scale"] = torch.tensor(math.log(50))
    for k in range(2):
        state |= clip_block(g, f"transformer.resblocks.{k}.", experts=3 if layout == "clip-moe" else 0)
    if layout == "clip-moe":
        # The last block has experts, the first the MLP that it always had.
        state |= clip_block(g, "visual.transformer.resblocks.0.") | clip_block(g, "visual.transformer.resblocks.1.", experts=3)
        norms = {f"visual__{norm}__{part}": (WIDTH,) for norm in ("ln_pre", "ln_post") for part in ("weight", "bias")}
        outer = {"visual__conv1__weight": (WIDTH, 3, PATCH, PATCH), "visual__class_embedding": (WIDTH,), "visual__proj": (WIDTH, EMBED)}
        own = {"positional_embedding_res": (CONTEXT[layout], WIDTH), "visual__positional_embedding": (tokens, WIDTH)}
        return state | drawn(g, **norms, **outer, **own)
    for k in range(2):
        block = {f"norm{n}__{part}": (WIDTH,) for n in (1, 2) for part in ("weight", "bias")}
        block |= {f"attn__{which}_norm__{part}": (WIDTH // HEADS,) for which in "qk" for part in ("weight", "bias")}
        block |= {"attn__qkv__weight": (3 * WIDTH, WIDTH), "attn__qkv__bias": (3 * WIDTH,)}
        block |= {"attn__proj__weight": (WIDTH, WIDTH), "attn__proj__bias": (WIDTH,)}
        block |= {"mlp__fc1__weight": (4 * WIDTH, WIDTH), "mlp__fc1__bias": (4 * WIDTH,)}
        block |= {"mlp__fc2__weight": (WIDTH, 4 * WIDTH), "mlp__fc2__bias": (WIDTH,)}
        state |= {f"visual.blocks.{k}.{name}": tensor for name, tensor in drawn(g, **block).items()}
    outer = {"visual__patch_embed__proj__weight": (WIDTH, 3, PATCH, PATCH), "visual__patch_embed__proj__bias": (WIDTH,)}
    outer |= {"visual__cls_token": (1, 1, WIDTH), "visual__pos_embed": (1, tokens, WIDTH)}
    outer |= {"visual__norm__weight": (WIDTH,), "visual__norm__bias": (WIDTH,), "image_projection": (WIDTH, EMBED)}
    return state | drawn(g, **outer)


def norm(state, name: str, x: Tensor, eps: float = 1e-5) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], eps)


def linear(state, name: str, x: Tensor) -> Tensor:
    return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | float = 0.0) -> Tensor:
    """(L, W) of queries, keys and values (heads, L, W / heads)."""
    weights = (q @ k.transpose(1, 2) / math.sqrt(q.shape[-1]) + mask).softmax(-1)
    return (weights @ v).transpose(0, 1).flatten(1)


def by_head(x: Tensor) -> Tensor:
    return x.view(len(x), HEADS, -1).transpose(0, 1)


def mlp(state, name: str, x: Tensor) -> Tensor:
    hidden = linear(state, f"{name}.c_fc", x)
    return linear(state, f"{name}.c_proj", hidden * torch.sigmoid(1.702 * hidden))


def routed(state, name: str, token: Tensor) -> Tensor:
    """The two likeliest experts of one token (W,)."""
    shares = (state[f"{name}.gate.weight"] @ token).softmax(0)
    best = sorted(range(len(shares)), key=lambda k: -float(shares[k]))[:2]
    total = sum(shares[k] for k in best)
    return sum(shares[k] / total * mlp(state, f"{name}.experts.{k}", token) for k in best)


def clip_blocks(state, prefix: str, x: Tensor, mask: Tensor | float = 0.0) -> Tensor:
    for k in range(2):
        name = f"{prefix}transformer.resblocks.{k}"
        qkv = norm(state, f"{name}.ln_1", x) @ state[f"{name}.attn.in_proj_weight"].T + state[f"{name}.attn.in_proj_bias"]
        x = x + linear(state, f"{name}.attn.out_proj", attend(*map(by_head, qkv.chunk(3, 1)), mask))
        looked = norm(state, f"{name}.ln_2", x)
        x = x + (torch.stack([routed(state, name, t) for t in looked]) if f"{name}.gate.weight" in state else mlp(state, f"{name}.mlp", looked))
    return x


def image(state, pixels: Tensor) -> Tensor:
    """Feature (E,) of pixels (3, S, S)."""
    if "image_projection" in state:
        cells = F.conv2d(pixels[None], state["visual.patch_embed.proj.weight"], state["visual.patch_embed.proj.bias"], stride=PATCH)[0]
        x = torch.cat([state["visual.cls_token"][0], cells.flatten(1).T]) + state["visual.pos_embed"][0]
        for k in range(2):
            name = f"visual.blocks.{k}"
            q, key, v = map(by_head, linear(state, f"{name}.attn.qkv", norm(state, f"{name}.norm1", x, 1e-6)).chunk(3, 1))
            looked = attend(norm(state, f"{name}.attn.q_norm", q, 1e-6), norm(state, f"{name}.attn.k_norm", key, 1e-6), v)
            x = x + linear(state, f"{name}.attn.proj", looked)
            x = x + linear(state, f"{name}.mlp.fc2", F.gelu(linear(state, f"{name}.mlp.fc1", norm(state, f"{name}.norm2", x, 1e-6))))
        return norm(state, "visual.norm", x, 1e-6)[0] @ state["image_projection"]
    cells = F.conv2d(pixels[None], state["visual.conv1.weight"], stride=PATCH)[0].flatten(1).T
    x = torch.cat([state["visual.class_embedding"][None], cells]) + state["visual.positional_embedding"]
    x = clip_blocks(state, "visual.", norm(state, "visual.ln_pre", x))
    return norm(state, "visual.ln_post", x[0]) @ state["visual.proj"]


def text(state, tokens: Tensor) -> Tensor:
    """Feature (E,) of ids (L,). The end has the largest id; what comes after it has no effect, and is left out here."""
    end = int(tokens.argmax()) + 1
    positions = state["positional_embedding"].clone()
    if "positional_embedding_res" in state:
        positions[20:] = state["positional_embedding_res"][20:]
    x = state["token_embedding.weight"][tokens[:end]] + positions[:end]
    mask = torch.full((end, end), -torch.inf).triu(1)
    return norm(state, "ln_final", clip_blocks(state, "", x, mask)[-1]) @ state["text_projection"]


@pytest.mark.parametrize("layout", ["laclip", "clip-moe"])
@torch.no_grad()
def test_features_are_those_of_the_published_forward(layout, script, tmp_path):
    state = checkpoint(layout)
    saved = state
    if layout == "laclip":
        # As its training saves: of a distributed module, with the settings beside it.
        saved = {"epoch": 35, "state_dict": {f"module.{name}": value for name, value in state.items()}, "args": argparse.Namespace(lr=1e-3)}
    torch.save(saved, tmp_path / "paper.pt")
    model, preprocess = script.build(script.read_state(tmp_path / "paper.pt"), top_k=2)
    assert (preprocess.image_size, preprocess.interpolation) == (SIDE, "bilinear" if layout == "laclip" else "bicubic")
    noise = torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(model.encode_image(noise), torch.stack([image(state, one) for one in noise]), atol=1e-4, rtol=1e-4)
    tokens = open_clip.tokenize([*TEXTS, "a long text " * 15], context_length=CONTEXT[layout])
    torch.testing.assert_close(model.encode_text(tokens), torch.stack([text(state, one) for one in tokens]), atol=1e-4, rtol=1e-4)


def test_what_is_written_is_what_adapt_takes(script, tmp_path, monkeypatch, capsys):
    photos, classes = write_photos(tmp_path / "photos", per_class=3), write_classes(tmp_path / "classes.txt")
    (photos / "broken.png").write_bytes(b"no picture")
    torch.save(checkpoint("clip-moe"), tmp_path / "moe.pt")
    out = tmp_path / "out"
    monkeypatch.setattr("sys.argv", ["encode_checkpoint.py", str(photos), str(tmp_path / "moe.pt"), "--classes", str(classes), "--out", str(out)])
    script.main()
    said = capsys.readouterr().out
    assert "broken.png: corrupt, left out" in said
    assert "12 photographs; now: finelens adapt" in said
    assert "--logit-scale 50 " in said
    images, names = np.load(out / "images.npy"), (out / "rows.txt").read_text().splitlines()
    assert (images.shape, np.load(out / "prototypes.npy").shape) == ((12, EMBED), (len(CLASSES), EMBED))
    model, preprocess = script.build(script.read_state(tmp_path / "moe.pt"), top_k=2)
    (pixels,) = load_images([str(photos / names[5])]).store
    mean, std = (torch.tensor(values)[:, None, None] for values in (preprocess.mean, preprocess.std))
    with torch.no_grad():
        own = F.normalize(model.encode_image(((centre_view(pixels, preprocess) / 255 - mean) / std)[None]), dim=1)
    np.testing.assert_allclose(images[5], own[0].numpy(), atol=1e-5)
    given = {"prototypes": out / "prototypes.npy", "row_names": out / "rows.txt", "logit_scale": 50.0, "console": QUIET}
    assert len(finelens.adapt(out / "images.npy", classes, tmp_path / "run", **given).rows) == 12


def test_other_layouts_and_lacking_tensors_are_refused(script):
    state = checkpoint("laclip")
    with pytest.raises(SystemExit, match=r"scripts/convert_checkpoint\.py takes CLIP's layout"):
        script.build({name: value for name, value in state.items() if name != "image_projection"}, 2)
    with pytest.raises(SystemExit, match=r"do not fit the layout.*ln_final\.bias"):
        script.build({name: value for name, value in state.items() if name != "ln_final.bias"}, 2)

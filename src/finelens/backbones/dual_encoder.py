"""A dual encoder of two towers behind finelens' one protocol, whichever library its checkpoint comes from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Protocol, Self

import torch
from torch import Tensor, nn

from finelens.backbones.low_rank import merge, plain_state, undo
from finelens.backbones.tower import ImageTower, unit
from finelens.backbones.towers import tower_class
from finelens.backbones.tuning import select_adapted, select_parameters, select_text
from finelens.errors import UserError
from finelens.protocol import Backbone, ImageTokens, NotAvailableError, Preprocess

STATE_PREFIX = "visual."


class TextTokenizer(Protocol):
    """Reads user text as text: special tokens written out in it become plain characters."""

    context_length: int

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Token ids (T, L), truncated to the context length."""
        ...

    def count(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text before truncation, special tokens included."""
        ...


class TextEncoder(Protocol):
    """Text side of a dual encoder; a module."""

    @property
    def tokenizer(self) -> TextTokenizer:
        """Its tokenizer."""
        ...

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Unit-norm features (T, E), float32, in the order of ``texts``."""
        ...

    def embed(self, tokens: Tensor) -> Tensor:
        """Token embeddings (T, L, W_text) before positions."""
        ...

    def encode_embeddings(self, embeddings: Tensor, tokens: Tensor) -> Tensor:
        """Features (T, E), not normalised, from embeddings (T, L, W_text) and the ids (T, L) that place the pooling token."""
        ...

    def blocks(self) -> Sequence[nn.Module]:
        """Its blocks, where :meth:`encode_embeddings` works.

        Raises:
            NotAvailableError: It does not.
        """
        ...


class DualEncoder(Backbone):
    """An image tower and a text tower with one joint space. Always in evaluation mode; every parameter starts frozen.

    Libraries' subclasses load it; :meth:`image_only` rebuilds it without a text tower.

    Args:
        name: The user's specification.
        preprocess: Input geometry and statistics.
        tower: Image tower; its parameters appear as ``visual.*``, as in open_clip.
        text: Text tower; None leaves an image-only backbone whose text methods raise.
        logit_scale: Multiplier of cosine similarities.
        logit_bias: Additive term of the logits.
        context_length: Longest text in tokens.
    """

    def __init__(
        self,
        name: str,
        preprocess: Preprocess,
        tower: ImageTower,
        text: TextEncoder | None,
        *,
        logit_scale: float,
        logit_bias: float,
        context_length: int,
    ):
        super().__init__()
        self.name = name
        self.preprocess = preprocess
        self.visual = tower
        self.text = text
        self.logit_scale, self.logit_bias, self.context_length = logit_scale, logit_bias, context_length
        self.width, self.dim, self.grid = tower.width, tower.dim, tower.grid
        self.has_token_sequence, self.is_convolutional = tower.has_token_sequence, tower.is_convolutional
        self.requires_grad_(False)
        self.eval()

    @classmethod
    def image_only(cls, config: Mapping[str, Any], state: Mapping[str, Tensor]) -> Self:
        """Rebuild the image side from what :meth:`image_config` and :meth:`image_state` returned. Text methods then raise.

        Raises:
            UserError: Tensors that do not fit the configuration.
        """
        own = {key.removeprefix(STATE_PREFIX): value for key, value in state.items()}
        try:
            tower = tower_class(config["kind"]).from_state(dict(config["tower"]), own)
            settings: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in config["preprocess"].items()}
            numbers = {key: config[key] for key in ("logit_scale", "logit_bias", "context_length")}
            return cls(config["name"], Preprocess(**settings), tower, None, **numbers)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise UserError(f"saved image tower does not fit its configuration: {error}; save the model again") from error

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode: normalisation statistics are frozen whatever the loop asks for."""
        return super().train(False)

    def encode_image(self, images: Tensor, *, patches: bool = False, prompts: Tensor | None = None) -> ImageTokens:
        """Encode normalised images (B, 3, S, S)."""
        return self.visual.tokens(images, patches=patches, prompts=prompts)

    def encode_prefix(self, images: Tensor, last_blocks: int) -> Tensor:
        """Activations (B, ...) before the last so many blocks; timm's towers have none."""
        return self.visual.prefix(images, last_blocks)

    def encode_suffix(self, prefix: Tensor, last_blocks: int, *, patches: bool = False) -> ImageTokens:
        """Tokens from what :meth:`encode_prefix` gave."""
        return self.visual.suffix(prefix, last_blocks, patches=patches)

    def project(self, tokens: Tensor) -> Tensor:
        """Map tokens (..., W) to the joint space (..., E), not normalised."""
        return self.visual.project(tokens)

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Token ids (T, L)."""
        return self._text_tower.tokenizer(texts)

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text before truncation."""
        return self._text_tower.tokenizer.count(texts)

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """Unit-norm text features (T, E), float32."""
        return self._text_tower.encode(texts) if texts else torch.zeros(0, self.dim)

    def embed_tokens(self, tokens: Tensor) -> Tensor:
        """Token embeddings (T, L, W_text) before positions."""
        return self._text_tower.embed(tokens)

    def encode_token_embeddings(self, embeddings: Tensor, tokens: Tensor) -> Tensor:
        """Differentiable unit-norm text features (T, E)."""
        return unit(self._text_tower.encode_embeddings(embeddings, tokens))

    def release_text(self) -> None:
        """Give up the text tower; texts then raise."""
        self.text = None

    def tunable(self, scope: str) -> dict[str, nn.Parameter]:
        """Parameters of a scope; names begin as those of :meth:`image_state` do."""
        blocks, final = self.visual.depth_groups()
        return select_parameters(self, scope, trunk=self.visual, blocks=blocks, final=final)

    def adapted(self, scope: str) -> dict[str, Tensor]:
        """Adapted tensors of a scope; names are those of :meth:`image_state`."""
        blocks, final = self.visual.depth_groups()
        return select_adapted(self, scope, trunk=self.visual, blocks=blocks, final=final)

    def tunable_text(self, scope: str) -> dict[str, nn.Parameter]:
        """Parameters of a scope of the text tower; names begin with ``text.``."""
        return select_text(self, scope, self._text_tower.blocks())

    def merge(self) -> None:
        """Write tuned weights into the image tower, and forget those of the text tower."""
        merge(self.visual)
        if isinstance(self.text, nn.Module):
            undo(self.text)

    def image_config(self) -> dict[str, Any]:
        """JSON description of the image side."""
        return {
            "kind": self.visual.kind,
            "name": self.name,
            "tower": self.visual.config_dict(),
            "preprocess": {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self.preprocess).items()},
            "logit_scale": self.logit_scale,
            "logit_bias": self.logit_bias,
            "context_length": self.context_length,
        }

    def image_state(self) -> dict[str, Tensor]:
        """Tensors of the image side under open_clip's names (``visual.*``); they share memory with the parameters, clone them to keep a state."""
        return {STATE_PREFIX + name: tensor.detach().contiguous() for name, tensor in plain_state(self.visual).items()}

    @property
    def _text_tower(self) -> TextEncoder:
        if self.text is None:
            raise NotAvailableError(
                f"{self.name!r} was rebuilt from a saved model, or adapted, and has no text tower; load the original backbone to encode texts"
            )
        return self.text

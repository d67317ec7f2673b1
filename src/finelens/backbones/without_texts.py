"""What backbones share that have no text tower, and one token an image: its feature."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import NoReturn

from torch import Tensor, nn

from finelens.protocol import Backbone


class WithoutTexts(Backbone):
    """Refuses texts, has nothing to tune, and its tokens are in the joint space already."""

    @abstractmethod
    def _no_texts(self) -> NoReturn:
        """Say what to do instead."""

    def project(self, tokens: Tensor) -> Tensor:
        """Tokens are in the joint space already."""
        return tokens

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Refuses: there is no text tower."""
        self._no_texts()

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Refuses: there is no text tower."""
        self._no_texts()

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """Refuses: there is no text tower."""
        self._no_texts()

    def tunable(self, scope: str) -> dict[str, nn.Parameter]:
        """Nothing to tune."""
        return {}

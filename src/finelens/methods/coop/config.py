"""Options of CoOp, shared by methods that learn a text context."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from finelens.core.options import require


@dataclass(frozen=True)
class CoopConfig:
    """Options of the method (``--set method.key=value``).

    Attributes:
        tokens: Context vectors M of a prompt; ``init`` decides instead where it is given.
        init: Words that the context starts from, e.g. ``a photo of a``; empty for random vectors.
        position: Where the class name stands: at the ``end``, in the ``middle`` or at the ``front`` of the context.
        class_specific: Whether every class learns a context of its own.
        text_batch: Prompts encoded at a time; with more prompts than that, activations are computed twice instead of kept.
    """

    tokens: int = 16
    init: str = ""
    position: Literal["end", "middle", "front"] = "end"
    class_specific: bool = False
    text_batch: int = 64

    def __post_init__(self) -> None:
        require(self.tokens >= 1, "method.tokens", "at least 1", self.tokens)
        require(self.text_batch >= 1, "method.text_batch", "at least 1", self.text_batch)

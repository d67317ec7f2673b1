"""Options of LaFTer."""

from __future__ import annotations

from dataclasses import dataclass

from finelens.methods.parts.student import StudentConfig
from finelens.methods.text_classifier import TextClassifierConfig


@dataclass(frozen=True)
class LafterConfig(TextClassifierConfig, StudentConfig):
    """Options of both stages (``--set method.key=value``), see :class:`TextClassifierConfig` and :class:`StudentConfig`.

    Attributes:
        prompts: Visual prompt tokens, where the tower has a token sequence.
    """

    prompts: int = 50

    def __post_init__(self) -> None:
        TextClassifierConfig.__post_init__(self)
        StudentConfig.__post_init__(self)

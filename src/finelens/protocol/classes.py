"""Classes: their names and the texts that describe them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ClassSet:
    """Class names and the texts that describe them.

    Attributes:
        names: Class names as the user wrote them, in the user's order.
        templates: Prompt templates; each contains ``{}`` once.
        descriptions: One tuple of sentences per class; empty where the class has none, and templates stand in.
        synonyms: One tuple of further names per class, which fill the templates as its name does; empty where no class has any.
    """

    names: tuple[str, ...]
    templates: tuple[str, ...]
    descriptions: tuple[tuple[str, ...], ...]
    synonyms: tuple[tuple[str, ...], ...] = ()

    @property
    def called(self) -> tuple[tuple[str, ...], ...]:
        """Every name of each class, its own first."""
        return tuple((name, *own) for name, own in zip(self.names, self.synonyms or ((),) * len(self.names), strict=True))

    def __len__(self) -> int:
        return len(self.names)

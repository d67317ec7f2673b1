"""Special tokens written out in a user's text are text."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence


class SpecialTokens:
    """Breaks special tokens in user text with a space, which tokenizers skip.

    Args:
        strings: How the tokenizer writes its special tokens; single characters are left alone.
        clean: What the tokenizer does to a text first; it can unfold new special tokens (HTML entities).
    """

    def __init__(self, strings: Sequence[str], clean: Callable[[str], str] = str) -> None:
        self._clean = clean
        own = [string for string in strings if len(string) > 1]
        self._pattern = re.compile("|".join(re.escape(string) for string in own), re.IGNORECASE) if own else None

    def escape(self, text: str) -> str:
        """The text with no special token left in it."""
        if self._pattern is None:
            return text
        while self._pattern.search(cleaned := self._clean(text)):
            text = self._pattern.sub(lambda match: f"{match[0][0]} {match[0][1:]}", cleaned)
        return text

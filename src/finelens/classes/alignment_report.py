"""What was found when descriptions were aligned with class names: as lines for people and as JSON for the run folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from finelens.classes.names import normalise
from finelens.classes.text_files import counted, listing, quote
from finelens.core.options import nearest

_HINTED = 5


def _classes(number: int) -> str:
    return counted(number, "class", "classes")


def _sentences(number: int) -> str:
    return counted(number, "sentence", "sentences")


@dataclass(frozen=True)
class TruncatedText:
    """A sentence longer than the model reads.

    Attributes:
        name: Its class.
        tokens: Its length in tokens, special tokens included.
        text: The sentence.
    """

    name: str
    tokens: int
    text: str


@dataclass(frozen=True)
class DescriptionReport:
    """Result of an alignment. Classes are named as in the class list and stand in its order.

    Attributes:
        source: Where the descriptions come from.
        classes: Number of classes.
        matched: Classes with at least one sentence.
        missing: Classes without an entry; templates stand in.
        empty: Classes whose entry has no text; templates stand in.
        extra: Entries that belong to no class, as the file names them.
        sentences: Number of sentences kept.
        duplicate: Class to number of repeated sentences dropped; classes without repetitions are left out.
        identical: Groups of classes that have exactly the same sentences, so that the texts do not tell them apart.
        context_length: Longest text of the model in tokens; None when lengths were not checked.
        truncated: Number of sentences longer than that.
        worst: The longest of these, longest first.
    """

    source: str
    classes: int
    matched: tuple[str, ...]
    missing: tuple[str, ...]
    empty: tuple[str, ...]
    extra: tuple[str, ...]
    sentences: int
    duplicate: Mapping[str, int]
    identical: tuple[tuple[str, ...], ...]
    context_length: int | None
    truncated: int
    worst: tuple[TruncatedText, ...]

    def lines(self) -> list[str]:
        """The report for people: a summary, then one line for each thing found."""
        found = [f"{self.source}: {len(self.matched)} of {_classes(self.classes)} described by {_sentences(self.sentences)}"]
        if self.missing:
            found.append(f"WARNING: no description for {_classes(len(self.missing))}, templates stand in: {listing(self._missing_with_hints())}")
        if self.empty:
            found.append(f"WARNING: an entry without text for {_classes(len(self.empty))}, templates stand in: {listing([*map(quote, self.empty)])}")
        if self.extra:
            found.append(
                f"WARNING: {counted(len(self.extra), 'entry', 'entries')} for no class of the list, not used: {listing([*map(quote, self.extra)])}"
            )
        if self.identical:
            groups = [" = ".join(map(quote, group)) for group in self.identical]
            found.append(f"WARNING: classes with exactly the same sentences, which the texts cannot tell apart: {listing(groups)}")
        if self.truncated:
            cases = [f"{quote(text.name)} ({text.tokens} tokens)" for text in self.worst]
            found.append(f"WARNING: {_sentences(self.truncated)} of more than {self.context_length} tokens, to be cut, the longest: {listing(cases)}")
        if self.duplicate:
            cases = [f"{quote(name)} ({count})" for name, count in sorted(self.duplicate.items(), key=lambda item: -item[1])]
            found.append(f"{_sentences(sum(self.duplicate.values()))} dropped as repeated in {_classes(len(self.duplicate))}: {listing(cases)}")
        return found

    def _missing_with_hints(self) -> list[str]:
        hints = []
        for name in self.missing[:_HINTED]:
            near = nearest(name, self.extra, normalise)
            hints.append(quote(name) + (f" (did you mean {quote(near)} in the file?)" if near else ""))
        return hints + [quote(name) for name in self.missing[_HINTED:]]

    def to_json(self) -> dict[str, Any]:
        """The report as plain lists, numbers and texts."""
        return asdict(self)

"""Class names with a word that may be misspelt: a model reads such a name as another word, and nothing else would say so."""

from __future__ import annotations

import re
import string
from collections.abc import Collection, Iterator, Sequence, Set
from functools import cache
from importlib.util import find_spec
from pathlib import Path

# Below this length nearly every word is one letter from another.
_SHORTEST = 5
# A list of which more is unknown is in another language, or of names that no dictionary has: there a near word says nothing.
_MOST_UNKNOWN = 0.3
_ENDINGS = (("ies", "y"), ("es", ""), ("s", ""), ("ed", ""), ("ed", "e"), ("ing", ""), ("ing", "e"), ("y", ""), ("ish", ""), ("like", ""))
# The dictionary is American.
_BRITISH = (
    *(("isation", "ization"), ("ising", "izing"), ("ise", "ize"), ("our", "or"), ("tre", "ter"), ("ogue", "og"), ("grey", "gray")),
    *(("gramme", "gram"), ("aluminium", "aluminum"), ("cheque", "check")),
)
_WORD = re.compile(r"[a-z]{3,}")


def misspelt(names: Sequence[str]) -> dict[str, str]:
    """Words of class names that no dictionary has, and that are one slip from exactly one word that it has.

    A slip is a letter that is missing, too many or wrong, or two that changed places (Damerau, 1964); the first letter is taken to be right. The
    dictionary is that of WordNet's names and definitions of the ImageNet classes, which timm ships: English, with many animals, plants and things.

    Args:
        names: Class names.

    Returns:
        Word to the word that may be meant, in the order of the names. Empty where more than three words of ten are unknown: a list in another
        language, or of trade names. Right names that are rare (``sphynx``) may be among them.
    """
    words = list(dict.fromkeys(word for name in names for word in _WORD.findall(name.lower())))
    unnamed = [word for word in words if not _known(word, _names())]
    unknown = [word for word in unnamed if not _known(word, _definitions())]
    if len(unknown) > _MOST_UNKNOWN * len(words):
        return {}
    near = {word: _near(word, _names()) or _near(word, _definitions()) for word in unknown}
    return {word: found[0] for word, found in near.items() if len(found) == 1}


def _near(word: str, known: Collection[str]) -> list[str]:
    """Words that one slip makes this one: two letters that changed places, since that happens to few pairs of words, else any."""
    for edits in (_swaps(word), _edits(word)):
        if found := sorted({edited for edited in edits if len(edited) >= _SHORTEST and edited in known}):
            return found
    return []


def _known(word: str, words: Set[str]) -> bool:
    spelled = {word, *(word.replace(theirs, ours) for theirs, ours in _BRITISH)}
    stems = {own.removesuffix(ending) + stem for own in spelled for ending, stem in _ENDINGS if own.endswith(ending)}
    # "potted" is of "pot".
    stems |= {own[:-1] for own in stems if own[-2:-1] == own[-1:]}
    return not words.isdisjoint(spelled | stems)


def _swaps(word: str) -> Iterator[str]:
    for at in range(1, len(word) - 1):
        yield word[:at] + word[at + 1] + word[at] + word[at + 2 :]


def _edits(word: str) -> Iterator[str]:
    """All words with one letter more, less or another, but for the first."""
    for at in range(1, len(word) + 1):
        head, tail = word[:at], word[at:]
        yield head + tail[1:]
        for letter in string.ascii_lowercase:
            yield head + letter + tail
            yield head + letter + tail[1:]


@cache
def _names() -> frozenset[str]:
    return _words_of("imagenet_synset_to_lemma.txt")


@cache
def _definitions() -> frozenset[str]:
    return _words_of("imagenet_synset_to_definition.txt")


def _words_of(name: str) -> frozenset[str]:
    spec = find_spec("timm")
    assert spec is not None  # a requirement of the package
    assert spec.origin is not None
    text = (Path(spec.origin).parent / "data" / "_info" / name).read_text(encoding="utf-8").lower()
    return frozenset(_WORD.findall(text))

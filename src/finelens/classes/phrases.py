"""Short phrases and random ones about a class as sentences."""

from __future__ import annotations

import string
from collections.abc import Sequence
from functools import cache
from importlib.resources import files

import numpy as np

from finelens.classes.templates import fill
from finelens.images.randomness import below, generator

_VERBS = ("has", "have", "often", "typically", "usually", "may", "can", "is", "are")


def as_clause(name: str, phrase: str) -> str:
    """``"{name}, which has {phrase}."``, with the verb that the phrase asks for (after Menon and Vondrick, 2023).

    The published test for an article is a bare ``startswith("a")``, which also takes antlers for one; ours looks at the first word.
    """
    phrase = phrase.strip().rstrip(".")
    first = phrase.split(maxsplit=1)[0].lower() if phrase else ""
    if first in ("a", "an", "used"):
        clause = f"which is {phrase}"
    elif first in _VERBS:
        clause = f"which {phrase}"
    else:
        clause = f"which has {phrase}"
    return f"{fill('{}', name)}, {clause}."


@cache
def _words() -> tuple[str, ...]:
    text = files("finelens.classes").joinpath("words.txt").read_text(encoding="utf-8")
    return tuple(line for line in text.split() if line)


def random_phrases(count: int, seed: int) -> list[str]:
    """Phrases without meaning for WaffleCLIP (Roth et al., ICCV 2023): ``count`` pairs of random words, each followed by the same in random letters.

    Args:
        count: Pairs; twice as many phrases come back.
        seed: Seed of the run.
    """
    rng = generator(seed, 0, "", "waffle")
    phrases: list[str] = []
    for _ in range(count):
        words = [_pick(rng, _words()) for _ in range(2)]
        phrases += [" ".join(words), " ".join("".join(_pick(rng, string.ascii_lowercase) for _ in word) for word in words)]
    return phrases


def _pick(rng: np.random.Generator, choices: Sequence[str]) -> str:
    return choices[below(rng, len(choices))]

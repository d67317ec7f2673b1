"""Words that mean nothing, and class names in the same sentence: what names have to say more than (docs/report.md)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

import numpy as np
from torch import Tensor

from finelens.classes.templates import fill
from finelens.protocol import Backbone, ClassSet


@dataclass(frozen=True)
class NameTexts:
    """Texts of one template.

    Attributes:
        names: Unit-norm features of class names, (K, E); evenly spread ones where there are more than made-up words.
        made_up: Of words that mean nothing, (M, E).
    """

    names: Tensor
    made_up: Tensor


@cache
def _words() -> tuple[str, ...]:
    return tuple(files("finelens.classes").joinpath("made_up.txt").read_text(encoding="utf-8").split())


def name_texts(backbone: Backbone, classes: ClassSet) -> NameTexts:
    """Encode class names and made-up words in the first template, once each."""
    chosen = np.unique(np.linspace(0, len(classes) - 1, min(len(classes), len(_words()))).round().astype(int))
    names = [classes.names[i] for i in chosen]
    features = backbone.encode_text(_filled(classes.templates[0], [*names, *_words()])).float().cpu()
    return NameTexts(features[: len(names)], features[len(names) :])


def _filled(template: str, words: Sequence[str]) -> list[str]:
    return [fill(template, word) for word in words]

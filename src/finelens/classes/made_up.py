"""Words that mean nothing, and class names in the same sentence: what names have to say more than (docs/report.md)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from finelens.classes.heads import ClassHeads
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


def words_beside_names(heads: ClassHeads, texts: NameTexts | None) -> tuple[Tensor, Tensor] | None:
    """Every class name (C, E) and the made-up words (M, E) in the first template; None where no text was encoded.

    Args:
        heads: Text heads; the filled templates of a class are the last of its texts.
        texts: Made-up words.
    """
    if texts is None or heads.classes is None:
        return None
    first = [own[-len(heads.classes.templates)] for own in heads.texts]
    return F.normalize(torch.stack(first).float().cpu(), dim=1), texts.made_up


def _filled(template: str, words: Sequence[str]) -> list[str]:
    return [fill(template, word) for word in words]

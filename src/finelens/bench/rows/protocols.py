"""Which images a method adapts to and which it is asked about: splits that depend on data, protocol, seed and profile, and on no method.

Labels make the splits, here and nowhere else; a method never sees them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Literal, cast, get_args

import numpy as np

from finelens.classes.names import match, normalise
from finelens.core.options import nearest
from finelens.errors import UserError
from finelens.images.randomness import generator, permutation

Setting = Literal["inductive", "transductive", "online"]
Change = Literal["", "balanced", "longtail", "partial", "few", "noise", "fewshot", "unknown"]
HALF = -1
# Label of an image of another set, which belongs to none of the classes; -1 is an image whose class is not known.
STRANGER = -2
# Before the name of the set whose images are mixed in.
WITH = "with-"
_TAKES_NUMBER = ("longtail", "partial", "few", "noise", "fewshot")
EXAMPLES = (
    "inductive, transductive, online, balanced, longtail-10, longtail-20, longtail-50, partial-5, partial-10, partial-25, partial-half, few-1, "
    "few-4, few-16, fewshot-1, fewshot-4, fewshot-16, noise-25, unknown-none, unknown-half, unknown-with-SET; "
    "transductive+partial-10 combines a setting and a change"
)


class SkippedError(Exception):
    """A protocol that a set or a method cannot be run under; the message is the row's reason."""


@dataclass(frozen=True)
class Protocol:
    """One way to use a data set.

    Attributes:
        name: As the user wrote it, without spaces.
        setting: ``inductive`` adapts to the training part and predicts the test part; ``transductive`` adapts to the test part and predicts it;
            ``online`` sees the test part once, in a random order.
        change: What is done to the images or classes before.
        amount: Its number; ``HALF`` for half of the classes.
        other: Data set whose images are mixed in, half as many as there are.
    """

    name: str
    setting: Setting
    change: Change = ""
    amount: int = 0
    other: str = ""

    @property
    def fit_part(self) -> str:
        """Part that is adapted to: ``train`` or ``test``."""
        return "train" if self.setting == "inductive" else "test"


def parse_protocol(text: str) -> Protocol:
    """Read a protocol's name.

    Raises:
        UserError: No such protocol; the message lists what there is.
    """
    name = text.strip()
    first, plus, rest = name.partition("+")
    if first in get_args(Setting) and not plus:
        return Protocol(name, cast(Setting, first))
    setting, change_text = (first, rest) if plus else ("inductive", first)
    change, _, number = change_text.partition("-")
    known = change in get_args(Change) and change != "" and setting in get_args(Setting)
    # An image whose class was given cannot be asked about.
    known = known and (change != "fewshot" or setting == "inductive")
    # The level of a model for none of the classes is found on all images.
    known = known and (change != "unknown" or setting != "online")
    if known and change == "unknown" and number.startswith(WITH) and len(number) > len(WITH):
        return Protocol(name, cast(Setting, setting), "unknown", other=number.removeprefix(WITH))
    if known and change == "unknown" and number in ("half", "none"):
        return Protocol(name, cast(Setting, setting), "unknown", HALF if number == "half" else 0)
    if known and change == "balanced" and not number:
        return Protocol(name, cast(Setting, setting), "balanced")
    if known and change == "partial" and number == "half":
        return Protocol(name, cast(Setting, setting), "partial", HALF)
    if known and change in _TAKES_NUMBER and number.isascii() and number.isdigit() and int(number) >= 1:
        return Protocol(name, cast(Setting, setting), cast(Change, change), int(number))
    near = nearest(name, [example.strip() for example in EXAMPLES.split(";")[0].split(",")], normalise)
    raise UserError(f"unknown protocol {name!r}; " + (f"did you mean {near}?" if near else f"there are {EXAMPLES}"))


@dataclass(frozen=True)
class PartTruth:
    """What a split is made from, for one part, in store order.

    Attributes:
        labels: Class of each image, (N,); -1 where it is not known, ``STRANGER`` where it is of another set. Or, where photographs may have several
            classes, which they have: (N, C) of 0 and 1.
        ranks: A text for each image that sorts the images at random but for good; profiles take the first ones.
    """

    labels: np.ndarray
    ranks: Sequence[str]


@dataclass(frozen=True)
class Split:
    """Images of one run.

    Attributes:
        fit: Rows of the part that is adapted to, ascending.
        test: Rows of the test part that are asked about: ascending, or for ``online`` in the order of the stream.
        names: Class names, extra ones last.
        truth: Class of each row of ``test`` by its position in ``names``; -1 where it is none of them. Where photographs may have several: which of
            ``names`` each has, (N, C) bool.
        occurring: Number of classes that occur in ``test``.
        hinted: Positions in ``fit`` whose class is given to methods that can use it, ascending; empty but for ``fewshot``.
        hint_labels: Their classes.
    """

    fit: np.ndarray
    test: np.ndarray
    names: tuple[str, ...]
    truth: np.ndarray
    occurring: int
    hinted: tuple[int, ...] = ()
    hint_labels: tuple[int, ...] = ()

    @property
    def known(self) -> np.ndarray:
        """Which rows of ``test`` have a class or a set of classes among ``names``, (N,) bool."""
        return np.ones(len(self.truth), dtype=bool) if self.truth.ndim == 2 else self.truth >= 0


def refuse_several(protocol: Protocol) -> None:
    """Say why a set whose photographs may have several classes cannot be run under a protocol.

    Raises:
        SkippedError: Its split is made from the class of each photograph.
    """
    if protocol.change not in ("", "noise"):
        raise SkippedError(f"photographs of this set have several classes, and {protocol.name} is made from one class each")


def make_split(protocol: Protocol, train: PartTruth, test: PartTruth, names: Sequence[str], seed: int, limit: int | None) -> Split:
    """The images of one run.

    Args:
        protocol: The protocol.
        train: Training part.
        test: Test part.
        names: Class names.
        seed: Seed of every draw.
        limit: Most images that are adapted to; the same for every method. ``balanced`` and ``few-K`` are cut to equally many of each class, but to no
            fewer than one.

    Raises:
        SkippedError: The set does not allow the protocol.
    """
    same = protocol.setting != "inductive"
    source = test if same else train
    several = test.labels.ndim == 2
    asked = np.arange(len(test.labels)) if several else np.flatnonzero(test.labels != -1)
    fit = asked if same else np.arange(len(train.labels))
    if protocol.other:
        asked, fit = (_with_strangers(rows, part, seed) for rows, part in ((asked, test), (fit, source)))
    shots = np.zeros(0, dtype=np.int64)
    if not same and not len(fit):
        raise SkippedError("the set has no training part; transductive and online need none")
    if protocol.change in ("balanced", "longtail", "few", "partial", "fewshot"):
        if (source.labels[fit] < 0).any():
            raise SkippedError(f"the classes of some images of the {protocol.fit_part} part are not known, which {protocol.name} needs")
        chosen = _changed_rows(protocol, fit, source.labels, len(names), seed)
        fit, shots = (fit, chosen) if protocol.change == "fewshot" else (chosen, shots)
    if limit is not None and len(fit) > limit:
        fit = _equal_cut(fit, source, limit) if protocol.change in ("balanced", "few") else _cut(fit, shots, source, limit)
    if same:
        asked = fit
    elif protocol.change == "partial":
        asked = asked[np.isin(test.labels[asked], _drawn_classes(protocol, len(names), seed))]
    if not len(fit) or not len(asked):
        raise SkippedError("no image is left")
    if protocol.setting == "online":
        asked = asked[permutation(generator(seed, 0, "", "bench online"), len(asked))]
    extra = _extra_names(protocol, names, seed) if protocol.change == "noise" else ()
    if several:
        sets = np.pad(test.labels[asked] > 0, ((0, 0), (0, len(extra))))
        return Split(fit, asked, (*names, *extra), sets, int(sets.any(axis=0).sum()))
    kept = np.arange(len(names))
    if protocol.change == "unknown" and protocol.amount == HALF:
        kept = np.sort(_drawn_classes(protocol, len(names), seed))
    truth = _positions(test.labels[asked], kept)
    if not (truth >= 0).any():
        raise SkippedError("no image of the classes is left")
    own = tuple(names[c] for c in kept.tolist())
    hinted = np.flatnonzero(np.isin(fit, shots))
    hints = tuple(hinted.tolist()), tuple(source.labels[fit[hinted]].tolist())
    return Split(fit, asked, (*own, *extra), truth, len(np.unique(truth[truth >= 0])), *hints)


def _positions(labels: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """Labels (N,) as positions in the classes that are kept, rising; -1 for the others and for strangers."""
    place = np.full(max(labels.max(initial=-1), kept.max(initial=-1)) + 2, -1)
    place[kept] = np.arange(len(kept))
    return np.asarray(place[np.maximum(labels, -1)])


def _with_strangers(rows: np.ndarray, part: PartTruth, seed: int) -> np.ndarray:
    """The set's own images and half as many of the other set, or all of those."""
    strangers = part.labels[rows] == STRANGER
    own, others = rows[~strangers], rows[strangers]
    order = permutation(generator(seed, 0, "", "bench unknown"), len(others))[: len(own) // 2]
    return np.sort(np.concatenate([own, others[order]]))


def _cut(rows: np.ndarray, shots: np.ndarray, part: PartTruth, limit: int) -> np.ndarray:
    # Images whose class is given are never cut.
    rest = sorted(np.setdiff1d(rows, shots).tolist(), key=lambda row: part.ranks[row])
    return np.sort(np.concatenate([shots, np.array(rest[: max(0, limit - len(shots))], dtype=np.int64)]))


def _equal_cut(rows: np.ndarray, part: PartTruth, limit: int) -> np.ndarray:
    """The first images of each class by rank: the largest number that keeps to the limit, but one of each class even where that exceeds it.

    A cut that does not look at classes would leave some with more images than others, and the protocol would no longer be what its name says.
    """
    counts = np.bincount(part.labels[rows])
    most = max((k for k in range(1, limit + 1) if np.minimum(counts, k).sum() <= limit), default=1)
    ordered = np.array(sorted(rows.tolist(), key=lambda row: part.ranks[row]), dtype=np.int64)
    classes = part.labels[ordered]
    return np.sort(np.concatenate([ordered[classes == c][:most] for c in np.unique(classes)]))


def _changed_rows(protocol: Protocol, rows: np.ndarray, labels: np.ndarray, classes: int, seed: int) -> np.ndarray:
    if protocol.change == "partial":
        return rows[np.isin(labels[rows], _drawn_classes(protocol, classes, seed))]
    counts = np.bincount(labels[rows], minlength=classes)
    wanted = {
        "balanced": lambda: np.full(classes, counts[counts > 0].min()),
        "few": lambda: np.full(classes, protocol.amount),
        "fewshot": lambda: np.full(classes, protocol.amount),
        "longtail": lambda: _tail_sizes(int(counts.max()), protocol.amount, classes, seed),
    }[protocol.change]()
    kept = []
    for c in range(classes):
        own = rows[labels[rows] == c]
        order = permutation(generator(seed, 0, str(c), f"bench {protocol.change}"), len(own))
        kept.append(own[order[: wanted[c]]])
    return np.sort(np.concatenate(kept))


def _tail_sizes(largest: int, ratio: int, classes: int, seed: int) -> np.ndarray:
    """Images of each class, (C,): from ``largest`` to ``largest / ratio``, exponential, at least one; the seed says which class is where."""
    place = permutation(generator(seed, 0, "", "bench longtail"), classes)
    sizes = largest * (1 / ratio) ** (place / max(1, classes - 1))
    return np.maximum(1, np.round(sizes)).astype(int)


def _drawn_classes(protocol: Protocol, classes: int, seed: int) -> np.ndarray:
    count = (classes + 1) // 2 if protocol.amount == HALF else protocol.amount
    if count >= classes:
        raise SkippedError(f"the set has only {classes} classes")
    return permutation(generator(seed, 0, "", "bench partial"), classes)[:count]


def _extra_names(protocol: Protocol, names: Sequence[str], seed: int) -> tuple[str, ...]:
    words = extra_words()
    taken = match(words, names)
    free = [word for word in words if word not in taken]
    if protocol.amount > len(free):
        raise SkippedError(f"there are only {len(free)} extra names")
    order = permutation(generator(seed, 0, "", "bench noise"), len(free))[: protocol.amount]
    return tuple(free[i] for i in order)


def extra_words() -> list[str]:
    """Names that a class list may hold and a data set does not."""
    lines = files("finelens.bench.rows").joinpath("extra_names.txt").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def name_rank(name: str) -> str:
    """Rank of an image in :class:`PartTruth`, from its name in the part."""
    return hashlib.sha256(name.encode()).hexdigest()
